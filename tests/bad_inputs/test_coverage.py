"""docs/bad-inputs.md and the tests of this folder name the same items."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "bad-inputs.md"
LINES = 14

_ROW = re.compile(r"\| BI-(\d\d)([a-z]+) \| (.+) \| (.+) \|")
_TEST = re.compile(r"^def test_bi(\d\d)([a-z]+)_", re.MULTILINE)


def items() -> dict[str, str]:
    """Item → the answer that the document promises."""
    found: dict[str, str] = {}
    for line in DOCUMENT.read_text().splitlines():
        if not line.startswith("| BI-"):
            continue
        row = _ROW.fullmatch(line)
        assert row is not None, f"not a row of three cells: {line}"
        item = f"BI-{row[1]}{row[2]}"
        assert item not in found, f"{item} is there twice"
        found[item] = row[4]
    return found


def covered() -> set[str]:
    """Items that a test is named after."""
    return {
        f"BI-{number}{letters}"
        for file in HERE.glob("test_bi*.py")
        for number, letters in _TEST.findall(file.read_text())
    }


def test_every_item_has_a_test_or_a_reason_for_having_none() -> None:
    named = covered()
    for item, answer in items().items():
        if answer.startswith("deferred: "):
            assert item not in named, f"{item} is deferred, and yet it has a test"
            assert len(answer) > 30, f"{item}: say why it is deferred"
        else:
            assert item in named, f"{item} has no test"


def test_every_test_is_of_an_item() -> None:
    assert not covered() - items().keys()


def test_no_line_is_left_out() -> None:
    numbers = {item[3:5] for item in items()}
    assert numbers == {f"{number:02}" for number in range(1, LINES + 1)}


def test_every_file_s_tests_are_named() -> None:
    for file in HERE.glob("test_bi*.py"):
        names = re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
        assert all(re.match(r"test_bi\d\d[a-z]+_", name) for name in names), file.name
