"""The page about the configuration says what the code says."""

from __future__ import annotations

from pathlib import Path

from gateway.config import describe, section_keys
from gateway.config_docs import page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "type: make docs"


def test_every_key_is_described() -> None:
    text = page()
    for key, field in section_keys().items():
        assert describe(field)[1], f"{key} has no description"
        assert f"| `{key}` |" in text
