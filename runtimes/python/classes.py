"""Which class of a model's file is the model, and what can be seen of it without running it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

from gateway.errors import ModelLoadError

TRITON: Final = "TritonPythonModel"
METHODS: Final = ("infer", "preprocess", "postprocess")
Flavour = Literal["plain", "async", "generator", "async generator"]


def find_class(module: ModuleType, file: str) -> type:
    """The model's class: `model`, Triton's, or the only one with a method of ours.

    Raises `ModelLoadError`.
    """
    named = getattr(module, "model", None)
    if isinstance(named, type):
        return named
    triton = getattr(module, TRITON, None)
    if isinstance(triton, type):
        return triton
    found = [
        each
        for name, each in vars(module).items()
        if isinstance(each, type)
        and not name.startswith("_")
        and each.__module__ == module.__name__
        and any(callable(getattr(each, method, None)) for method in METHODS)
    ]
    leaves = [each for each in dict.fromkeys(found) if not _has_heirs(each, found)]
    if len(leaves) == 1:
        return leaves[0]
    if not leaves:
        raise ModelLoadError(
            f"{file} has no class with a method infer (or preprocess, postprocess) and no "
            f"{TRITON}; see docs/python.md"
        )
    names = ", ".join(each.__name__ for each in leaves)
    raise ModelLoadError(
        f"{file} has several classes that could be the model ({names}); name one with: "
        f"model = {leaves[0].__name__}"
    )


def _has_heirs(base: type, others: list[type]) -> bool:
    return any(issubclass(each, base) and each is not base for each in others)


def flavour(method: Callable[..., object]) -> Flavour:
    """How a method is written."""
    if inspect.isasyncgenfunction(method):
        return "async generator"
    if inspect.isgeneratorfunction(method):
        return "generator"
    return "async" if inspect.iscoroutinefunction(method) else "plain"


def takes(method: Callable[..., object], name: str) -> bool:
    """Whether a method has a parameter of that name."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.name == name or (each.kind is inspect.Parameter.VAR_KEYWORD and name == "parameters")
        for each in parameters
    )


def arguments(method: Callable[..., object]) -> int:
    """How many positional arguments a bound method takes at most."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return 99
    return sum(each.kind in positional for each in parameters)


@dataclass(frozen=True)
class Shape:
    """What the class says of itself."""

    cls: type
    flavour: Flavour
    parameters: bool
    """Whether its method looks at a request's parameters."""
    stateful: bool
    probed: bool

    @property
    def asynchronous(self) -> bool:
        return self.flavour.startswith("async")

    @property
    def many(self) -> bool:
        """Whether a request has any number of answers."""
        return self.flavour.endswith("generator")


def shape_of(cls: type, file: str) -> Shape:
    """Looks at a class with `infer`. Raises `ModelLoadError`."""
    infer = cls.infer  # type: ignore[attr-defined]
    for name in ("stateful", "probed"):
        if not isinstance(getattr(cls, name, True), bool):
            raise ModelLoadError(f"{file}: {cls.__name__}.{name} must be True or False")
    return Shape(
        cls,
        flavour(infer),
        takes(infer, "parameters"),
        bool(getattr(cls, "stateful", False)),
        bool(getattr(cls, "probed", True)),
    )


def call_load(instance: Any, context: object, run: Callable[[Any], Any]) -> None:
    """Calls `load`, where there is one, with or without the context. `run` runs coroutines."""
    load = getattr(instance, "load", None)
    if load is not None:
        given = load(context) if arguments(load) else load()
        if asyncio.iscoroutine(given):
            run(given)
