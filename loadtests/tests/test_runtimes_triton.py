"""The figures of Triton behind the gateway, from runs; and what the gateway is given to serve."""

from __future__ import annotations

from pathlib import Path

from loadtests.commands import show
from loadtests.compare.cells import Cell
from loadtests.compare.load import Result
from loadtests.compare.measure import Run
from loadtests.runtimes import triton


def runs(cell: Cell, side: str, *rates: float, problem: str = "") -> list[Run]:
    found = []
    for number, rate in enumerate(rates, 1):
        result = Result(100, per_second=rate, mean_us=1e6 / rate)
        problems = [problem] if problem and number == 1 else []
        found.append(Run(cell.name, side, number, result, rate, problems=problems))
    return found


def test_figures_are_medians_of_the_rounds() -> None:
    found = triton.figures(
        [
            *runs(triton.BUSY, triton.DIRECT, 100, 200, 100),
            *runs(triton.BUSY, triton.PASSED_ON, 40, 20, 50),
            *runs(triton.BUSY, triton.BATCHED, 50, 100, 40),
            *runs(triton.ALONE, triton.DIRECT, 2000, 2000, 2000),
            *runs(triton.ALONE, triton.PASSED_ON, 1000, 1250, 500),
        ]
    )
    assert [figure.value for figure in found] == [0.4, 0.5, 500.0]
    assert [figure.verdict for figure in found] == ["PASS", "MISS", "PASS"]
    assert "0.10 to 0.50" in show(found)


def test_a_run_that_does_not_count_leaves_no_figure() -> None:
    found = triton.figures(
        [
            *runs(triton.BUSY, triton.DIRECT, 100, 100),
            *runs(triton.BUSY, triton.PASSED_ON, 40, 40, problem="5 failed"),
            *runs(triton.BUSY, triton.BATCHED, 70),
        ]
    )
    assert [figure.value for figure in found] == [None, None, None]
    assert {figure.verdict for figure in found} == {"not measured"}


def test_both_models_are_one_on_the_server(tmp_path: Path) -> None:
    assert triton.write_directory(tmp_path, "127.0.0.1:1") == ["add", "add_batched"]
    text = (tmp_path / "add_batched" / "1" / "remote.yaml").read_text()
    assert "batching: gateway" in text
    assert f"model: {triton.THERE}" in text
