"""What can be a source, and whose code is trusted by naming it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.options import parse_settings
from gateway.config import Config, load_config
from gateway.errors import ConfigError, ModelLoadError, RegistryError
from gateway.registries.sources import open_registry
from gateway.trust import Trust, local_sources

NONE = ("", " ", "file://")


@pytest.mark.parametrize("text", ["", ",", " , ,"])
def test_an_empty_list_trusts_nothing(text: str, tmp_path: Path) -> None:
    by_flag, _ = load_config(None, parse_settings([f"trust.code={text}"]), {})
    by_environment, _ = load_config(None, {}, {"SLUICE_TRUST__CODE": text})
    file = tmp_path / "sluice.yaml"
    file.write_text("trust: {code: []}")
    by_file, _ = load_config(file, {}, {})
    unset, _ = load_config(None, {}, {})
    for config in (by_flag, by_environment, by_file):
        assert config.trust.code == ()
    assert unset.trust.code is None


def test_lists_lose_blanks_and_empty_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = load_config(None, {}, {"SLUICE_TRUST__CODE": " /a , /b,", "SLUICE_SOURCES": "x,"})
    assert config.trust.code == ("/a", "/b") and config.sources == ("x",)
    with pytest.raises(ModelLoadError, match="not trusted"):
        Trust(config.trust.code).check("model.py", tmp_path)


@pytest.mark.parametrize("source", NONE)
def test_nothing_is_no_source(source: str) -> None:
    with pytest.raises(ConfigError, match=r"trust\.code: .* names no directory"):
        Trust([source])
    with pytest.raises(RegistryError, match="names no directory"):
        open_registry(source, Config())
    assert local_sources([source, "models", "file:///m", "s3://b/m"]) == ("models", "file:///m")


@pytest.mark.parametrize("name", ["mine.py", "mine.pt2", "mine.onnx"])
def test_one_file_is_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "other.py").write_bytes(b"x")
    for source in (str(tmp_path / name), f"file://{tmp_path / name}"):
        (model,) = open_registry(source, Config()).scan()
        assert model == "mine"


@pytest.mark.parametrize("name", ["mine.pt", "mine.pth", "mine", "mine.txt"])
def test_a_file_that_does_not_say_all_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RegistryError) as caught:
        open_registry(str(tmp_path / name), Config())
    text = str(caught.value)
    assert ".onnx, .pt2, .py" in text and "model.yaml" in text and "\n" not in text
