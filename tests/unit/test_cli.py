"""Pieces of the command line that need no gateway."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from gateway.cli.answer import answer_lines
from gateway.cli.client import base_url
from gateway.cli.docs import page
from gateway.cli.examples import Example, curl_line, httpx_code, triton_code
from gateway.cli.exits import Failure
from gateway.cli.image import fit, image_input, prepare
from gateway.cli.options import parse_settings
from gateway.cli.output import Column, clean, plain_lines
from gateway.cli.split import parse_weights
from gateway.model_settings import ImageSettings

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "type: make docs"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gateway.cli.commands import run; code = run(['--help']); "
        "heavy = {'numpy', 'grpc', 'httpx', 'rich', 'uvicorn', 'starlette', 'gateway.app'}; "
        "sys.exit(code or ' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_table() -> None:
    columns = [Column("NAME"), Column("COUNT", right=True)]
    assert plain_lines(columns, [["a", "1"], ["long", "1000"]]) == [
        "NAME  COUNT",
        "a         1",
        "long   1000",
    ]


def test_control_characters_stay_visible_and_harmless() -> None:
    assert clean("a\x1b[31m\nb…") == "a\\x1b[31m\\nb…"


def test_weights() -> None:
    assert parse_weights(("1=90", "2=0.5", "3=10%")) == {"1": 90, "2": 0.5, "3": 10}
    for word in ("1", "=3", "1=x", "1=-1", "1=nan", "1=inf"):
        with pytest.raises(click.BadParameter):
            parse_weights((word,))


def test_settings() -> None:
    assert parse_settings(["a.b=c=d", "sources=x,y"]) == {"a.b": "c=d", "sources": ["x", "y"]}


def test_urls() -> None:
    assert base_url("localhost:80/") == "http://localhost:80"
    for url in ("ftp://x", "http://", ""):
        with pytest.raises(Failure):
            base_url(url)


# --- pictures


def picture(path: Path, mode: str = "L") -> Path:
    """Four quarters of 2x2 pixels: 0, 51, 102, 255."""
    quarters = np.array([[0, 51], [102, 255]], np.uint8).repeat(2, 0).repeat(2, 1)
    Image.fromarray(quarters).convert(mode).save(path)
    return path


def test_a_picture_is_shrunk_inverted_scaled(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png")
    plain = ImageSettings(input="x", width=2, height=2)
    assert prepare(path, plain).tolist() == [[[[0, 51], [102, 255]]]]
    turned = ImageSettings(input="x", width=2, height=2, invert=True, scale=1 / 255, offset=-0.5)
    expected = [[[[0.5, 0.3], [0.1, -0.5]]]]
    np.testing.assert_allclose(prepare(path, turned), expected, atol=1e-6)


def test_layouts_and_colours(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", "RGB")
    for layout, shape in (("NCHW", (1, 3, 2, 1)), ("NHWC", (1, 2, 1, 3))):
        settings = ImageSettings(input="x", mode="RGB", width=1, height=2, layout=layout)
        assert prepare(path, settings).shape == shape


def test_a_picture_as_integers(tmp_path: Path) -> None:
    settings = ImageSettings(input="x", width=2, height=2, scale=0.01)
    spec = {"name": "x", "datatype": "UINT8", "shape": [-1, 4]}
    found = image_input(picture(tmp_path / "p.png"), settings, spec)
    assert found == {"name": "x", "shape": [1, 4], "datatype": "UINT8", "data": [0, 1, 1, 3]}


def test_shapes_that_fit() -> None:
    assert fit([1, 1, 8, 8], [-1, 1, 8, 8], "x") == [1, 1, 8, 8]
    assert fit([1, 1, 8, 8], [-1, -1, -1, -1], "x") == [1, 1, 8, 8]
    assert fit([1, 1, 8, 8], [-1, 64], "x") == [1, 64]
    assert fit([1, 1, 8, 8], [8, 8], "x") == [8, 8]
    with pytest.raises(Failure, match="'x' takes"):
        fit([1, 1, 8, 8], [-1, 3, 8, 8], "x")


def test_no_picture(tmp_path: Path) -> None:
    settings = ImageSettings(input="x", width=2, height=2)
    (tmp_path / "p.png").write_bytes(b"junk")
    with pytest.raises(Failure, match="no picture"):
        prepare(tmp_path / "p.png", settings)


# --- answers and examples


def test_an_answer_in_words() -> None:
    outputs = [
        {"name": "probabilities", "shape": [1, 3], "datatype": "FP32", "data": [0.1, 0.7, 0.2]},
        {"name": "label", "shape": [1], "datatype": "INT64", "data": [1]},
        {"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 2.5, 3.0, 4.0]},
        {"name": "long", "shape": [1, 100], "datatype": "FP32", "data": [0.0] * 100},
        {"name": "nested", "shape": [1, 2], "datatype": "BYTES", "data": [["a\x1b", "b"]]},
    ]
    assert dict(answer_lines({"outputs": outputs})) == {
        "probabilities": "1: 70.0 %, 2: 20.0 %, 0: 10.0 %",
        "label": "1",
        "y": "1, 2.5; 3, 4",
        "long": "0, 0, 0, 0, 0, 0, 0, 0, …  (FP32 [1, 100])",
        "nested": "a\\x1b, b",
    }


def test_examples_are_valid_in_a_shell_and_in_python() -> None:
    spec = {"name": 'it\'s "x"', "datatype": "BYTES", "shape": [-1, 2]}
    example = Example("m", (spec,), "y")
    body = example.body()
    assert body["inputs"][0]["data"] == ["hello", "hello"]
    words = shlex.split(curl_line(example, "http://h:1"))
    assert json.loads(words[-1]) == body
    for code in (httpx_code(example, "http://h:1"), triton_code(example, "http://h:1")):
        compile(code, "line", "exec")


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16"])
def test_no_examples_that_would_be_wrong(datatype: str) -> None:
    spec = {"name": "x", "datatype": datatype, "shape": [1]}
    assert not Example("m", (spec,), "y").printable
