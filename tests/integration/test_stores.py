"""A real gateway that serves models from object stores, web servers, OCI registries."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.registries.remembered import FOLDER
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until
from tests.support.hubs import Hub
from tests.support.onnx_models import adding
from tests.support.s3 import S3

POLL = {"registry.poll_seconds": 0.2, "lifecycle.retry_seconds": 0.2}


@pytest.fixture
def s3() -> Iterator[S3]:
    with S3() as server:
        yield server


class Served:
    """A gateway, asked as a client and as an operator."""

    def __init__(self, process: GatewayProcess) -> None:
        self.process = process
        self.log = process.log

    def ask(self, method: str, path: str, tree: Any = None) -> tuple[int, Any]:
        body = None if tree is None else json.dumps(tree).encode()
        request = urllib.request.Request(self.process.http + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def adds(self, model: str = "m") -> tuple[str, float] | None:
        """The version that answers and what it adds; `None` if none does."""
        x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}
        code, tree = self.ask("POST", f"/v2/models/{model}/infer", {"inputs": [x]})
        if code != 200:
            return None
        return tree["model_version"], tree["outputs"][0]["data"][0]

    def until(self, version: str, added: float, model: str = "m") -> None:
        try:
            wait_until(lambda: self.adds(model) == (version, added), f"{model}/{version}")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log()}") from None

    def weights(self, model: str = "m") -> Any:
        return self.ask("GET", f"/admin/v1/models/{model}")[1]["weights"]

    def split(self, **weights: float) -> tuple[int, Any]:
        shares = {name.removeprefix("v"): share for name, share in weights.items()}
        return self.ask("PUT", "/admin/v1/models/m/split", {"weights": shares})


@contextmanager
def serving(
    folder: Path, *sources: str, environment: dict[str, str] | None = None, **settings: object
) -> Iterator[Served]:
    """Its state is kept in `folder`, for the next one."""
    process = GatewayProcess(
        folder, sources,
        settings={**POLL, "state_dir": folder / "state", **settings},
        environment={**(environment or {}), "HOME": str(folder), "NO_PROXY": "*"},
        ready=False,
    )  # fmt: skip
    try:
        yield Served(process)
    finally:
        code = process.stop()
    assert code == 0 and "Traceback" not in process.log(), process.log()


def test_a_bucket_is_followed(s3: S3, tmp_path: Path) -> None:
    s3.put("prod/m/1/model.onnx", adding(1.0))
    with serving(tmp_path, "s3://models/prod", environment=s3.environment()) as gateway:
        gateway.until("1", 1.0)
        # A newer version; and another model, which is new.
        s3.put("prod/m/2/model.onnx", adding(2.0))
        s3.put("prod/other/1/model.onnx", adding(9.0))
        gateway.until("2", 2.0)
        gateway.until("1", 9.0, "other")
        # A split that somebody puts into the bucket.
        s3.put("prod/m/traffic.yaml", "weights: {1: 100}")
        gateway.until("1", 1.0)
        # One made here is written there.
        code, tree = gateway.split(v1=10, v2=90)
        assert code == 200, tree
        assert "'2': 90" in s3.get("prod/m/traffic.yaml")
        assert gateway.split(v2=100)[0] == 200
        gateway.until("2", 2.0)
        # A wrong document keeps what was good.
        s3.put("prod/m/model.yaml", "max_batch_sise: 3")
        wait_until(lambda: "max_batch_sise" in gateway.log(), "the error")
        assert gateway.adds() == ("2", 2.0)
        s3.put("prod/m/model.yaml", "max_batch_size: 3")
        wait_until(lambda: "can be read again" in gateway.log(), "the mended document")
        gateway.until("2", 2.0)
        # Content replaced under the same number: loaded anew.
        s3.put("prod/m/2/model.onnx", adding(2.5))
        gateway.until("2", 2.5)
        s3.delete("prod/other/1/model.onnx")
        wait_until(lambda: gateway.adds("other") is None, "the model to go")


def test_two_gateways_write_the_same_split(s3: S3, tmp_path: Path) -> None:
    for version in "12":
        s3.put(f"m/{version}/model.onnx", adding(float(version)))
    s3.put("m/model.yaml", "versions: {all: true}")
    # Polled so seldom that only a lost race tells it of the other's split.
    slow = {"registry.poll_seconds": 3600}
    with serving(tmp_path, "s3://models", environment=s3.environment(), **slow) as gateway:
        gateway.until("2", 2.0)
        s3.put("m/traffic.yaml", "weights: {1: 100}")
        code, tree = gateway.split(v1=50, v2=50)
        assert code == 409 and "changed in s3://models meanwhile" in tree["error"], tree
        gateway.until("1", 1.0)  # read again, without waiting for the next poll
        assert gateway.split(v1=0, v2=100)[0] == 200
        gateway.until("2", 2.0)


def test_an_upload_is_not_taken_half(s3: S3, tmp_path: Path) -> None:
    data = adding(2.0)
    sums = f"{sha256(data).hexdigest()}  model.onnx"
    s3.put("m/1/model.onnx", adding(1.0))
    with serving(tmp_path, "s3://models", environment=s3.environment()) as gateway:
        gateway.until("1", 1.0)
        # The digests come first; nothing is tried before the rest is there.
        s3.put("m/2/SHA256SUMS", sums)
        s3.put("watched/1/model.onnx", adding(5.0))
        gateway.until("1", 5.0, "watched")
        assert gateway.adds() == ("1", 1.0) and "m/2" not in gateway.log()
        s3.put("m/2/model.onnx", data)
        gateway.until("2", 2.0)
        # One that is not what was declared is refused; what serves goes on.
        s3.put("m/3/SHA256SUMS", f"{'0' * 64}  model.onnx")
        s3.put("m/3/model.onnx", adding(3.0))
        wait_until(lambda: "m/3 failed" in gateway.log(), "the refusal")
        assert gateway.adds() == ("2", 2.0)


def test_the_store_goes_and_comes_back(s3: S3, tmp_path: Path) -> None:
    def fill() -> None:
        for version in "12":
            s3.put(f"m/{version}/model.onnx", adding(float(version)))
        s3.put("m/traffic.yaml", "weights: {1: 100}\nlabels: {new: '2'}")

    fill()
    environment = s3.environment()
    with serving(tmp_path, "s3://models", environment=environment) as gateway:
        gateway.until("1", 1.0)
        s3.kill()
        wait_until(lambda: "serving goes on" in gateway.log(), "the line")
        assert gateway.adds() == ("1", 1.0)
    assert gateway.log().count("the store does not answer") == 1
    # Started without it: what is remembered, from the cache.
    with serving(tmp_path, "s3://models", environment=environment) as gateway:
        gateway.until("1", 1.0)
        assert re.search(
            r"starting with what was there on \d{4}-\d\d-\d\d \d\d:\d\d", gateway.log()
        )
        assert gateway.split(v1=1, v2=1)[0] >= 400  # nobody would know of it
        assert gateway.weights() == {"1": 100}
        s3.start()
        fill()
        s3.put("m/3/model.onnx", adding(3.0))
        s3.put("m/traffic.yaml", "weights: {3: 100}")
        gateway.until("3", 3.0)
        assert "s3://models can be read again" in gateway.log()


def test_a_first_start_without_the_store_says_why(tmp_path: Path) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SKIP_SIGNATURE": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "s3://models", "--http", "127.0.0.1:0",
         "--grpc", "127.0.0.1:0", "--set", f"state_dir={tmp_path}"],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True,
        timeout=PATIENCE * 2,
    )  # fmt: skip
    assert done.returncode != 0
    assert "s3://models cannot be read: the store does not answer" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_who_may_only_read_splits_here(s3: S3, tmp_path: Path) -> None:
    for version in "12":
        s3.put(f"m/{version}/model.onnx", adding(float(version)))
    s3.put("m/model.yaml", "versions: {all: true}")
    s3.put("m/traffic.yaml", "weights: {1: 100}")
    declared = s3.get("m/traffic.yaml")
    reader = s3.read_only()
    with serving(tmp_path, "s3://models", environment=reader) as gateway:
        gateway.until("1", 1.0)
        assert gateway.split(v2=100)[0] == 200
        gateway.until("2", 2.0)
        assert s3.get("m/traffic.yaml") == declared
        assert "the split is kept in the state directory" in gateway.log()
    with serving(tmp_path, "s3://models", environment=reader) as gateway:
        gateway.until("2", 2.0)
        s3.put("m/traffic.yaml", "weights: {1: 90}")
        gateway.until("1", 1.0)
        assert "the split declared in s3://models has changed" in gateway.log()
    with serving(tmp_path, "s3://models", environment=reader) as gateway:
        gateway.until("1", 1.0)


CODE = """
import numpy as np

