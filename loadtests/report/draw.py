"""Vega-Lite charts as SVG, by vl-convert: no browser, no network, the same picture every time."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from types import ModuleType
from typing import Any

from loadtests.errors import BenchError

from .look import Spec, dark_rules
from .words import clean

HOVER = "hover"
"""Layers of this name answer the mouse; pictures do without them."""
SPANS = "spans"
"""Layers of this name need a wide chart."""
_VERSION = "6.1"
"""Of Vega-Lite; another one may draw differently."""


@cache
def _converter() -> ModuleType:
    try:
        import vl_convert
    except ImportError as error:
        raise BenchError(
            f"reports are drawn by vl-convert, which is missing ({error}); "
            "type: pip install 'sluicegate[bench]'"
        ) from None
    return vl_convert


def available() -> None:
    """Raises `BenchError` that names the extra where nothing can be drawn."""
    _converter()


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed in one script; it sets ``window.vegaEmbed``."""
    code = str(_converter().javascript_bundle(vl_version=_VERSION))
    # Neither the end of a script nor the beginning of a comment may stand inside one.
    return re.sub(r"</(?=script)", r"<\\/", code, flags=re.IGNORECASE).replace("<!--", "<\\!--")


def still(spec: Spec) -> Spec:
    """``spec`` without what only a mouse needs."""
    return _without_hover(spec)  # type: ignore[no-any-return]


def _without_hover(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_hover(value) for key, value in part.items() if key != "tooltip"}
    if isinstance(part, list):
        kept = [p for p in part if not (isinstance(p, dict) and p.get("name") == HOVER)]
        return [_without_hover(value) for value in kept]
    return part


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: what is not finite is ``null``."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def svg(spec: Spec) -> str:
    """A chart as an SVG element, in the colours of a light page."""
    # No address is allowed: a chart holds its own data.
    drawn = _converter().vegalite_to_svg(
        json.dumps(plain(still(spec))), vl_version=_VERSION, allowed_base_urls=[]
    )
    return str(drawn)


def picture(spec: Spec, description: str) -> str:
    """A chart as an SVG file that stands alone: light or dark as its reader's system is."""
    drawn = svg(spec)
    start = drawn.index(">") + 1
    rules = dark_rules().replace("&", "&amp;")
    style = (
        f"<title>{_xml(description)}</title><style>@media (prefers-color-scheme: dark){{"
        f"{rules}"
        "}</style>"
    )
    return f"{drawn[:start]}{style}{drawn[start:]}\n"


def _xml(text: str) -> str:
    return clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
