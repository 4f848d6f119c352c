"""One HTML file that needs nothing else: text, tables, charts, the scripts they use, the data.

Charts stand in the page as finished pictures, so that it can be read and printed without
JavaScript; with it they answer the mouse. Everything from outside goes through `escape` or
`embedded`. A content security policy forbids the page to ask anyone for anything.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Literal

from . import draw
from .look import Spec, dark_rules
from .words import clean

Tone = Literal["plain", "good", "bad", "warn", "lead"]

LONG = 60
"""Characters from which a cell of a table breaks into lines."""
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def escape(text: str) -> str:
    """Text for an element or an attribute."""
    return html.escape(clean(text), quote=True)


def embedded(value: object) -> str:
    """``value`` as JSON for a script element: no ``<`` can end it."""
    return _harmless(
        json.dumps(draw.plain(value), ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    )


def _harmless(document: str) -> str:
    for mark in "<>&\u2028\u2029":
        document = document.replace(mark, f"\\u{ord(mark):04x}")
    return document


@dataclass(frozen=True)
class Card:
    """A headline figure: what it is, the value, a line below."""

    name: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Figure:
    """A chart, its headline, and how to read it. ``title``: what is shown, with units."""

    title: str
    spec: Spec
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of words. Columns named in ``numbers`` stand to the right; ``tones`` colours cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    tones: dict[tuple[int, int], Tone] = field(default_factory=dict)
    """(row, column) → its tone."""
    strong: frozenset[int] = frozenset()
    """Rows that are set apart."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Banner:
    """Something that must not be overlooked."""

    title: str
    lines: Sequence[str]
    tone: Tone = "warn"


@dataclass(frozen=True)
class Facts:
    """Names and values, one a line; values may be long."""

    pairs: Sequence[tuple[str, str]]
    code: bool = False


@dataclass(frozen=True)
class Cards:
    """Headline figures beside each other."""

    cards: Sequence[Card]


Block = Cards | Figure | Table | Text | Banner | Facts


@dataclass(frozen=True)
class Section:
    """A headline and what stands below it."""

    title: str
    blocks: Sequence[Block]
    aside: bool = False
    """Beside the next one that is aside too, where there is room."""


def render(
    title: str,
    kicker: str,
    subtitle: Sequence[str],
    sections: Sequence[Section],
    data: dict[str, str] | None = None,
) -> str:
    """The page. ``data``: file name → JSON document, to be downloaded from the page."""
    numbers = count(1)
    charts: dict[str, Spec] = {}
    body = "".join(_section(section, numbers, charts) for section in sections)
    resources = files("loadtests.report")
    style = (resources / "page.css").read_text("utf-8")
    script = (resources / "page.js").read_text("utf-8")
    dark = f"@media screen and (prefers-color-scheme:dark){{{dark_rules('.chart ')}}}"
    documents = "".join(
        f'<script type="application/json" class="document" data-name="{escape(name)}">'
        f"{_harmless(document)}</script>"
        for name, document in (data or {}).items()
    )
    buttons = "".join(
        f'<button type="button" class="download" data-name="{escape(name)}">{escape(name)}</button>'
        for name in data or {}
    )
    code = f"<script>{draw.javascript()}</script><script>{script}</script>" if charts else ""
    if not charts and data:
        code = f"<script>{script}</script>"
    lines = "".join(f"<li>{escape(line)}</li>" for line in subtitle if line)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · {escape(kicker)}</title>"
        f"<style>{style}{dark}</style></head><body>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<ul class="about">{lines}</ul></header>\n<main>{body}</main>\n'
        f'<footer><div class="downloads">{buttons}</div>'
        "<p>Made by Sluicegate. This file is complete: it asks no server for anything.</p>"
        "</footer>\n"
        f'<script type="application/json" id="charts">{embedded(charts)}</script>{documents}\n'
        f"{code}</body></html>\n"
    )


def _section(section: Section, numbers: count[int], charts: dict[str, Spec]) -> str:
    blocks = "".join(_block(block, numbers, charts) for block in section.blocks)
    if not blocks:
        return ""
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    return f'<section class="{"aside" if section.aside else "wide"}">{heading}{blocks}</section>\n'


def _block(block: Block, numbers: count[int], charts: dict[str, Spec]) -> str:
    match block:
        case Cards():
            return f'<div class="cards">{"".join(map(_card, block.cards))}</div>'
        case Figure():
            return _figure(block, f"chart{next(numbers)}", charts)
        case Table():
            return _table(block)
        case Text():
            return f'<p class="{block.tone}">{escape(block.text)}</p>'
        case Banner():
            lines = "".join(f"<p>{escape(line)}</p>" for line in block.lines)
            return (
                f'<div class="banner {block.tone}" role="alert">'
                f"<strong>{escape(block.title)}</strong>{lines}</div>"
            )
        case Facts():
            element = "code" if block.code else "span"
            pairs = "".join(
                f"<dt>{escape(name)}</dt><dd><{element}>{escape(value)}</{element}></dd>"
                for name, value in block.pairs
            )
            return f"<dl>{pairs}</dl>" if pairs else ""


def _card(card: Card) -> str:
    return (
        f'<div class="card {card.tone}"><span class="name">{escape(card.name)}</span>'
        f'<span class="value">{escape(card.value)}</span>'
        f'<span class="detail">{escape(card.detail)}</span></div>'
    )


def _figure(figure: Figure, name: str, charts: dict[str, Spec]) -> str:
    charts[name] = figure.spec
    caption = f"<p>{escape(figure.caption)}</p>" if figure.caption else ""
    return (
        f"<figure><figcaption><h3>{escape(figure.title)}</h3>{caption}</figcaption>"
        f'<div class="chart" id="{name}" role="img" aria-label="{escape(figure.title)}">'
        f"{draw.svg(figure.spec)}</div></figure>"
    )


def _table(table: Table) -> str:
    def side(column: int) -> str:
        return ' class="number"' if column in table.numbers else ""

    def cell(row: int, column: int, text: str) -> str:
        kinds = ["number"] if column in table.numbers else []
        kinds += ["long"] if len(text) > LONG else []
        kinds += [tone] if (tone := table.tones.get((row, column))) else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<td{kind}>{escape(text)}</td>"

    head = "".join(f"<th{side(i)}>{escape(name)}</th>" for i, name in enumerate(table.columns))
    rows = "".join(
        f"<tr{' class=strong' if i in table.strong else ''}>"
        + "".join(cell(i, j, text) for j, text in enumerate(row))
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    return (
        '<div class="scroll"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
