"""The error tree is mapped and documented as a whole."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gateway import errors
from gateway.codecs.statuses import CODES, grpc_status, http_status, retry_after
from gateway.errors import SluiceError, UnknownModel, UnknownVersion, printable
from gateway.telemetry.stats import error_name, failure_reason

ROOT = Path(__file__).resolve().parents[2]


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(each) for each in cls.__subclasses__()))


CLASSES = {
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, SluiceError)
}


def instance(cls: Any) -> SluiceError:
    if cls is UnknownModel:
        return UnknownModel("m")
    if cls is UnknownVersion:
        return UnknownVersion("m", "9", ("1",))
    return cls() if cls is errors.Draining else cls("text")


def test_the_table_has_exactly_the_errors_that_exist() -> None:
    assert set(CODES) == CLASSES


def test_errors_are_defined_in_one_place() -> None:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
                assert not bases & {cls.__name__ for cls in CLASSES}, f"{path}: {node.name}"


def test_the_tree_in_the_documentation_is_the_tree_in_the_code() -> None:
    assert errors.__doc__
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+Error\b|[A-Z][a-z]+[A-Z]?\w*)(\s|$)", line)
        if not match or not (match[2] == "SluiceError" or "─" in match[1]):
            continue
        depth = len(match[1])
        while path and path[-1][0] >= depth:
            path.pop()
        found[match[2]] = path[-1][1] if path else "Exception"
        path.append((depth, match[2]))
    assert found == {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls.__base__}


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda cls: cls.__name__))
def test_every_error_says_what_it_is(cls: type[SluiceError]) -> None:
    assert cls.__doc__ and cls.__doc__.strip()
    error = instance(cls)
    assert 400 <= http_status(error) <= 599
    assert 1 <= grpc_status(error) <= 16
    assert re.fullmatch("[a-z]+(_[a-z]+)*", error_name(error))
    assert failure_reason(error) in ("REJECTED", "CANCELED", "BACKEND", "OTHER")


def test_whose_fault_it_is_shows_in_the_status() -> None:
    for cls in CLASSES:
        status = http_status(instance(cls))
        if issubclass(cls, errors.RequestError):
            assert status < 500 or cls is errors.Unsupported
        if issubclass(cls, errors.Overloaded):
            assert (status, CODES[cls][1]) == (429, 8)
        if cls in (errors.Unavailable, errors.ModelNotReady, errors.Draining):
            assert (status, CODES[cls][1]) == (503, 14)


def test_an_error_of_somebody_else_takes_the_row_of_its_base() -> None:
    class Special(errors.QueueFull):
        pass

    error = Special("full", retry_after=0.01)
    assert (http_status(error), grpc_status(error), retry_after(error)) == (429, 8, 1)
    assert retry_after(errors.QueueFull("full", retry_after=2.1)) == 3
    assert retry_after(errors.ModelNotReady("not yet")) is None
    assert retry_after(errors.InvalidRequest("no")) is None


def test_messages_hold_no_control_characters() -> None:
    evil = "a\n\x1b[31m\0" + "x" * 1000
    for error in (UnknownModel(evil, ("a",)), UnknownVersion("m", evil, ())):
        assert str(error).isprintable()
        assert len(str(error)) < 300
    assert str(UnknownModel("x")).startswith("Request for unknown model")
    assert printable("a" * 90) == "a" * 79 + "…"
    assert printable(["ü", 1]) == "['ü', 1]"
