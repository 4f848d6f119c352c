"""The small pure parts of isolation: words, restarts, limits, errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway import errors
from gateway.errors import ModelLoadError, QueueFull, SluiceError, UnknownModel
from gateway.isolation import bootstrap
from gateway.isolation.limits import (
    THREADS,
    Group,
    Surroundings,
    executes_code,
    interpreter,
    own_group,
    some_cpus,
    surroundings,
    usable_cpus,
)
from gateway.isolation.messages import error_of, tell_error
from gateway.isolation.restarts import LONGEST_PAUSE, PEACE, Restarts
from gateway.isolation.words import LINE, LINES, Words, cause_of_death
from gateway.model_settings import IsolationSettings, ModelSettings


def test_words_are_kept_line_by_line() -> None:
    words = Words()
    assert words.hear(b"one\ntw") == ["one"]
    assert words.hear(b"o\n\n  \n") == ["two"]
    assert words.hear(b"three \xff\x1b[31m") == []
    assert words.end() == ["three \ufffd\x1b[31m"]
    assert words.last() == "one | two | three \ufffd?[31m"


def test_words_are_bounded() -> None:
    words = Words()
    for _ in range(1000):
        words.hear(b"x" * 1000)
    words.hear(b"\n" * 10 + b"y\n" * 1000)
    assert len(words.lines) == LINES
    assert all(len(line) <= LINE for line in words.lines)


def test_a_fatal_error_begins_with_its_beginning() -> None:
    words = Words()
    words.hear(b"loading\nbefore\nFatal Python error: Segmentation fault\n\nCurrent thread:\n")
    words.hear(b"".join(b'  File "%d"\n' % n for n in range(30)))
    assert words.last().startswith("before | Fatal Python error: Segmentation fault | Current")


@pytest.mark.parametrize(
    ("code", "killed_for", "said"),
    [
        (-11, "", "the model's process was ended by SIGSEGV"),
        (-9, "", "the model's process was ended by SIGKILL (from outside, or by the system"),
        (-9, "no sign of life", "no sign of life"),
        (3, "", "the model's process exited with code 3"),
        (-99, "", "ended by signal 99"),
    ],
)
def test_cause_of_death(code: int, killed_for: str, said: str) -> None:
    words = Words()
    assert said in cause_of_death(code, killed_for, words)
    words.hear(b"aside\nbye\n")
    assert cause_of_death(code, killed_for, words).endswith("; its last words: aside | bye")
    assert cause_of_death(bootstrap.REFUSED, "", words) == "bye"


def test_restarts() -> None:
    restarts = Restarts(2)
    restarts.crashed("a", 100.0)
    assert (restarts.exhausted, restarts.pause()) == (False, 0.0)
    restarts.crashed("b", 101.0)
    assert not restarts.exhausted
    assert restarts.pause() > 0
    restarts.crashed("c", 102.0)
    assert restarts.exhausted
    assert restarts.told(restarts.last) == "3 crashes in a row; the last: c"
    restarts.crashed("d", 102.0 + PEACE + 1)
    assert (restarts.exhausted, restarts.pause()) == (False, 0.0)
    for _ in range(100):
        restarts.crashed("e", 200.0)
    assert restarts.pause() == LONGEST_PAUSE
    never = Restarts(0)
    never.crashed("at once", 1.0)
    assert never.exhausted


def test_environment_of_a_child() -> None:
    ours = {"PATH": "p", "PYTHONPATH": "q", "OMP_NUM_THREADS": "7"}
    same = Surroundings("python", False, (("A", "b"),), 0, 0)
    assert same.environment(ours) == {**ours, "PYTHONUNBUFFERED": "1", "A": "b"}
    other = Surroundings("python", True, (("MKL_NUM_THREADS", "9"),), 0, 2)
    found = other.environment(ours)
    assert "PYTHONPATH" not in found
    assert {found[name] for name in THREADS} == {"2", "9"}
    assert found["MKL_NUM_THREADS"] == "9"


def test_cpus_are_spread() -> None:
    have = usable_cpus()
    assert some_cpus(len(have), 3) and sorted(some_cpus(len(have), 3)) == have
    assert {some_cpus(1, turn)[0] for turn in range(len(have))} == set(have)
    with pytest.raises(ModelLoadError, match="cpus is"):
        surroundings(IsolationSettings(cpus=len(have) + 1), Path())


def test_interpreter(tmp_path: Path) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    assert interpreter("env", tmp_path) == str(tmp_path / "env" / "bin" / "python")
    assert interpreter(sys.executable, tmp_path) == sys.executable
    for wrong in ("nothing", ".", "env/bin"):
        with pytest.raises(ModelLoadError, match="no virtual environment"):
            interpreter(wrong, tmp_path)


def test_settings_that_choose_code() -> None:
    def of(text: bytes) -> str:
        return executes_code(msgspec.json.decode(text, type=ModelSettings))

    assert of(b'{"isolation": "process"}') == ""
    assert of(b'{"isolation": {"memory_mb": 5}}') == ""
    assert of(b'{"isolation": {"python": "x"}}') == "isolation.python"
    assert of(b'{"isolation": {"env": {"LD_PRELOAD": "x"}}}') == "isolation.env"


def test_cgroup(tmp_path: Path) -> None:
    assert Group.make("c", 1, 1, root=tmp_path) is None
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    assert Group.make("c", 0, 2, root=tmp_path) is None
    group = Group.make("c", 4096, 2, root=tmp_path)
    assert group is not None
    group.add(17)
    files = {path.name: path.read_text() for path in (tmp_path / "c").iterdir()}
    assert files == {"memory.max": "4096", "memory.oom.group": "1", "cgroup.procs": "17"}
    (tmp_path / "own").write_text("1:cpu:/x\n0::/a/b\n")
    assert own_group(tmp_path / "own", tmp_path) is None
    (tmp_path / "cgroup.controllers").touch()
    assert own_group(tmp_path / "own", tmp_path) == tmp_path / "a/b"


def test_errors_cross_as_they_are() -> None:
    kinds = [
        k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, SluiceError)
    ]
    for kind in kinds:
        error: SluiceError = kind.__new__(kind)
        Exception.__init__(error, "the text")
        again = error_of(msgspec.msgpack.decode(msgspec.msgpack.encode(tell_error(error))))
        assert (type(again), str(again)) == (kind, "the text")
    assert error_of(tell_error(QueueFull("full", 2.5))).retry_after == 2.5  # type: ignore[attr-defined]
    assert "unknown model" in str(error_of(tell_error(UnknownModel("m"))))
    assert str(error_of(tell_error(SluiceError("\ud800")))) == "?"


def test_little_is_imported_in_a_child() -> None:
    """An environment of the model's own needs three packages, and the standard library."""
    code = (
        "import sys; import gateway.isolation.child; "
        "print(*{n.partition('.')[0] for n in sys.modules} - sys.stdlib_module_names)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    optional = {"typing_extensions"}  # msgspec takes it where it is there
    ours = {name for name in found if not name.startswith("_")}
    assert (
        ours <= {"gateway", "runtimes", "numpy", "msgspec", "ml_dtypes", "sitecustomize"} | optional
    )


ROOT = Path(__file__).parents[2]
