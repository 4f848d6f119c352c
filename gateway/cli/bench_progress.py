"""How a benchmark goes, on standard error: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from loadtests.bench.plan import Load
    from loadtests.bench.results import Point, Tick

EVERY_S: Final = 5.0
"""Between two lines about one level, where there are no bars."""
LAST: Final = "last answers"
"""Said after the time of a level, while what is under way is waited for."""


class Lines:
    """`loadtests.bench.run.Watch` in plain lines."""

    def __init__(self) -> None:
        self._name = ""
        self._seconds = 0.0
        self._next = 0.0

    def begin(self, load: Load, what: str) -> None:
        self._name, self._seconds = load.name, load.seconds
        self._next = EVERY_S
        click.echo(f"{load.name}{f' ({what})' if what else ''}, {load.seconds:g} s", err=True)

    def tick(self, tick: Tick) -> None:
        from loadtests.bench.text import tick_line

        if tick.at_s < 0 or tick.at_s + tick.seconds < self._next:
            return
        self._next += EVERY_S
        at = tick.at_s + tick.seconds
        last = f"  {LAST}" if tick.at_s >= self._seconds else ""
        click.echo(f"{self._name}  {at:.0f} s{last}  {tick_line(tick)}", err=True)

    def end(self, point: Point) -> None:
        from loadtests.bench.text import point_line

        click.echo(f"{self._name}  done  {point_line(point)}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


class Bars:
    """`loadtests.bench.run.Watch` with a bar for each level, and its figures as they are now."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[at]:>9}"),
            TextColumn("{task.fields[now]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._seconds = 0.0

    def begin(self, load: Load, what: str) -> None:
        name = f"{load.name}  [dim]{what}[/dim]" if what else load.name
        self._seconds = load.seconds
        self._task = self._progress.add_task(name, total=None, at="", now="")

    def tick(self, tick: Tick) -> None:
        from loadtests.bench.text import tick_line

        if self._task is None:
            return
        now = tick_line(tick)
        if tick.at_s < 0:
            self._progress.update(self._task, at="warm-up", now=now)
            return
        done = min(tick.at_s + tick.seconds, self._seconds)
        at = LAST if tick.at_s >= self._seconds else f"{done:.0f}/{self._seconds:g} s"
        self._progress.update(self._task, total=self._seconds, completed=done, at=at, now=now)

    def end(self, point: Point) -> None:
        from loadtests.bench.text import point_line

        if self._task is None:
            return
        whole = self._seconds
        now = point_line(point)
        self._progress.update(
            self._task, total=whole, completed=whole, at=f"{point.seconds:.0f} s", now=now
        )
        self._task = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._task is not None:  # ended in the middle of a level
            self._progress.stop_task(self._task)
        self._progress.stop()


def watch() -> Bars | Lines:
    """Bars where somebody looks."""
    return Bars() if sys.stderr.isatty() else Lines()
