"""An inference answer in words: short tensors whole, long ones shortened, classes ranked."""

from __future__ import annotations

import math
from typing import Any, Final

from gateway.cli.output import clean, number

ROWS: Final = 4
VALUES: Final = 8
CLASSES: Final = 3


def answer_lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and content of each output of an answer."""
    return [
        (str(output.get("name", "")), output_text(output)) for output in answer.get("outputs", [])
    ]


def output_text(output: dict[str, Any]) -> str:
    shape = [int(size) for size in output.get("shape", [])]
    data = flat(output.get("data", []))
    if output.get("name") == "probabilities" and len(shape) in (1, 2) and shape[-1] > 1:
        return ranked(data, shape[-1])
    if len(shape) == 2 and shape[0] > 1 and shape[0] * shape[1] <= ROWS * VALUES:
        rows = [data[i : i + shape[1]] for i in range(0, len(data), shape[1])]
        return "; ".join(values(row) for row in rows)
    text = values(data)
    if len(data) > VALUES:
        text += f"  ({output.get('datatype', '')} {shape})"
    return text


def ranked(data: list[Any], classes: int) -> str:
    """The most probable classes of each row: ``3: 97.2 %, 8: 1.1 %``."""
    rows = [data[i : i + classes] for i in range(0, len(data), classes)]
    texts = []
    for row in rows[:ROWS]:
        best = sorted(range(len(row)), key=lambda i: -row[i])[:CLASSES]
        texts.append(", ".join(f"{i}: {row[i] * 100:.1f} %" for i in best))
    return "; ".join(texts) + (f"; … {len(rows) - ROWS} more" if len(rows) > ROWS else "")


def values(data: list[Any]) -> str:
    shown = [clean(one(value)) for value in data[:VALUES]]
    return ", ".join(shown) + (", …" if len(data) > VALUES else "")


def one(value: Any) -> str:
    if isinstance(value, float):
        return number(value) if math.isfinite(value) else str(value)
    return str(value)


def flat(data: Any) -> list[Any]:
    """Nested lists as one."""
    if not isinstance(data, list):
        return [data]
    if not any(isinstance(each, list) for each in data):
        return data
    return [value for each in data for value in flat(each)]
