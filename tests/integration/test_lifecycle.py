"""Model directories while they are served: what goes, comes back, breaks and is mended."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gateway.app import Gateway
from gateway.config import load_config
from gateway.errors import ModelNotReady, UnknownModel
from gateway.pipeline import AwaitableCall
from gateway.tensors import DATATYPES, InferenceRequest, Tensor
from tests.support.onnx_models import adding, write, write_adding

PATIENCE = 60.0
MANY = 300


class Served:
    """A gateway in this process."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def ask(self, model: str = "m", version: str = "") -> tuple[str, float]:
        """Which version answers, and what it adds."""
        x = Tensor("x", DATATYPES["FP32"], (1, 4), array=np.zeros((1, 4), np.float32))
        request = InferenceRequest(model, version, (x,))
        answer = await self.gateway.pipeline.infer(Asked(request, time.perf_counter()))
        return answer.version, float(answer.outputs[0].array[0, 0])

    async def until(self, condition: Callable[[], object], what: str = "it") -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            await asyncio.sleep(0.01)

    async def answers(self, version: str, added: float, model: str = "m") -> None:
        """Until the model answers like this."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                found = await self.ask(model)
            except (ModelNotReady, UnknownModel) as error:
                found = ("none", 0.0)
                assert time.monotonic() < end, error
            if found == (version, added):
                return
            assert time.monotonic() < end, found
            await asyncio.sleep(0.01)

    def states(self, model: str = "m") -> dict[str, str]:
        managed = self.gateway.manager.models.get(model)
        return {r.version: str(r.state) for r in managed.records} if managed is not None else {}


class Asked(AwaitableCall):
    """A call whose request is there already."""

    def decode(self) -> InferenceRequest:
        return self.request


def serving(test: Callable[[Served], Awaitable[None]], *sources: Path, **settings: Any) -> None:
    async def main() -> None:
        flags: dict[str, Any] = {
            "sources": tuple(map(str, sources)),
            "http.address": "127.0.0.1:0",
            "grpc.address": "127.0.0.1:0",
            "registry.poll_seconds": 0.5,
            "lifecycle.retry_seconds": 0.2,
        }
        config, _ = load_config(flags={**flags, **settings}, environment={})
        gateway = Gateway(config)
        try:
            await gateway.start()
            await test(Served(gateway))
        finally:
            await gateway.drain(0)
            await gateway.close()

    asyncio.run(main())


def test_without_its_directory_a_gateway_goes_on_serving(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_adding(root, "m", 1.0)
    write_adding(root, "n", 5.0)

    async def test(served: Served) -> None:
        shutil.rmtree(root)
        for _ in range(40):
            assert await served.ask() == ("1", 1.0)
            assert await served.ask("n") == ("1", 5.0)
            await asyncio.sleep(0.05)
        assert served.gateway.facts.ready
        write_adding(tmp_path / "new", "m", 1.0, 2.0)
        write_adding(tmp_path / "new", "n", 5.0)
        (tmp_path / "new").rename(root)
        await served.answers("2", 2.0)
        assert await served.ask("n") == ("1", 5.0)
        write(root / "m" / "3", adding(3.0))
        await served.answers("3", 3.0)

    serving(test, root)


def test_a_slow_copy_is_loaded_once_and_whole(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)
    data = adding(2.0, padding=20_000)

    def copy() -> None:
        (tmp_path / "m" / "2").mkdir()
        with (tmp_path / "m" / "2" / "model.onnx").open("wb", buffering=0) as file:
            for start in range(0, len(data), 4000):
                file.write(data[start : start + 4000])
                time.sleep(0.05)

    async def test(served: Served) -> None:
        copying = threading.Thread(target=copy)
        copying.start()
        while copying.is_alive():
            assert (await served.ask())[0] == "1"
            await asyncio.sleep(0.02)
        await served.answers("2", 2.0)
        assert served.gateway.manager.ended_loads == {"ok": 2, "failed": 0}

    serving(test, tmp_path)


def test_a_truncated_version_says_why_and_is_loaded_once_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_adding(tmp_path, "m", 1.0)

    async def test(served: Served) -> None:
        write(tmp_path / "m" / "2", adding(2.0, padding=500)[:-300])
        await served.until(lambda: served.states().get("2") == "failed")
        assert await served.ask() == ("1", 1.0)
        facts = served.gateway.facts
        (entry,) = [e for e in facts.index() if e["version"] == "2"]
        assert entry["state"] == "UNAVAILABLE"
        (status,) = [v for v in facts.status("m")["versions"] if v["version"] == "2"]
        for told in (entry["reason"], status["cause"], caplog.text, str(facts.failed())):
            assert "'model.onnx' is not an ONNX file, or it is damaged" in told
        assert facts.ready
        with pytest.raises(ModelNotReady):
            await served.ask(version="2")
        write(tmp_path / "m" / "2", adding(2.0))
        await served.answers("2", 2.0)
        assert facts.failed() == {}

    serving(test, tmp_path)


def test_a_start_with_a_broken_newest_version_serves_the_one_before(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)
    write(tmp_path / "m" / "2", adding(2.0)[:-30])

    async def test(served: Served) -> None:
        assert await served.ask() == ("1", 1.0)
        assert served.gateway.facts.ready
        assert "m/2" in served.gateway.facts.failed()
        write(tmp_path / "m" / "2", adding(2.0))
        await served.answers("2", 2.0)
        await served.until(lambda: served.states() == {"2": "ready"})

    serving(test, tmp_path)


def test_a_version_that_comes_while_others_are_still_loading_is_seen(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)

    async def main() -> None:
        flags = {
            "sources": (str(tmp_path),), "http.address": "127.0.0.1:0",
            "grpc.address": "127.0.0.1:0", "registry.poll_seconds": 1000.0,
        }  # fmt: skip
        config, _ = load_config(flags=flags, environment={})
        gateway = Gateway(config)
        try:
            await gateway.start(announce=lambda: write(tmp_path / "m" / "2", adding(2.0)))
            await Served(gateway).answers("2", 2.0)
        finally:
            await gateway.close()

    asyncio.run(main())


def test_links_that_kubernetes_swaps(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write(mount / "..2024", adding(1.0))
    write(mount / "..2025", adding(2.0))
    os.symlink("..2024", mount / "..data")
    (tmp_path / "models" / "m").mkdir(parents=True)
    os.symlink(mount / "..data", tmp_path / "models" / "m" / "1")

    async def test(served: Served) -> None:
        assert await served.ask() == ("1", 1.0)
        os.symlink("..2025", mount / "new")
        os.replace(mount / "new", mount / "..data")
        await served.answers("1", 2.0)

    serving(test, tmp_path / "models")


def test_a_broken_model_yaml_keeps_the_model_and_is_mended(tmp_path: Path) -> None:
    folder = write_adding(tmp_path, "m", 1.0)

    async def test(served: Served) -> None:
        (folder / "model.yaml").write_text("max_batchsize: 3\n")
        await served.until(lambda: "m" in served.gateway.facts.failed())
        assert await served.ask() == ("1", 1.0)
        error = served.gateway.facts.status("m")["error"]
        assert "did you mean 'max_batch_size'" in error
        (folder / "model.yaml").write_text("max_batch_size: 3\n")
        await served.until(lambda: not served.gateway.facts.failed())
        await served.until(
            lambda: served.gateway.router.table["m"].versions["1"].max_batch_size == 3
        )

    serving(test, tmp_path)


def test_one_file_and_one_models_folder_are_sources(tmp_path: Path) -> None:
    write(tmp_path, adding(7.0), "seven.onnx")
    folder = write_adding(tmp_path / "elsewhere", "m", 1.0, 2.0)

    async def test(served: Served) -> None:
        assert await served.ask("seven") == ("1", 7.0)
        assert await served.ask("m") == ("2", 2.0)
        write(tmp_path, adding(8.0), "seven.onnx")
        await served.answers("1", 8.0, "seven")

    serving(test, tmp_path / "seven.onnx", folder)


def test_hundreds_of_models(tmp_path: Path) -> None:
    for number in range(MANY):
        write(tmp_path / f"model-{number:03}" / "1", adding(float(number % 50)))
    before = psutil.Process().memory_info().rss
    started = time.monotonic()

    async def test(served: Served) -> None:
        took = time.monotonic() - started
        more = (psutil.Process().memory_info().rss - before) / 2**20
        print(f"{MANY} models: ready after {took:.1f} s, {more:.0f} MiB more")
        assert len(served.gateway.facts.model_names()) == MANY
        assert await served.ask("model-007") == ("1", 7.0)
        assert more < MANY, "a MiB a model"
        write(tmp_path / "model-007" / "2", adding(3.0))
        await served.answers("2", 3.0, "model-007")
        shutil.rmtree(tmp_path / "model-008")
        await served.until(lambda: "model-008" not in served.gateway.manager.models)
        assert await served.ask("model-299") == ("1", 49.0)

    serving(test, tmp_path)
