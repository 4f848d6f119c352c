"""Prints for a person (with colours on a terminal, plain elsewhere) or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

STYLES: Final = {"ready": "green", "ok": "green", "yes": "green", "failed": "red", "wrong": "red"}
"""Cells in colour; other cells are as they are."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    right: bool = False


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    click.echo(orjson.dumps(value, option=options).decode())


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], indent: int = 0) -> None:
    """A table; a column without any content is left out."""
    full = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    columns = [columns[i] for i in full]
    rows = [[clean(row[i]) for i in full] for row in rows]
    if sys.stdout.isatty():
        print_rich(columns, rows, indent)
    else:
        for line in plain_lines(columns, rows):
            click.echo(" " * indent + line)


def plain_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The table in columns of equal width, two spaces apart."""
    table = [[column.name for column in columns], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in table
    ]


def print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]], indent: int) -> None:
    """The table with colours, as wide as the terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(Text(column.name), justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    Console().print(Padding(table, (0, 0, 0, indent), expand=False))


def clean(text: str) -> str:
    """Without control characters: model names and causes come from elsewhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: float) -> str:
    """A number without needless digits."""
    return f"{value:.6g}"


def percent(share: float) -> str:
    return f"{share:.1f}".removesuffix(".0") + " %"


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
