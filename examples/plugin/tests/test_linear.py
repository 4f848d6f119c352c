"""The whole contract, and what is particular to this runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sluicegate_linear import LinearRuntime

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.conformance import RuntimeConformance
from runtimes.interface import Artifact

TABLE = "output,intercept,a,b\nsum,0,1,1\ndifference,10,1,-1\n"


def written(folder: Path, table: str = TABLE, **options: str) -> Artifact:
    (folder / "model.csv").write_text(table)
    return Artifact("linear", "1", folder, ModelSettings(options=dict(options), instances=2))


class TestConformance(RuntimeConformance):
    runtime = LinearRuntime()

    def artifact(self, folder: Path) -> Artifact:
        return written(folder)


def test_it_multiplies_and_adds(tmp_path: Path) -> None:
    model = LinearRuntime().load(written(tmp_path))
    answer = model.infer({"x": np.array([[1, 2], [3, 4]], np.float32)}, (), {})
    assert {name: array.tolist() for name, array in answer.items()} == {
        "sum": [3, 7],
        "difference": [9, 9],
    }


def test_logistic(tmp_path: Path) -> None:
    model = LinearRuntime().load(written(tmp_path, link="logistic"))
    answer = model.infer({"x": np.array([[1, -1]], np.float32)}, (), {})
    assert answer["sum"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        ("", "must begin with output,intercept"),
        ("output,intercept,a\n", "has no output"),
        ("output,intercept,a\ny,1\n", "line 2: a name of its own and 2 numbers"),
        ("output,intercept,a\ny,1,2\ny,1,2\n", "line 3: a name of its own"),
        ("output,intercept,a\ny,1,two\n", "line 2 holds no number"),
    ],
)
def test_bad_tables(tmp_path: Path, table: str, cause: str) -> None:
    with pytest.raises(ModelLoadError, match=cause):
        LinearRuntime().load(written(tmp_path, table))


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="must be identity or logistic"):
        LinearRuntime().load(written(tmp_path, link="probit"))
