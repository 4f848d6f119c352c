"""Studies as pictures: which measures share a chart (`loadtests.report.scale` draws them)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from loadtests.errors import BenchError
from loadtests.report.scale import Chart, Series
from loadtests.scale.study import Measure, Report, Study


def available() -> None:
    """Raises `BenchError` where pictures cannot be drawn."""
    if importlib.util.find_spec("vl_convert") is None:
        raise BenchError("pictures need vl-convert: pip install 'sluicegate[bench]'")


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
            )
        )
    return found


def _without_way(name: str) -> str:
    """``p99, busy, gRPC`` is the same thing as ``p99, busy, HTTP/1.1``."""
    return re.sub(r",? (gRPC|HTTP binary|HTTP JSON|HTTP/1\.1)$", "", name)


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
    return Series(way or measure.name, measure.medians, spread if several else None)


def _file(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(report: Report, folder: Path) -> dict[str, list[str]]:
    """Draws every study into ``folder``; the files' names by study."""
    return {}
