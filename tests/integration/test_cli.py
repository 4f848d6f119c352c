"""The command line as a user has it: real processes, a real gateway."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"
PICTURE = ROOT / "examples" / "images" / "digit-5-9.png"
PATIENCE = 60


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


def sluice(
    *words: str | Path, stdin: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, words)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=environment(**variables),
        input=stdin,
        text=True,
        timeout=PATIENCE,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command, which must be one line with the command's name."""
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("sluice: ")
    return lines[0]


class Serving:
    """``sluice serve`` on free ports; `text` is what it has printed once it is ready."""

    def __init__(self, *words: str | Path) -> None:
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        # Most are killed in the end, and what they leave goes with it.
        self.folder = tempfile.TemporaryDirectory(prefix="cli-")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gateway", "serve", *map(str, words)),
                *("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"),
            ],
            cwd=ROOT,
            env=environment(TMPDIR=self.folder.name),
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.errors,
        )
        try:
            found = self.wait_for(self.out, r"^HTTP +(http://\S+)\n.*^Try it:\n.*\n\n\Z")
        except AssertionError:
            self.__exit__()
            raise
        self.url = found[1]
        self.text = content(self.out)

    def wait_for(self, file: IO[str], pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while True:
            found = re.search(pattern, content(file), re.M | re.S)
            if found is not None:
                return found
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(content(self.out) + content(self.errors))
            time.sleep(0.02)

    def stop(self, *signals: int) -> tuple[int, str]:
        """Exit code, and all that was logged."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE), content(self.errors)

    def drain(self) -> None:
        """Sends SIGTERM and waits until it has arrived."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for(self.errors, "draining")

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.out.close()
        self.errors.close()
        self.folder.cleanup()


def content(file: IO[str]) -> str:
    """What was written to a file so far; its position is shared with the writer."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    models = tmp_path_factory.mktemp("serving") / "models"
    shutil.copytree(MODELS, models)
    with Serving(models) as process:
        yield process


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


# --- serve


def test_serve_prints_what_a_person_needs(serving: Serving) -> None:
    rows = [line.split() for line in serving.text.splitlines() if line.startswith("digits")]
    assert rows == [
        ["digits", "1", "ready", "onnx", "90", "%", "64"],
        ["digits", "2", "ready", "onnx", "10", "%", "64"],
    ]
    grpc = r"^gRPC +127\.0\.0\.1:[1-9]\d+  \((unary|all) calls by .+: .+\)$"
    assert re.search(grpc, serving.text, re.M)
    assert f"{serving.url}/metrics" in serving.text
    assert f"{serving.url}/docs" in serving.text


def test_the_lines_to_paste_work(serving: Serving) -> None:
    lines = serving.text.partition("Try it:\n")[2].split("\n")[:3]
    for line, word in zip(lines, (" infer digits ", "curl -s ", " -c "), strict=True):
        assert word in line
        words = shlex.split(line)
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run(
            words, capture_output=True, check=False, cwd=ROOT, env=environment(), text=True
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.strip()
        assert "error" not in done.stdout, (line, done.stdout)


def test_ctrl_c_drains_and_exits_with_0() -> None:
    with Serving(MODELS) as process:
        code, output = process.stop(signal.SIGINT)
    assert code == 0
    assert "draining" in output
    assert "Traceback" not in output


def test_sigterm_keeps_answering_for_the_grace() -> None:
    with Serving(MODELS / "iris", "--set", "drain.grace=1000") as process:
        process.drain()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{process.url}/v2/health/ready")
        result = sluice(
            "infer", "iris", "--input", ROOT / "examples/requests/iris.json", "--url", process.url
        )
        assert result.returncode == 0, result.stderr
        assert process.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_the_grace_short(second: signal.Signals) -> None:
    with Serving(MODELS / "iris", "--set", "drain.grace=1000") as process:
        process.drain()
        assert process.stop(second)[0] == 0


def test_a_failed_model_is_shown_with_its_cause(models: Path) -> None:
    (models / "iris" / "1" / "model.onnx").write_bytes(b"junk")
    with Serving(models) as process:
        [row] = [line for line in process.text.splitlines() if line.startswith("iris")]
        assert row.split()[:3] == ["iris", "1", "failed"]
        assert len(row.split()) > 6, row
        result = sluice("models", "--url", process.url)
        assert "failed" in result.stdout
        result = sluice("promote", "iris", "1", "--url", process.url)
        assert "not ready" in one_line(result, 1)


def test_strict_makes_a_failed_model_fatal(models: Path) -> None:
    (models / "iris" / "1" / "model.onnx").write_bytes(b"junk")
    result = sluice(
        *("serve", models, "--strict", "--log-level", "error"),
        *("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"),
    )
    assert result.returncode == 4, result.stderr
    assert result.stderr.splitlines()[-1].startswith("sluice: --strict: iris/1: ")
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = sluice("serve", MODELS, "--http", address, "--grpc", "127.0.0.1:0")
        assert f"http.address {address}" in one_line(result, 2)
        result = sluice(
            *("serve", MODELS, "--http", "127.0.0.1:0", "--grpc", address),
            *("--grpc-server", "grpcio"),
        )
        assert f"grpc.address {address}" in one_line(result, 2)


# --- models, infer


def test_models_as_a_table_and_as_json(serving: Serving) -> None:
    table = sluice("models", "--url", serving.url)
    assert table.returncode == 0, table.stderr
    head, *rows = table.stdout.splitlines()
    assert head.split()[:5] == ["MODEL", "VERSION", "STATE", "RUNTIME", "WEIGHT"]
    assert [row.split()[:2] for row in rows] == [
        ["digits", "1"],
        ["digits", "2"],
        ["iris", "1"],
        ["text", "1"],
    ]
    tree = json.loads(sluice("models", "--json", SLUICE_URL=serving.url).stdout)
    assert [model["name"] for model in tree["models"]] == ["digits", "iris", "text"]
    assert [v["share"] for v in tree["models"][0]["versions"]] == [90, 10]


def test_infer_counts_who_answered(serving: Serving) -> None:
    words = ["infer", "digits", "--image", str(PICTURE), "-n", "50", "--url", serving.url]
    tree = json.loads(sluice(*words, "--json", "--concurrency", "4").stdout)
    assert tree["requests"] == tree["answered"] == sum(tree["versions"].values()) == 50
    assert tree["failed"] == 0
    assert set(tree["versions"]) <= {"1", "2"}
    label = next(o for o in tree["first"]["outputs"] if o["name"] == "label")
    assert label["data"] == [5]

    result = sluice(*words)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^  label +5$", result.stdout, re.M)
    assert re.search(r"^  probabilities +5: \d+\.\d %, ", result.stdout, re.M)
    counts = re.findall(r"^  version \d: (\d+) answers?, ", result.stdout, re.M)
    assert sum(map(int, counts)) == 50


def test_infer_one_version_and_one_key(serving: Serving) -> None:
    words = ["infer", "digits", "--image", str(PICTURE), "--url", serving.url, "--json"]
    assert json.loads(sluice(*words, "--version", "canary").stdout)["versions"] == {"2": 1}
    sticky = json.loads(sluice(*words, "-n", "20", "--key", "someone").stdout)
    assert list(sticky["versions"].values()) == [20]


@pytest.mark.parametrize("how", ["file", "text", "stdin"])
def test_infer_takes_json(serving: Serving, how: str) -> None:
    path = ROOT / "examples" / "requests" / "iris.json"
    text = path.read_text()
    source = {"file": str(path), "text": text, "stdin": "-"}[how]
    result = sluice("infer", "iris", "--input", source, "--url", serving.url, stdin=text)
    assert result.returncode == 0, result.stderr
    assert "setosa, versicolor, virginica" in result.stdout


def test_infer_counts_errors(serving: Serving) -> None:
    path = ROOT / "examples" / "requests" / "iris.json"
    result = sluice("infer", "digits", "--input", path, "-n", "3", "--url", serving.url)
    assert "3 requests failed: 400: " in one_line(result, 1)
    assert "no input 'sepal'" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["infer", "nothing", "--image", str(PICTURE)], 1, "unknown model: 'nothing'"),
        (["infer", "iris", "--image", str(PICTURE)], 2, "give --input"),
        (["infer", "digits", "--image", "nothing.png"], 2, "cannot read nothing.png"),
        (["infer", "digits", "--image", "README.md"], 2, "README.md"),
        (["infer", "digits", "--input", "nothing.json"], 2, "cannot read nothing.json"),
        (["infer", "digits", "--input", "{"], 2, "not JSON"),
        (["infer", "digits", "--input", "{}"], 2, "no inference request"),
        (["infer", "digits"], 2, "--image FILE or --input JSON"),
        (["split", "digits", "9=1"], 1, "no version or label '9'"),
        (["split", "digits", "1:90"], 2, "VERSION=WEIGHT"),
        (["split", "digits", "1=90", "1=10"], 2, "given twice"),
        (["split", "nothing", "1=90"], 1, "unknown model"),
        (["promote", "digits", "9"], 1, "no version or label '9'"),
    ],
)
def test_mistakes_are_one_line(
    serving: Serving, words: list[str], code: int, expected: str
) -> None:
    assert expected in one_line(sluice(*words, SLUICE_URL=serving.url), code)


@pytest.mark.parametrize(
    "words", [["models"], ["split", "digits", "1=1"], ["infer", "x", "--input", '{"inputs": []}']]
)
def test_nobody_answers(words: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = one_line(sluice(*words, "--url", f"http://127.0.0.1:{port}"), 3)
    assert f"no gateway answers at http://127.0.0.1:{port}" in error


def test_the_admin_api_with_a_token(models: Path) -> None:
    with Serving(models, "--set", "admin.token=secret") as process:
        refused = sluice("models", "--url", process.url)
        assert "--token" in one_line(refused, 1)
        assert sluice("models", "--url", process.url, "--token", "secret").returncode == 0
        assert sluice("models", "--url", process.url, SLUICE_TOKEN="secret").returncode == 0


# --- split, promote


def test_split_and_promote_are_stored_and_survive_a_restart(models: Path) -> None:
    document = models / "digits" / "traffic.yaml"
    with Serving(models) as process:
        result = sluice("split", "digits", "1=50", "2=50", "--url", process.url, "--json")
        assert result.returncode == 0, result.stderr
        assert yaml.safe_load(document.read_text())["weights"] == {"1": 50, "2": 50}
        assert shares(json.loads(result.stdout)) == {"1": 50, "2": 50}

        result = sluice("promote", "digits", "canary", "--url", process.url)
        assert result.returncode == 0, result.stderr
        stored = yaml.safe_load(document.read_text())
        assert (stored["weights"], stored["stable"]) == ({"2": 100}, "2")
        assert process.stop(signal.SIGINT)[0] == 0
    with Serving(models) as process:
        tree = json.loads(sluice("models", "--json", "--url", process.url).stdout)
        assert shares(tree["models"][0])["2"] == 100


def shares(model: dict[str, Any]) -> dict[str, float]:
    return {version["version"]: version["share"] for version in model["versions"]}
