"""What comes out of ``sluice bench``: a table, a JSON document, an HTML report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli.exits import FAILED, USAGE, Failure

if TYPE_CHECKING:
    from gateway.cli.bench_options import Typed
    from loadtests.bench.differences import Differences
    from loadtests.bench.results import Result

STDOUT: Final = "-"
LEFT: Final = 2
"""Columns of the comparison that are words."""


# --- files


def check_outputs(typed: Typed) -> None:
    """That what is measured for minutes can be written afterwards. Raises `Failure`."""
    named: list[tuple[str, Path]] = []
    if typed.json_out not in ("", STDOUT):
        named.append(("--json", Path(typed.json_out)))
    if typed.html_out is not None:
        named.append(("--html", typed.html_out))
    if len(named) == 2 and named[0][1].absolute() == named[1][1].absolute():
        raise Failure("--json and --html name the same file; give two", USAGE)
    for name, path in named:
        folder = path.absolute().parent
        if path.is_dir():
            raise Failure(f"{name} {path} is a directory; give a file", USAGE)
        if not folder.is_dir():
            raise Failure(f"{name} {path}: there is no directory {folder.name}", USAGE)
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise Failure(f"{name} {path} cannot be written", USAGE)


def renderer(typed: Typed, module: str) -> Callable[..., str] | None:
    """``render`` of a report's module, where there is to be a report."""
    if typed.html_out is None:
        return None
    from loadtests.bench import hdr
    from loadtests.errors import BenchError

    try:
        # Said before minutes of measuring, not after.
        hdr.available()
        import_module("loadtests.report.draw").available()
        render: Callable[..., str] = import_module(module).render
    except BenchError as error:
        raise Failure(f"--html: {error}", USAGE) from None
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("loadtests"):
            raise
        raise Failure(
            f"--html needs the package {error.name}; type: pip install 'sluicegate[bench]'", USAGE
        ) from None
    return render


def mention_histograms(typed: Typed) -> None:
    """Says beforehand what the JSON document will lack."""
    from loadtests.bench import hdr

    if typed.json_out and hdr.missing():
        click.echo(
            "--json: without histograms, which need the package hdrhistogram; to have them, "
            f"type: {hdr.EXTRA}",
            err=True,
        )


def write(typed: Typed, result: Result, render: Callable[..., str] | None) -> None:
    """The documents of a measurement."""
    from loadtests.bench.results import dump

    if typed.json_out:
        put(typed.json_out, dump(result))
    if typed.html_out is not None and render is not None:
        put(str(typed.html_out), drawn(render, result).encode())


def write_differences(
    typed: Typed, a: Result, b: Result, found: Differences, render: Callable[..., str] | None
) -> None:
    """The documents of a comparison."""
    import msgspec

    from loadtests.bench.differences import tree

    if typed.json_out:
        put(typed.json_out, msgspec.json.format(msgspec.json.encode(tree(found)), indent=1))
    if typed.html_out is not None and render is not None:
        put(str(typed.html_out), drawn(render, a, b, found).encode())


def drawn(render: Callable[..., str], *what: Any) -> str:
    """A report. Raises `Failure` where it cannot be drawn."""
    from loadtests.errors import BenchError

    try:
        return render(*what)
    except BenchError as error:
        raise Failure(str(error)) from None


def put(name: str, document: bytes) -> None:
    """Writes a file at once, so that nobody reads half of one; ``-``: to standard output."""
    if name == STDOUT:
        click.echo(document)
        return
    path = Path(name).absolute()
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_bytes(document)
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                file.write(document)
                file.flush()
                os.chmod(file.name, 0o666 & ~umask())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise Failure(f"{name}: {(error.strerror or str(error)).lower()}", FAILED) from None


def umask() -> int:
    """What new files are not allowed; there is no way to ask without setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# --- a person


def show(result: Result) -> None:
    """The table of the levels and what is to be said beside it."""
    from gateway.cli.output import Column, clean, print_table
    from loadtests.bench.text import LEVELS, head, level_row, remarks

    click.echo(clean(head(result)))
    columns = [Column(name, right=index > 0) for index, name in enumerate(LEVELS)]
    print_table(columns, [level_row(point) for point in result.points])
    for line in remarks(result):
        click.echo(clean(line))


def show_differences(found: Differences, a: str, b: str) -> None:
    """The table of a comparison and what is to be said beside it."""
    from gateway.cli.output import Column, clean, percent, print_table
    from loadtests.bench.text import CHANGES, change_remarks, change_rows

    click.echo(clean(f"A {a}, B {b}, tolerance {percent(found.tolerance * 100)}"))
    last = len(CHANGES) - 1
    columns = [Column(name, right=LEFT <= index < last) for index, name in enumerate(CHANGES)]
    print_table(columns, change_rows(found))
    for line in change_remarks(found):
        click.echo(clean(line))
    click.echo("B is worse than A" if found.worse else "B is not worse than A")
