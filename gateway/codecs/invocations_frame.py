"""Rows and columns, as MLflow's clients send DataFrames."""

from __future__ import annotations

from typing import Any, Final

from gateway.codecs.invocations_plain import all_lists
from gateway.errors import InvalidRequest, printable

_SPLIT_KEYS: Final = frozenset(("columns", "data", "index"))
_NAMES: Final = frozenset((str, int))


class Frame:
    """A table of plain values. `names` is `None` where the columns have none.

    Its rows have equal length. With `text` the values are cells of a CSV, whatever they mean.
    """

    __slots__ = ("count", "names", "rows", "text", "width")

    def __init__(
        self, names: tuple[str, ...] | None, rows: list[list[Any]], *, text: bool = False
    ) -> None:
        self.names = names
        self.rows = rows
        """Every row's values, in the order of the columns."""
        self.text = text
        self.count = len(rows)
        self.width = len(rows[0]) if rows else len(names or ())

    def nth(self, place: int) -> list[Any]:
        """The values of a column, by its place."""
        return [row[place] for row in self.rows]


def frame_of_split(data: object) -> Frame:
    """``{"columns": [...], "data": [[...], ...]}``; an ``index`` says nothing to a model.

    Raises `InvalidRequest`.
    """
    if type(data) is not dict:
        raise InvalidRequest("'dataframe_split' must be an object with 'columns' and 'data'")
    if not data.keys() <= _SPLIT_KEYS or type(data.get("data")) is not list:
        unknown = [name for name in data if name not in _SPLIT_KEYS]
        detail = f", not '{printable(unknown[0])}'" if unknown else ""
        raise InvalidRequest(
            "'dataframe_split' must have 'data', a list of rows, and may have 'columns' and "
            f"'index'{detail}"
        )
    rows = data["data"]
    names = _column_names(data.get("columns"))
    width = len(names) if names is not None else None
    if width is None or not all_lists(rows, width):
        _check_rows(rows, width)
    index = data.get("index")
    if index is not None and (type(index) is not list or len(index) != len(rows)):
        raise InvalidRequest("'dataframe_split': 'index' must be a list with a value for each row")
    return Frame(names, rows)


def _check_rows(rows: list[Any], width: int | None) -> None:
    """Makes lists of plain values where they are a column. Raises `InvalidRequest` unless all
    rows are lists of that length (or, if `None`, of the length of the first one)."""
    for place, row in enumerate(rows):
        if type(row) is not list:
            if width in (None, 1):  # a list of plain values is one column, as in pandas
                rows[place] = row = [row]
            else:
                raise InvalidRequest(f"'dataframe_split': row {place} of 'data' is no list")
        if width is None:
            width = len(row)
        if len(row) != width:
            raise InvalidRequest(
                f"'dataframe_split': row {place} has {len(row)} values, but there are {width} "
                "columns"
            )


def _column_names(given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if type(given) is not list or not set(map(type, given)) <= _NAMES:
        raise InvalidRequest("'dataframe_split': 'columns' must be a list of names")
    return unique(tuple(map(str, given)))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they are. Raises `InvalidRequest` where one is there twice."""
    if len(set(names)) == len(names):
        return names
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"column '{printable(name)}' is there twice; send it once")
        seen.add(name)
    return names


def frame_of_records(what: str, data: object) -> Frame:
    """``[{"a": 1}, ...]``; what a row does not have is null in it. Raises `InvalidRequest`."""
    if type(data) is not list or not data:
        raise InvalidRequest(f"'{what}' must be a list with at least one row, such as {{'a': 1}}")
    # Most rows have the keys of the first one.
    names = dict.fromkeys(data[0]) if type(data[0]) is dict else {}
    known = names.keys()
    for place, row in enumerate(data):
        if type(row) is not dict:
            raise InvalidRequest(
                f"'{what}': row {place} is no object with a value for each column, unlike row 0"
                if place
                else f"'{what}' must be a list of objects with a value for each column"
            )
        if row.keys() != known:
            names.update(dict.fromkeys(row))
    # Rows without any column are none.
    return Frame(tuple(names), [[*map(row.get, names)] for row in data] if names else [])
