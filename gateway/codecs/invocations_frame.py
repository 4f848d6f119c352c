"""Rows and columns, as MLflow's clients send DataFrames."""

from __future__ import annotations

from typing import Any, Final

from gateway.errors import InvalidRequest, printable

_SPLIT_KEYS: Final = frozenset(("columns", "data", "index"))


class Frame:
    """A table of plain values. `names` is `None` where the columns have none.

    It is made of rows of equal length, or of columns of equal length.
    """

    __slots__ = ("_columns", "_rows", "count", "names", "width")

    def __init__(
        self,
        names: tuple[str, ...] | None,
        *,
        rows: list[list[Any]] | None = None,
        columns: list[list[Any]] | None = None,
    ) -> None:
        self.names = names
        self._rows = rows
        self._columns = columns
        if rows is not None:
            self.count = len(rows)
            self.width = len(rows[0]) if rows else len(names or ())
        else:
            assert columns is not None
            self.count = len(columns[0]) if columns else 0
            self.width = len(columns)

    def rows(self) -> list[list[Any]]:
        """Every row's values, in the order of the columns."""
        if self._rows is None:
            assert self._columns is not None
            self._rows = [list(row) for row in zip(*self._columns, strict=True)]
        return self._rows

    def nth(self, place: int) -> list[Any]:
        """The values of a column, by its place."""
        if self._columns is not None:
            return self._columns[place]
        assert self._rows is not None
        return [row[place] for row in self._rows]

    def column(self, name: str) -> list[Any]:
        """The values of a column, by its name."""
        assert self.names is not None
        return self.nth(self.names.index(name))


def frame_of_split(data: object) -> Frame:
    """``{"columns": [...], "data": [[...], ...]}``; an ``index`` says nothing to a model.

    Raises `InvalidRequest`.
    """
    if type(data) is not dict:
        raise InvalidRequest("'dataframe_split' must be an object with 'columns' and 'data'")
    unknown = [name for name in data if name not in _SPLIT_KEYS]
    if unknown or type(data.get("data")) is not list:
        detail = f", not '{printable(unknown[0])}'" if unknown else ""
        raise InvalidRequest(
            "'dataframe_split' must have 'data', a list of rows, and may have 'columns' and "
            f"'index'{detail}"
        )
    rows = data["data"]
    names = _column_names(data.get("columns"))
    width = len(names) if names is not None else None
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
    index = data.get("index")
    if index is not None and (type(index) is not list or len(index) != len(rows)):
        raise InvalidRequest("'dataframe_split': 'index' must be a list with a value for each row")
    return Frame(names, rows=rows)


def _column_names(given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if type(given) is not list or any(type(name) not in (str, int) for name in given):
        raise InvalidRequest("'dataframe_split': 'columns' must be a list of names")
    return unique(tuple(str(name) for name in given))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they are. Raises `InvalidRequest` where one is there twice."""
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
    return Frame(tuple(names), columns=[[row.get(name) for row in data] for name in names])
