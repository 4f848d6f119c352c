"""``traffic.yaml``: read, written in one step, and what its words mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidModelSettings, RegistryError
from gateway.registries.traffic import (
    TRAFFIC_YAML,
    StickyKey,
    Traffic,
    parse_traffic,
    read_traffic,
    write_traffic,
)

VERSIONS = st.integers(1, 30).map(str)
WEIGHTS = st.dictionaries(VERSIONS, st.one_of(st.integers(0, 100), st.floats(0, 1)), max_size=4)
WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
TRAFFIC = st.builds(
    Traffic,
    weights=WEIGHTS.filter(lambda w: not w or sum(w.values()) > 0),
    stable=st.none() | VERSIONS,
    sticky=st.none() | st.builds(StickyKey, header=st.none() | WORDS, parameter=st.none() | WORDS),
    labels=st.dictionaries(WORDS, VERSIONS, max_size=3),
)


@given(traffic=TRAFFIC)
def test_what_is_written_is_read_again(
    traffic: Traffic, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    write_traffic(folder, traffic)
    assert read_traffic(folder) == traffic
    assert [path.name for path in folder.iterdir()] == [TRAFFIC_YAML]


def test_people_can_read_it(tmp_path: Path) -> None:
    write_traffic(tmp_path, Traffic(weights={"1": 90.0, "2": 9.5}, stable="1"))
    assert (tmp_path / TRAFFIC_YAML).read_text().splitlines()[1:] == [
        "weights:", "  '1': 90", "  '2': 9.5", "stable: '1'",
    ]  # fmt: skip
    assert (tmp_path / TRAFFIC_YAML).stat().st_mode & 0o777 == 0o644


def test_people_may_write_numbers(tmp_path: Path) -> None:
    (tmp_path / TRAFFIC_YAML).write_text("weights: {1: 90, 2: 10}\nstable: 1\nlabels: {blue: 2}\n")
    traffic = read_traffic(tmp_path)
    assert traffic == Traffic(weights={"1": 90, "2": 10}, stable="1", labels={"blue": "2"})
    assert traffic.named() == {"1", "2"}


def test_without_a_document_there_is_no_split(tmp_path: Path) -> None:
    assert read_traffic(tmp_path) == Traffic()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: [1, 2]", "weights"),
        ("weights: {1: -1}", ">= 0"),
        ("weights: {1: 0, 2: 0}", "add up to 0"),
        ("weights: {1: .inf}", "from 0 to 1e9"),
        ("weights: {1: .nan}", "from 0 to 1e9|add up to 0|>= 0"),
        ("weights: {1: a}", "float"),
        ("weight: {1: 90}", "unknown key 'weight'; did you mean 'weights'"),
        ("sticky: {headers: x}", "sticky.*headers"),
        ("just words", "must hold keys"),
        ("a: [", "not YAML"),
        ("weights: {1: 90", "not YAML"),
    ],
)
def test_what_is_wrong_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / TRAFFIC_YAML).write_text(text)
    with pytest.raises(InvalidModelSettings, match=message):
        read_traffic(tmp_path)


def test_an_empty_document_is_one_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / TRAFFIC_YAML).write_bytes(b"")
    with pytest.raises(InvalidModelSettings, match="is empty"):
        read_traffic(tmp_path)


@pytest.mark.parametrize(
    ("weights", "stable", "canary"),
    [
        ({}, None, None),
        ({"1": 90, "2": 10}, "1", "2"),
        ({"1": 10, "2": 90}, "2", "1"),
        ({"9": 50, "10": 50}, "10", "9"),
        ({"1": 100}, "1", None),
        ({"1": 80, "2": 15, "3": 5}, "1", "3"),
        ({"1": 80, "2": 0}, "1", None),
    ],
)
def test_stable_is_the_heaviest_and_canary_the_lightest(
    weights: dict[str, float], stable: str | None, canary: str | None
) -> None:
    traffic = Traffic(weights=weights)
    assert (traffic.stable_version(), traffic.canary_version()) == (stable, canary)


def test_a_folder_that_cannot_be_written_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_traffic(tmp_path, Traffic(weights={"1": 1}))

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("gateway.registries.traffic.tempfile.mkstemp", refused)
        with pytest.raises(RegistryError, match="Read-only file system; make the directory writ"):
            write_traffic(tmp_path, Traffic(weights={"2": 1}))
    with monkeypatch.context() as patch:
        patch.setattr("gateway.registries.traffic.os.replace", refused)
        with pytest.raises(RegistryError, match="Read-only file system"):
            write_traffic(tmp_path, Traffic(weights={"2": 1}))
    assert read_traffic(tmp_path) == Traffic(weights={"1": 1})
    assert [path.name for path in tmp_path.iterdir()] == [TRAFFIC_YAML]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RegistryError, match="Permission denied"):
            write_traffic(tmp_path, Traffic(weights={"2": 1}))
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="No such file"):
        write_traffic(tmp_path / "m", Traffic())


WRITER = """
import sys
from pathlib import Path
from gateway.registries.traffic import Traffic, write_traffic
folder = Path(sys.argv[1])
number = 0
print("ready", flush=True)
while True:
    number = number % 100 + 1
    labels = {f"label-{n}": str(number) for n in range(50)}
    write_traffic(folder, Traffic(weights={str(number): 100}, stable=str(number), labels=labels))
"""


def test_killed_at_any_moment_it_leaves_the_old_document_or_the_new_one(tmp_path: Path) -> None:
    write_traffic(tmp_path, Traffic(weights={"1": 1}, stable="1"))
    for delay in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert writer.stdout is not None
        with writer.stdout:
            writer.stdout.readline()
            time.sleep(delay)
            for _ in range(50):  # readers see whole documents all the time
                traffic = read_traffic(tmp_path)
                assert traffic.weights.keys() == {traffic.stable}
                assert set(traffic.labels.values()) <= {traffic.stable}
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        traffic = read_traffic(tmp_path)
        assert traffic.weights.keys() == {traffic.stable}
        assert set(traffic.labels.values()) <= {traffic.stable}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)
KEYS = st.sampled_from(["weights", "stable", "sticky", "labels", "x"])


@given(tree=st.dictionaries(KEYS, VALUES))
def test_any_document_is_taken_or_refused(tree: dict[str, Any]) -> None:
    try:
        traffic = parse_traffic(tree, "somewhere")
    except InvalidModelSettings as error:
        assert str(error).startswith("somewhere: ")
    else:
        assert all(weight >= 0 for weight in traffic.weights.values())
