"""Studies as pictures: which measures share a chart (`loadtests.report.scale` draws them)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from loadtests.report import scale
from loadtests.report.scale import Chart, Overload, OverloadPoint, Series
from loadtests.scale.study import (
    FAILED,
    GOODPUT,
    LATE,
    MEMORY,
    OFFERED,
    REFUSED,
    TAIL,
    Measure,
    Report,
    Study,
    slope_text,
)

_WAY: Final = re.compile(
    r",? (gRPC|HTTP binary|HTTP JSON|HTTP/1\.1|to one of them|spread over all"
    r"|/metrics read every second|/metrics not read)$"
)
"""What the measures of one chart differ in."""


def charts(study: Study) -> list[Chart]:
    """One chart a kind of measure: those that differ in the protocol only share one."""
    groups: dict[tuple[str, str], list[Measure]] = {}
    for measure in study.measures:
        if measure.points:
            groups.setdefault((_without_way(measure.name), measure.unit), []).append(measure)
    found = []
    for (name, unit), measures in groups.items():
        found.append(
            Chart(
                name=_file(f"{study.name}-{name}"),
                title=f"{name[0].upper()}{name[1:]}",
                x=study.size,
                y=f"{name} ({unit})",
                series=[_series(measure) for measure in measures],
                fit=not any(measure.rate for measure in measures),
            )
        )
    return found


def _without_way(name: str) -> str:
    """``p99, busy, gRPC`` is the same thing as ``p99, busy, HTTP/1.1``."""
    return _WAY.sub("", name)


def _series(measure: Measure) -> Series:
    spread = [
        (
            min(y for x, y in measure.points if x == size),
            max(y for x, y in measure.points if x == size),
        )
        for size, _ in measure.medians
    ]
    several = len(measure.points) > len(measure.medians)
    way = measure.name[len(_without_way(measure.name)) :].lstrip(", ")
    slopes = ", ".join(slope_text(each.cost) for each in measure.stretches)
    return Series(
        way or measure.name,
        measure.medians,
        spread if several else None,
        f"slope{' of the cost' if measure.rate else ''} {slopes}" if slopes else "",
    )


def _file(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def overload(study: Study) -> Overload:
    """One picture of goodput, latency, refusals and memory against the offered load."""
    by_name = {measure.name: dict(measure.points) for measure in study.measures}

    def value(name: str, at: float) -> float:
        return by_name[name].get(at, 0.0)

    points = [
        OverloadPoint(
            at,
            goodput,
            value(TAIL, at) * 1e3,
            value(REFUSED, at) / 100,
            (value(LATE, at) + value(FAILED, at)) / 100,
            value(MEMORY, at),
        )
        for at, goodput in sorted(by_name[GOODPUT].items())
    ]
    return Overload(study.title.removeprefix("Overload, "), study.capacity, points)


def write(report: Report, folder: Path) -> dict[str, list[str]]:
    """Draws every study into ``folder``; the files' names by study."""
    written: dict[str, list[str]] = {}
    for study in report.studies:
        if not study.measures:
            continue
        if study.size == OFFERED:
            drawn = {study.name: scale.overload(overload(study))}
        else:
            drawn = {chart.name: scale.picture(chart) for chart in charts(study)}
        for name, picture in drawn.items():
            (folder / f"{name}.svg").write_text(picture)
        written[study.name] = [f"{name}.svg" for name in drawn]
    return written
