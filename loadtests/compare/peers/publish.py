"""The page for the documentation: table, data and plots in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from loadtests.compare.peers.document import Facts, document, markdown
from loadtests.compare.peers.outcome import Outcome


def publish(facts: Facts, outcome: Outcome, folder: Path) -> list[Path]:
    """Writes ``README.md``, ``peers.json`` and the plots; returns the paths.

    Raises `BenchError` where what draws is not installed; the other two are written by then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "README.md", folder / "peers.json"
    found = document(facts, outcome)
    data.write_text(json.dumps(found, indent=1), encoding="utf-8")
    page.write_text(markdown(facts, outcome), encoding="utf-8")
    pictures = draw(data, folder)
    page.write_text(markdown(facts, outcome, [path.name for path in pictures]), encoding="utf-8")
    return [page, data, *pictures]


def draw(data: Path, folder: Path) -> list[Path]:
    """The plots of one comparison, as SVG."""
    from loadtests.report.compare import plots

    return plots(data, folder)
