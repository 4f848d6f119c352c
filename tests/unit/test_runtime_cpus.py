"""How many processors may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimes import cpus


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"": "max 100000"}, None),
        ({"a/b": "200000 100000"}, 2),
        ({"a/b": "150000 100000"}, 2),
        ({"a/b": "10000 100000"}, 1),
        ({"a": "300000 100000", "a/b": "max 100000"}, 3),
        ({"": "100000 100000", "a/b": "400000 100000"}, 1),
        ({"a/b": "nonsense"}, None),
        ({"a/b": "100000 0"}, None),
    ],
)
def test_the_tightest_quota_counts(
    tmp_path: Path, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/a/b\n")
    (tmp_path / "root/a/b").mkdir(parents=True)
    for folder, text in limits.items():
        (tmp_path / "root" / folder / "cpu.max").write_text(text + "\n")
    assert cpus.cgroup_quota(tmp_path / "own", tmp_path / "root") == expected


def test_without_cgroups(tmp_path: Path) -> None:
    assert cpus.cgroup_quota(tmp_path / "gone") is None
    (tmp_path / "own").write_text("4:cpu:/x\n")
    assert cpus.cgroup_quota(tmp_path / "own") is None


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert cpus._physical({0, 1, 2, 3}, tmp_path) == 2
    assert cpus._physical({0, 2}, tmp_path) == 1
    assert cpus._physical({0, 1}, tmp_path) == 2
    assert cpus._physical({0, 9}, tmp_path) == 2


def test_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(cpus, "_physical", len)
    for quota, expected in ((None, 3), (2, 2), (9, 3), (0, 1)):
        monkeypatch.setattr(cpus, "cgroup_quota", lambda quota=quota: quota)
        assert cpus.usable_cores() == expected
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpus.usable_cores() >= 1
