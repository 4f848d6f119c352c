"""The command: ``python -m loadtests.scale [STUDY ...]``."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from loadtests.commands import add_sluice_option, command
from loadtests.compare import load, machine
from loadtests.errors import BenchError
from loadtests.report import draw
from loadtests.scale import drawing, text
from loadtests.scale.drive import Bench
from loadtests.scale.study import Report, Study

STUDIES: Final = ("models", "connections", "payload", "batch", "versions", "metrics")
OVERLOAD: Final = "overload"
DEFAULT: Final = Path("docs/scale")
UNDECIDED: Final = 3
"""Exit code: nothing bad was found, but not everything could be told."""
PICTURE: Final = re.compile(r"!\[[^\]]*\]\(([a-z0-9-]+\.svg)\)")
"""In a page of ours."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale",
        description="Measures what size costs. Exit code 0: nothing is worse than linear and every "
        "bound is met; 1: something is worse; 2: it could not run; 3: nothing was found, but "
        "something could not be decided or measured (usual with --quick).",
    )
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        help=f"of {', '.join(STUDIES)} (default: all of these, 10 minutes at most on a quiet "
        f"machine), or {OVERLOAD} (5 minutes at most)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke run of a few small sizes: up to 20 s a study; decides little",
    )
    parser.add_argument(
        "--publish",
        nargs="?",
        type=Path,
        const=DEFAULT,
        metavar="DIR",
        help=f"write JSON, Markdown and pictures there ({DEFAULT} without DIR): of all studies, or "
        f"of {OVERLOAD}, never of a part of them or a --quick run",
    )
    add_sluice_option(parser)
    return parser


def chosen(words: Sequence[str]) -> list[str]:
    """The studies to run, in the order of the list. Raises `BenchError` for an unknown one."""
    known = (*STUDIES, OVERLOAD)
    for word in words:
        if word not in known:
            raise BenchError(f"there is no study {word!r}; there are {', '.join(known)}")
    return [name for name in known if name in words] if words else list(STUDIES)


def run(names: Sequence[str], bench: Bench) -> list[Study]:
    """Every study, one after the other, each within its time."""
    found: list[Study] = []
    for name in names:
        module = importlib.import_module(f"loadtests.scale.{name}")
        began = time.monotonic()
        bench.begin(module.BUDGET_S)
        studies: list[Study] = module.measure(bench)
        for study in studies:
            study.seconds = (time.monotonic() - began) / len(studies)
        found += studies
    return found


def stem_of(names: Sequence[str], *, quick: bool) -> str:
    """What the files of a published run are called. Raises `BenchError` for a run that would
    replace the results of a larger one."""
    if quick:
        raise BenchError("--quick is a smoke run and is not published; leave out one of the two")
    if list(names) == [OVERLOAD]:
        return OVERLOAD
    if list(names) != list(STUDIES):
        raise BenchError(
            f"{', '.join(names)}: only all studies together are published (name none of them), "
            f"or {OVERLOAD} alone"
        )
    return "scale"


def clear(folder: Path, stem: str) -> None:
    """Removes the pictures that the page published before shows."""
    with suppress(FileNotFoundError):
        for name in PICTURE.findall((folder / f"{stem}.md").read_text()):
            (folder / name).unlink(missing_ok=True)


def publish(report: Report, folder: Path, stem: str) -> None:
    """``STEM.json``, ``STEM.md`` and one SVG a chart, in place of those that were there."""
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder, stem)
    pictures = drawing.write(report, folder)
    document = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (folder / f"{stem}.json").write_bytes(document + b"\n")
    (folder / f"{stem}.md").write_text(text.markdown(report, pictures))
    print(f"written: {folder / stem}.md, {stem}.json, {sum(map(len, pictures.values()))} pictures")


@command("scale")
def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes what is to be published."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = arguments().parse_args(words)
    names = chosen(args.studies)
    stem = ""
    if args.publish is not None:
        stem = stem_of(names, quick=args.quick)
        draw.available()
    facts, versions = machine.describe(), machine.versions()
    load.version()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="sluicegate-scale-") as folder:
        bench = Bench(args.sluice, Path(folder), args.quick, say=say)
        studies = run(names, bench)
    typed = shlex.join(["python", "-m", "loadtests.scale", *words])
    report = Report(started, typed, facts, versions, studies)
    print(text.markdown(report))
    if args.publish is not None:
        publish(report, args.publish, stem)
    for line in report.bad:
        print(line, file=sys.stderr)
    for line in report.undecided:
        print(f"not decided: {line}", file=sys.stderr)
    return 1 if report.bad else UNDECIDED if report.undecided else 0


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
