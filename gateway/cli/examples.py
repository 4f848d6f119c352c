"""Lines to paste into a shell: one request to a model, made up from its metadata."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.cli.client import quoted
from gateway.cli.options import DEFAULT_URL

MOST_VALUES: Final = 100
"""A longer body is nothing to paste."""
OTHERWISE: Final = frozenset({"BOOL", "FP16", "BF16"})
NUMPY: Final = {"FP32": "float32", "FP64": "float64"}
"""The rest are called like their datatype."""


@dataclass(frozen=True)
class Example:
    """A model and its inputs' metadata; one row of zeros (or of a word) is sent."""

    model: str
    inputs: tuple[dict[str, Any], ...]
    output: str
    """The output that the Python line prints."""

    @property
    def size(self) -> int:
        return sum(math.prod(shape_of(spec)) for spec in self.inputs)

    @property
    def printable(self) -> bool:
        """Whether it fits on a line, with values that are the same in JSON and Python."""
        kinds = {spec["datatype"] for spec in self.inputs}
        return bool(self.inputs) and self.size <= MOST_VALUES and not kinds & OTHERWISE

    def body(self) -> dict[str, Any]:
        """The request as JSON has it."""
        return {
            "inputs": [
                {
                    "name": spec["name"],
                    "shape": shape_of(spec),
                    "datatype": spec["datatype"],
                    "data": [value_of(spec)] * math.prod(shape_of(spec)),
                }
                for spec in self.inputs
            ]
        }


def shape_of(spec: dict[str, Any]) -> list[int]:
    return [1 if size < 0 else size for size in spec["shape"]]


def value_of(spec: dict[str, Any]) -> Any:
    return "hello" if spec["datatype"] == "BYTES" else 0


def curl_line(example: Example, url: str) -> str:
    """One request with curl."""
    body = json.dumps(example.body(), separators=(",", ":"))
    return f"curl -s {url}/v2/models/{quoted(example.model)}/infer -d {shlex.quote(body)}"


def python_line(example: Example, url: str, *, triton: bool) -> str:
    """One request with Python: by tritonclient where it is installed, else by httpx."""
    code = triton_code(example, url) if triton else httpx_code(example, url)
    return f"{python()} -c {shlex.quote(code)}"


def httpx_code(example: Example, url: str) -> str:
    where = f"{url}/v2/models/{quoted(example.model)}/infer"
    return f"import httpx; print(httpx.post({text(where)}, json={text(example.body())}).json())"


def triton_code(example: Example, url: str) -> str:
    inputs = ", ".join(
        f"t.InferInput({text(spec['name'])}, {shape_of(spec)}, {text(spec['datatype'])})"
        f".set_data_from_numpy({array_code(spec)})"
        for spec in example.inputs
    )
    address = url.partition("://")[2]
    return (
        "import numpy as np, tritonclient.http as t; "
        f"c = t.InferenceServerClient({text(address)}); "
        f"print(c.infer({text(example.model)}, [{inputs}]).as_numpy({text(example.output)}))"
    )


def array_code(spec: dict[str, Any]) -> str:
    kind = NUMPY.get(spec["datatype"], spec["datatype"].lower())
    if spec["datatype"] == "BYTES":
        return f'np.full({shape_of(spec)}, "hello", "object")'
    return f'np.zeros({shape_of(spec)}, "{kind}")'


def text(value: Any) -> str:
    """Strings, numbers and lists in JSON, which is Python too, with double quotes only."""
    return json.dumps(value)


def infer_line(model: str, picture: Path, url: str) -> str:
    """200 requests with a picture, so that a split shows."""
    words = [*sluice(), "infer", model, "--image", str(picture), "-n", "200"]
    if url != DEFAULT_URL:
        words += ["--url", url]
    return shlex.join(words)


def sluice() -> list[str]:
    """How this command line is called from here."""
    called = Path(sys.argv[0])
    if called.name != "sluice":
        return [python(), "-m", "gateway"]
    found = shutil.which("sluice")
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return ["sluice"]
    return [near(called)]


def python() -> str:
    """This Python, as short as it can be typed here."""
    executable = Path(sys.executable)
    if shutil.which("python") == str(executable):
        return "python"
    return near(executable)


def near(path: Path) -> str:
    """A path from the current directory, if it is below it."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