class Plus:
    signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1, 4])}}

    def infer(self, inputs):
        return {"y": inputs["x"] + np.float32(7)}
"""


def test_code_from_a_bucket_runs_only_if_that_is_trusted(s3: S3, tmp_path: Path) -> None:
    s3.put("code/m/1/model.py", CODE)
    environment = s3.environment()
    with serving(tmp_path, "s3://models/code", environment=environment) as gateway:
        wait_until(lambda: "is not trusted" in gateway.log(), "the refusal")
        assert gateway.adds() is None
        assert "s3://models/code/m/1" in gateway.log()
    trusted = {"trust.code": "s3://models/code"}
    with serving(tmp_path, "s3://models/code", environment=environment, **trusted) as gateway:
        gateway.until("1", 7.0)


def packed_model(value: float) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("model.onnx")
        entry.size = len(adding(value))
        archive.addfile(entry, io.BytesIO(adding(value)))
    return packed.getvalue()


def test_one_file_one_archive_one_folder(s3: S3, tmp_path: Path) -> None:
    packed = packed_model(4.0)
    s3.put("one/net.onnx", adding(3.0))
    s3.put("one/packed.tar.gz", packed)
    s3.put("one/loose/model.onnx", adding(5.0))
    s3.put("one/inside/1/model.tar.gz", packed)
    sources = [
        f"s3://models/one/{name}" for name in ("net.onnx", "packed.tar.gz", "loose", "inside")
    ]
    with serving(tmp_path, *sources, environment=s3.environment()) as gateway:
        for name, value in (("net", 3.0), ("packed", 4.0), ("loose", 5.0), ("inside", 4.0)):
            gateway.until("1", value, name)


def test_files_of_web_servers_hubs_and_image_registries(tmp_path: Path) -> None:
    packed = packed_model(4.0)
    with Hub() as hub:
        hub.files = {"/net.onnx": adding(3.0), "/packed.tar.gz": packed}
        hub.repo("team/bert", "c" * 40, {"onnx/model.onnx": adding(5.0), "README.md": b"x"})
        hub.image("team/img", "7", {"model.onnx": adding(6.0)})
        hub.image("team/img", "8", {"model.tar.gz": packed})
        sources = [f"{hub.url}/net.onnx?token=hidden", f"{hub.url}/packed.tar.gz", "hf://team/bert"]
        image = f"oci://{hub.host}/team/img"
        environment = {"HF_ENDPOINT": hub.url}
        with serving(tmp_path, *sources, image, environment=environment) as gateway:
            for name, version, value in (
                ("net", "1", 3.0), ("packed", "1", 4.0), ("bert", "1", 5.0), ("img", "8", 4.0),
            ):  # fmt: skip
                gateway.until(version, value, name)
            # Each follows what is there.
            hub.files["/net.onnx"] = adding(3.5)
            hub.repo("team/bert", "d" * 40, {"onnx/model.onnx": adding(5.5)})
            hub.image("team/img", "9", {"model.onnx": adding(9.0)})
            for name, version, value in (("net", "1", 3.5), ("bert", "1", 5.5), ("img", "9", 9.0)):
                gateway.until(version, value, name)
        assert "hidden" not in gateway.log()
    # All of them are gone, and remembered.
    with serving(tmp_path, *sources, image, environment=environment) as gateway:
        for name, version, value in (("net", "1", 3.5), ("bert", "1", 5.5), ("img", "9", 9.0)):
            gateway.until(version, value, name)
        assert gateway.log().count("starting with what was there") == 4
    assert "hidden" not in gateway.log()
    for kept in (tmp_path / "state" / FOLDER).iterdir():
        assert b"hidden" not in kept.read_bytes()


def test_a_source_that_hangs_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Neither those who ask for other models, nor whoever stops the gateway."""
    (tmp_path / "models/m/1").mkdir(parents=True)
    (tmp_path / "models/m/1/model.onnx").write_bytes(adding(1.0))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/late.onnx"
        with serving(tmp_path, str(tmp_path / "models"), url) as gateway:
            gateway.until("1", 1.0)
            unreachable = gateway.ask("GET", "/admin/v1/status")[1]["unreachable"]
            assert unreachable == {url: f"{url} does not answer"}
