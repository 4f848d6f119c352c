"""Writing a split back to MLflow."""

from __future__ import annotations

from gateway.errors import RegistryError
from gateway.registries.mlflow.client import Client
from gateway.registries.mlflow.documents import Registered
from gateway.registries.mlflow.traffic import Roles, Write, plan
from gateway.registries.traffic import Traffic


def write(client: Client, seen: Registered | None, traffic: Traffic, roles: Roles) -> Registered:
    """Makes a registered model declare `traffic`, and returns it; `seen` is how it was when that
    was decided.

    MLflow has no transactions: somebody else's change since then is refused before anything is
    written, one in between is found afterwards. Raises `RegistryError`, with what was done.
    """
    if seen is None:
        raise RegistryError("the model is not in MLflow any more; nothing was written")
    try:
        now = client.registered(seen.name)
    except RegistryError as error:
        raise RegistryError(f"{error}; nothing was written") from None
    if now is None:
        raise RegistryError(f"'{seen.name}' is not in MLflow any more; nothing was written")
    if differs(now, seen):
        raise RegistryError(
            f"the aliases or tags of '{seen.name}' have just been changed in MLflow; nothing was "
            "written: look at what holds now, then try again"
        )
    done: list[Write] = []
    writes = plan(now, traffic, roles)
    for each in writes:
        try:
            apply(client, seen.name, each)
        except RegistryError as error:
            raise RegistryError(f"{error}; {told(done)}; not done: {each}") from None
        done.append(each)
    if not done:
        return now
    try:
        after = client.registered(seen.name)
    except RegistryError as error:
        raise RegistryError(f"{error}; {told(done)}, but nobody has looked since") from None
    if after is None or _state(after) != expected(now, done):
        raise RegistryError(
            f"somebody else has changed '{seen.name}' in MLflow at the same time; {told(done)}; "
            "look at what holds now"
        )
    return after


def apply(client: Client, name: str, change: Write) -> None:
    """Makes one change."""
    if change.kind == "alias":
        if change.value is None:
            client.delete_alias(name, change.name)
        else:
            client.set_alias(name, change.name, change.value)
    elif change.value is None:
        client.delete_tag(name, change.name)
    else:
        client.set_tag(name, change.name, change.value)


def differs(one: Registered, other: Registered) -> bool:
    """Whether aliases or tags do."""
    return _state(one) != _state(other) or one.creation_timestamp != other.creation_timestamp


def expected(before: Registered, done: list[Write]) -> dict[str, dict[str, str]]:
    """Aliases and tags after these changes."""
    state = _state(before)
    for each in done:
        if each.value is None:
            state[each.kind].pop(each.name, None)
        else:
            state[each.kind][each.name] = each.value
    return state


def _state(model: Registered) -> dict[str, dict[str, str]]:
    return {"alias": model.by_alias, "tag": model.by_tag}


def told(done: list[Write]) -> str:
    """What has been written, in words."""
    return f"done: {', '.join(map(str, done))}" if done else "nothing was written"
