"""A runtime for linear models that are tables: one line an output, one column a feature.

    output,intercept,bmi,blood_pressure
    progression,-335.2,5.7,1.1

The answer for a row ``x`` is ``intercept + weights · x`` for each output. Such a table comes out
of any statistics package or spreadsheet, can be read by anybody, and executes nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidInput, ModelLoadError
from gateway.tensors import DATATYPES, Array, Parameter, TensorSpec
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport

DEFAULT_FILE: Final = "model.csv"
COLUMNS: Final = ["output", "intercept"]
LINKS: Final = ("identity", "logistic")
FP32: Final = DATATYPES["FP32"]


class LinearRuntime(Runtime):
    """Loads ``model.csv``. Option ``link``: identity (the default) or logistic, for odds."""

    name = "linear"

    def report(self) -> RuntimeReport:
        """Nothing but numpy is needed, so it is always available."""
        return RuntimeReport(
            name=self.name,
            available=True,
            version=np.__version__,
            devices=("cpu",),
            formats=(DEFAULT_FILE,),
        )

    def probe(self, artifact: Artifact) -> bool:
        """By the name alone; the file is read when it is loaded."""
        path = artifact.file(DEFAULT_FILE)
        return path.suffix == ".csv" and path.is_file()

    def estimate(self, artifact: Artifact) -> int:
        """Text takes more than the numbers that it stands for."""
        path = artifact.file(DEFAULT_FILE)
        return path.stat().st_size + 4096 if path.is_file() else 0

    def load(self, artifact: Artifact) -> Model:
        """Raises `ModelLoadError` for options and files that are not as they should be."""
        link = read_link(artifact)
        path = artifact.file(DEFAULT_FILE)
        if not path.resolve().is_relative_to(artifact.path.resolve()):
            raise ModelLoadError(f"'{path.name}' is outside the version's folder")
        names, intercepts, weights = read_table(path)
        return LinearModel(names, intercepts, weights, link, artifact.settings.instances or 1)


class LinearModel(Model):
    """Input ``x`` FP32 [-1, features]; one output FP32 [-1] for each line of the table."""

    platform = "linear_csv"
    batch_dimension = True

    def __init__(
        self, names: Sequence[str], intercepts: Array, weights: Array, link: str, instances: int
    ) -> None:
        self.inputs = (TensorSpec("x", FP32, (-1, weights.shape[1])),)
        self.outputs = tuple(TensorSpec(name, FP32, (-1,)) for name in names)
        self.instances = instances
        self._intercepts: Array | None = intercepts
        self._weights = weights
        self._logistic = link == "logistic"

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """All outputs; they come from one product."""
        if self._intercepts is None:
            raise InferenceFailed("the model is closed")
        x = inputs["x"]
        if x.ndim != 2 or x.shape[1] != self._weights.shape[1]:
            raise InvalidInput(f"x has shape {list(x.shape)}, not [-1, {self._weights.shape[1]}]")
        y = x @ self._weights.T + self._intercepts
        if self._logistic:
            y = 1 / (1 + np.exp(-y))
        return {spec.name: np.ascontiguousarray(y[:, n]) for n, spec in enumerate(self.outputs)}

    def close(self) -> None:
        """Drops the numbers."""
        self._intercepts, self._weights = None, np.zeros((0, 0), np.float32)


def read_link(artifact: Artifact) -> str:
    """The option ``link``. Raises `ModelLoadError`, for any other option too."""
    settings = artifact.settings
    for name in settings.options:
        if name != "link":
            raise ModelLoadError(f"the linear runtime has no option '{name}'; it has: link")
    if settings.device == "gpu":
        raise ModelLoadError("the linear runtime has no GPU; remove 'device'")
    link = settings.options.get("link", "identity")
    if link not in LINKS:
        raise ModelLoadError(f"option 'link' is '{link}'; it must be {' or '.join(LINKS)}")
    return str(link)


def read_table(path: Path) -> tuple[list[str], Array, Array]:
    """Names of the outputs, intercepts ``[outputs]`` and weights ``[outputs, features]``, FP32.

    Raises `ModelLoadError` that says which line is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except OSError as error:
        raise ModelLoadError(f"'{path.name}' cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise ModelLoadError(f"'{path.name}' is not a CSV file in UTF-8") from None
    if not lines or lines[0][:2] != COLUMNS or len(lines[0]) < 3:
        raise ModelLoadError(f"'{path.name}' must begin with output,intercept,FEATURE,...")
    names: list[str] = []
    numbers: list[list[float]] = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(lines[0]) or line[0] in ("", *names):
            raise ModelLoadError(
                f"'{path.name}' line {number}: a name of its own and {len(lines[0]) - 1} numbers "
                "are needed"
            )
        try:
            numbers.append([float(cell) for cell in line[1:]])
        except ValueError:
            raise ModelLoadError(f"'{path.name}' line {number} holds no number") from None
        names.append(line[0])
    if not names:
        raise ModelLoadError(f"'{path.name}' has no output; add a line")
    table = np.array(numbers, np.float32)
    return names, table[:, 0], table[:, 1:]
