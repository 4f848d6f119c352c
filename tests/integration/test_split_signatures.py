"""Versions of one split that name their input differently: forms of request without names are
read as the version wants that answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from onnx import TensorProto
from onnx import helper as h

from gateway.app import Gateway
from tests.integration.test_admin import Client, serving
from tests.support.onnx_models import adding, info, model_bytes, write


def renamed(value: float) -> bytes:
    """``y = other + value``, in FP64."""
    kind = TensorProto.DOUBLE
    weight = h.make_tensor("value", kind, [1], [value])
    x, y = info("other", kind, ["N", 4]), info("y", kind, ["N", 4])
    return model_bytes([h.make_node("Add", ["other", "value"], ["y"])], [x], [y], [weight])


def test_v1_is_read_by_the_version_that_answers(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", adding(1.0))
    write(tmp_path / "m" / "2", renamed(2.0))
    (tmp_path / "m" / "traffic.yaml").write_text("weights: {1: 50, 2: 50}\nstable: '1'\n")
    (tmp_path / "m" / "model.yaml").write_text("signature_change: allow\n")

    def test(client: Client, gateway: Gateway) -> None:
        found: Counter[float] = Counter()
        for _ in range(60):
            status, answer = client.ask(
                "POST", "/v1/models/m:predict", {"instances": [[0, 0, 0, 0]]}
            )
            assert status == 200, answer
            found[answer["predictions"][0][0]] += 1
        assert set(found) == {1.0, 2.0}

    serving(test, tmp_path)
