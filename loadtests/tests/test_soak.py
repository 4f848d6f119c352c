"""The soak: what it notices, and a short one of a real gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.compare.processes import ROOT
from loadtests.report.soak import Sample, Verdict
from loadtests.soak import verdicts
from loadtests.soak.ledger import End, Ledger

LEVEL = Sample(
    at_s=0, seconds=1, ok=1, memory_mib=100.0, descriptors=40, threads=20, processes=2
)  # fmt: skip


def samples(**growth: float) -> list[Sample]:
    """A hundred, some of whose fields rise by so much a sample."""
    return [
        replace(
            LEVEL, at_s=i, **{name: getattr(LEVEL, name) + i * by for name, by in growth.items()}
        )
        for i in range(100)
    ]


def failed(found: list[Verdict]) -> list[str]:
    """The names of those that did not hold."""
    return [each.name for each in found if not each.passed]


def test_what_stays_as_it_is_has_not_grown() -> None:
    ledger = Ledger()
    ledger.ended("a", End.OK, "", 0.01, 1)
    assert failed(verdicts.all_of(ledger, samples(), LEVEL, LEVEL)) == []


@pytest.mark.parametrize(
    ("field", "by", "name"),
    [
        ("memory_mib", 0.2, "memory does not grow"),
        ("descriptors", 1, "file descriptors do not grow"),
        ("threads", 0.5, "threads do not grow"),
        ("processes", 0.2, "processes do not grow"),
    ],
)
def test_growth_is_seen(field: str, by: float, name: str) -> None:
    ledger = Ledger()
    ledger.ended("a", End.OK, "", 0.01, 1)
    assert failed(verdicts.all_of(ledger, samples(**{field: by}), LEVEL, LEVEL)) == [name]


def test_a_peak_in_the_middle_is_no_growth() -> None:
    found = samples()
    found[50:70] = [replace(each, memory_mib=300.0) for each in found[50:70]]
    assert verdicts.memory(found).passed


@pytest.mark.parametrize("end", [End.LOST, End.WRONG, End.FAILED])
def test_one_bad_end_among_many_is_enough(end: End) -> None:
    ledger = Ledger()
    for _ in range(1000):
        ledger.ended("a", End.OK, "", 0.01, 1)
    ledger.ended("a", end, "why", 0.01, 2)
    assert len(failed(verdicts.requests(ledger))) == 1
    assert "why" in ledger.problems[0]


def test_what_is_held_after_the_load_is_seen() -> None:
    ledger = Ledger()
    ledger.ended("a", End.OK, "", 0.01, 1)
    after = replace(LEVEL, descriptors=90)
    assert failed(verdicts.all_of(ledger, samples(), LEVEL, after)) == [
        "file descriptors after the load as before it"
    ]


def test_a_short_soak_of_a_real_gateway(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.soak", "--minutes", "0.08", "--rest", "1"]
    said = subprocess.run(
        [*command, "--pace", "12", "--load", "0.3", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert said.returncode in (0, 1), said.stderr
    written = json.loads((tmp_path / "soak.json").read_text())
    held = {each["name"]: each["passed"] for each in written["verdicts"]}
    assert held["no lost request"], said.stdout
    assert held["no wrong answer"], said.stdout
    assert held["no error without a reason"], said.stdout
    assert held["something was answered"], said.stdout
    assert written["events"]
