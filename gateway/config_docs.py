"""Prints ``docs/configuration.md`` from the code: ``python -m gateway.config_docs``."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_type_hints

from gateway.config import ENV_PREFIX, NOT_KEYS, Config, Section, describe, section_keys

HEAD = """\
# Configuration

Every key can be set in three places; flags win over the environment, the environment over the
file.

| where | how `grpc.server` is set |
|---|---|
| flag | `--grpc-server native`, or for any key `--set grpc.server=native` |
| environment | `{prefix}GRPC__SERVER=native`: two underscores for the dot |
| file (`--config FILE`) | `grpc:` and below it, indented, `server: native` |

An unknown key is refused with the nearest known one, wherever it is. `sluice config show --origin`
prints every value and where it comes from. Of `sources`, the environment has a list with commas;
on the command line they are the words after `serve`. {others} are read by
the commands that talk to a running gateway, and are no keys.

What concerns one model only is in its own `model.yaml`, not here. This page is made from
`gateway/config.py` by `make docs`.
"""


def page() -> str:
    """The whole page."""
    others = " and ".join(f"`{name}`" for name in sorted(NOT_KEYS, reverse=True))
    parts = [HEAD.format(prefix=ENV_PREFIX, others=others)]
    keys = section_keys()
    top = {key: field for key, field in keys.items() if "." not in key}
    parts.append(table("General", "The gateway as a whole.", top))
    hints = get_type_hints(Config)
    for name in Config.__struct_fields__:
        section = hints[name]
        if isinstance(section, type) and issubclass(section, Section):
            inner = {key: f for key, f in keys.items() if key.startswith(f"{name}.")}
            parts.append(table(f"`{name}`", inspect.cleandoc(section.__doc__ or ""), inner))
    return "\n".join(parts)


def table(title: str, text: str, keys: dict[str, Any]) -> str:
    """One section of the page."""
    rows = [f"## {title}\n", f"{text}\n", "| key | type | default | |", "|---|---|---|---|"]
    for key, field in keys.items():
        kind, description, default = describe(field)
        rows.append(f"| `{key}` | {kind} | {shown(default)} | {description} |")
    return "\n".join(rows) + "\n"


def shown(default: Any) -> str:
    """A default as YAML has it."""
    if default == () or default == "":
        return "empty"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    print(page(), end="")
