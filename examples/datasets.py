"""The data behind the example models, and the fixed rows that no model was trained on.

``held_out("digits")`` gives what a test needs to measure a served model: the inputs by tensor
name, the output to look at, and the right answers. Needs NumPy; digits and iris also need
scikit-learn, which ships both data sets (nothing is downloaded).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ModelName = Literal["digits", "iris", "text"]

MODELS: tuple[ModelName, ...] = ("digits", "iris", "text")
SPECIES = ("setosa", "versicolor", "virginica")
TEXT_LINES = Path(__file__).parent / "data" / "text_lines.tsv"


@dataclass(frozen=True)
class Rows:
    """Rows of one data set; every array has the same first dimension N."""

    inputs: dict[str, Array]
    """Input tensor name → values, as the model takes them."""
    output: str
    """Name of the output tensor that holds the answer."""
    expected: Array
    """[N] right answers: int64 (digits) or str in an object array (iris, text)."""

    def __len__(self) -> int:
        """N."""
        return len(self.expected)


@dataclass(frozen=True)
class Split:
    """One data set in its two parts, which share no row."""

    train: Rows
    held_out: Rows


def held_out(model_name: ModelName) -> Rows:
    """The rows kept away from training, always the same ones in the same order."""
    return split(model_name).held_out


def split(model_name: ModelName) -> Split:
    """Both parts of a model's data."""
    match model_name:
        case "digits":
            return _digits()
        case "iris":
            return _iris()
        case "text":
            return _text()


def _digits() -> Split:
    """``image`` float32 [N,1,8,8], 0 to 16 of ink; ``label`` int64 [N]. 1437 + 360 rows."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = Rows(
        inputs={"image": pixels.astype(np.float32).reshape(-1, 1, 8, 8)},
        output="label",
        expected=labels.astype(np.int64),
    )
    return _hold_out(rows, 360)


def _iris() -> Split:
    """``sepal``, ``petal`` float32 [N,2], length, width in cm; ``species`` [N]. 100 + 50 rows."""
    from sklearn.datasets import load_iris

    measures, labels = load_iris(return_X_y=True)
    measures = measures.astype(np.float32)
    rows = Rows(
        inputs={"sepal": measures[:, :2].copy(), "petal": measures[:, 2:].copy()},
        output="species",
        expected=np.array(SPECIES, dtype=object)[labels],
    )
    return _hold_out(rows, 50)


def _text() -> Split:
    """``text`` str [N], one line each; ``kind`` [N], "code" or "prose".

    Split by the module a line comes from, so that no file is in both parts.
    """
    with TEXT_LINES.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    train, kept = ([line for line in lines if line["part"] == p] for p in ("train", "held_out"))
    return Split(train=_text_rows(train), held_out=_text_rows(kept))


def _text_rows(lines: list[dict[str, str]]) -> Rows:
    text, kind = (np.array([line[key] for line in lines], dtype=object) for key in ("text", "kind"))
    return Rows(inputs={"text": text}, output="kind", expected=kind)


def _hold_out(rows: Rows, count: int) -> Split:
    """Keep ``count`` rows drawn at random, with a fixed seed, out of training."""
    # RandomState's stream is frozen by NumPy's policy; default_rng's may change with a release.
    order = np.random.RandomState(0).permutation(len(rows))
    return Split(train=_take(rows, order[count:]), held_out=_take(rows, order[:count]))


def _take(rows: Rows, index: Array) -> Rows:
    inputs = {name: values[index] for name, values in rows.inputs.items()}
    return Rows(inputs=inputs, output=rows.output, expected=rows.expected[index])
