"""The repository API of the Open Inference Protocol and Triton, whatever the protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from gateway.config import Config
from gateway.control.callers import Caller, check_caller
from gateway.control.changes import Changes
from gateway.control.files import PREFIX, check_files
from gateway.errors import InvalidRequest, NotAllowed, UnknownModel, Unsupported, printable
from gateway.registries.config_json import config_text

UNLOAD_DEPENDENTS: Final = "model_repository(unload_dependents)"
"""The extension, in Triton's words, that a server has whose callers may load and unload."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_LOAD: Final = ("config", "version")
_UNLOAD: Final = ("unload_dependents", "version")

Parameter = str | bytes | bool | int


class Repository:
    """Loads and unloads for callers of the inference ports. For the event loop.

    `parameters` are Triton's: ``config``, ``file:<path>``, ``unload_dependents``, and ``version``
    for one version. Raises `NotAllowed` unless ``control.enabled`` and the caller may, and
    whatever `Changes` raises.
    """

    def __init__(self, config: Config, changes: Changes) -> None:
        self._config = config
        self._changes = changes

    async def load(
        self,
        caller: Caller,
        model: str,
        parameters: Mapping[str, Parameter],
        *,
        version: str = "",
        repository: str = "",
    ) -> None:
        """Answers when the model, or its version, is ready."""
        self.check(caller)
        named(model, repository)
        files: dict[str, bytes] = {}
        for name, value in parameters.items():
            if name.startswith(PREFIX):
                if not self._config.control.files:
                    raise NotAllowed(
                        f"'{PREFIX}' parameters are not taken; set control.files: true"
                    )
                if type(value) is not bytes:
                    raise InvalidRequest(f"parameter '{printable(name)}' must be bytes")
                files[name.removeprefix(PREFIX)] = value
            elif name not in _LOAD:
                raise unknown(name, (*_LOAD, f"{PREFIX}1/model.onnx"))
        version = one_version(version, parameters)
        config = text(parameters, "config")
        if version and (config or files):
            raise InvalidRequest(
                f"'config' and '{PREFIX}' parameters are for a whole model; leave 'version' out"
            )
        if files:
            if not config:
                raise InvalidRequest(
                    f"'{PREFIX}' parameters need the parameter 'config' beside them, such as "
                    '{"max_batch_size": 8}'
                )
            check_files(files, self._config.limits.max_message_bytes)
        if config:
            config = await asyncio.to_thread(config_text, config, model)
        await self._changes.load(model, version, caller.who, "", config=config, files=files)

    async def unload(
        self,
        caller: Caller,
        model: str,
        parameters: Mapping[str, Parameter],
        *,
        version: str = "",
        repository: str = "",
    ) -> None:
        """Answers when it is out of the routes; what it has begun it finishes. (No model depends
        on others here, so that ``unload_dependents`` has nothing more to unload.)"""
        self.check(caller)
        named(model, repository)
        for name in parameters:
            if name not in _UNLOAD:
                raise unknown(name, _UNLOAD)
        if type(parameters.get("unload_dependents", False)) is not bool:
            raise InvalidRequest("parameter 'unload_dependents' must be true or false")
        await self._changes.unload(model, one_version(version, parameters), caller.who, "")

    def check(self, caller: Caller) -> None:
        """Raises `NotAllowed`."""
        control = self._config.control
        if not control.enabled:
            raise NotAllowed(
                "models cannot be loaded or unloaded over this port; set control.enabled: true "
                "(--set control.enabled=true)"
            )
        key = "control.token" if control.token or not self._config.admin.token else "admin.token"
        token = control.token or self._config.admin.token
        check_caller(caller, token, what="the repository API", key=key)


def named(model: str, repository: str) -> None:
    """Raises `UnknownModel` for what cannot be a model's name, `Unsupported` for a repository's."""
    if repository:
        raise Unsupported(
            f"repository '{printable(repository)}': repositories cannot be named; leave the name "
            "out"
        )
    if not _NAME.fullmatch(model):
        raise UnknownModel(model)


def one_version(version: str, parameters: Mapping[str, Parameter]) -> str:
    """The version in the path or in the parameters; empty for the whole model."""
    value = parameters.get("version", "")
    if type(value) is int:
        value = str(value)
    if type(value) is not str:
        raise InvalidRequest("parameter 'version' must be a version, such as \"2\"")
    if version and value and version != value:
        raise InvalidRequest("the path and the parameter 'version' name different versions")
    return version or value


def text(parameters: Mapping[str, Parameter], name: str) -> str:
    value = parameters.get(name, "")
    if type(value) is not str:
        raise InvalidRequest(f"parameter '{name}' must be text")
    return value


def unknown(name: str, known: tuple[str, ...]) -> InvalidRequest:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    return InvalidRequest(f"unknown parameter '{printable(name)}'; {hint}")
