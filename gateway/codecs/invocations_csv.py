"""CSV bodies: a header line with the names of the columns, then rows."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Final

from gateway.codecs.invocations_frame import Frame, unique
from gateway.errors import InvalidRequest, printable
from gateway.tensors import Buffer

NOT_THERE: Final = frozenset(
    ("", "NA", "N/A", "NaN", "nan", "-NaN", "-nan", "null", "NULL", "None", "n/a", "#N/A", "<NA>",
     "#NA", "#N/A N/A", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN")
)  # fmt: skip
"""Cells that are no number; what pandas takes for one that is missing."""


class Text(str):
    """A cell: text, of which the model's datatype says what it is."""

    __slots__ = ()


def read_csv(body: Buffer) -> Frame:
    """The table of text in a body, UTF-8, quoted as RFC 4180 has it. Raises `InvalidRequest`."""
    try:
        text = bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the CSV is not UTF-8: byte {error.start} cannot be read") from None
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    names: tuple[str, ...] | None = None
    rows: list[list[str]] = []
    try:
        for line in lines:
            if not line:
                continue
            if names is None:
                names = unique(tuple(line))
                continue
            if len(line) != len(names):
                raise InvalidRequest(
                    f"the CSV's line {lines.line_num} (row {len(rows)}) has {len(line)} values, "
                    f"but the header has {len(names)}"
                )
            rows.append(line)
    except csv.Error as error:
        raise InvalidRequest(
            f"the CSV cannot be read at line {lines.line_num}: {printable(error)}"
        ) from None
    if names is None:
        raise InvalidRequest("the CSV is empty; the first line must name the columns")
    return Frame(names, rows, text=True)
