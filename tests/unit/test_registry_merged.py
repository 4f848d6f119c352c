"""Several sources as one: whose a model is."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway.registries.base import AspiredModel
from gateway.registries.merged import Merged


class Named:
    def __init__(self, source: str) -> None:
        self.source = source


def snapshot(*names: str, error: str = "") -> dict[str, AspiredModel]:
    return {name: AspiredModel(name, {}, error=error) for name in names}


@pytest.fixture
def two() -> tuple[Any, Any, Merged]:
    first, second = Named("first"), Named("second")
    registries: list[Any] = [first, second]
    return first, second, Merged(registries)


def test_the_first_that_names_a_model_owns_it(
    two: tuple[Any, Any, Merged], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, merged = two
    assert merged.take(first, snapshot("a", "b")) == ([*snapshot("a", "b").values()], [])
    for _ in range(3):
        wanted, gone = merged.take(second, snapshot("b", "c", error="second's"))
        assert ([model.name for model in wanted], gone) == (["c"], [])
    assert merged.owner("b") is first
    assert merged.owner("c") is second
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert lines == ["second: model 'b' is in first already and served from there; rename one"]


def test_a_model_that_its_owner_drops_goes_to_the_next(two: tuple[Any, Any, Merged]) -> None:
    first, second, merged = two
    merged.take(first, snapshot("b"))
    merged.take(second, snapshot("b", error="second's"))
    wanted, gone = merged.take(first, snapshot())
    assert ([model.error for model in wanted], gone) == (["second's"], [])
    assert merged.owner("b") is second


def test_a_model_that_nobody_has_is_gone(two: tuple[Any, Any, Merged]) -> None:
    first, _, merged = two
    merged.take(first, snapshot("b"))
    assert merged.take(first, snapshot()) == ([], ["b"])
    with pytest.raises(KeyError):
        merged.owner("b")
