"""The example models, served, are as good as their cards say: on rows they have never seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from examples.datasets import MODELS, ModelName, held_out
from tests.conformance.triton_clients import TritonClient
from tests.support.gateway import ROOT, GatewayProcess

BATCH = 37
"""Rows a request: no power of two, and less than the largest batch."""


def cards() -> Iterator[tuple[ModelName, str]]:
    for model in MODELS:
        yield from ((model, version) for version in card(model)["accuracy"])


def card(model: str) -> dict[str, Any]:
    path = ROOT / "examples" / "models" / model / "card.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(("model", "version"), [*cards()])
@pytest.mark.parametrize("flavor", ["http", "grpc"])
@pytest.mark.parametrize("batch", [BATCH, 1000])
def test_accuracy(
    gateway: GatewayProcess, flavor: str, model: ModelName, version: str, batch: int
) -> None:
    """A request of 1000 rows is larger than any batch and is cut into slices."""
    rows = held_out(model)
    client = TritonClient(flavor, gateway)
    try:
        answers = list(answers_of(client, model, version, rows, batch))
    finally:
        client.close()
    found = np.concatenate(answers)
    assert found.shape == rows.expected.shape
    if found.dtype == object:
        found = np.array([each.decode() for each in found], object)
    right = int(np.count_nonzero(found == rows.expected))
    assert len(rows) == card(model)["held_out"]
    assert round(right / len(rows), 4) == card(model)["accuracy"][version]


def answers_of(
    client: TritonClient, model: str, version: str, rows: Any, batch: int
) -> Iterator[np.ndarray[Any, Any]]:
    kinds = {t["name"]: t["datatype"] for t in client.json("get_model_metadata", model)["inputs"]}
    for at in range(0, len(rows), batch):
        inputs = [
            client.tensor(name, kinds[name], values[at : at + batch])
            for name, values in rows.inputs.items()
        ]
        outputs = client.outputs(rows.output)
        result = client.call("infer", model, inputs, model_version=version, outputs=outputs)
        yield result.as_numpy(rows.output)


def test_second_version_is_better() -> None:
    """Else the example would promote for nothing."""
    accuracy = card("digits")["accuracy"]
    assert accuracy["2"] > accuracy["1"]
