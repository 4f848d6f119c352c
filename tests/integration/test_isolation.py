"""Models in child processes crash, hang and stream, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import pytest

import gateway.app
from gateway.app import Gateway
from gateway.config import load_config
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    SluiceError,
)
from gateway.pipeline import AwaitableCall
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor
from runtimes.discovery import load_runtimes
from tests.support.environments import environment
from tests.support.gateway import ROOT, GatewayProcess, wait_until
from tests.support.misbehaving import (
    CALL,
    DESCRIBE,
    LAST_WORDS,
    LEAVE,
    NUMBERS,
    STREAM,
    MisbehavingRuntime,
    write_misbehaving,
)
from tests.support.onnx_models import adding, write

PATIENCE = 60.0


class GrpcCall(AwaitableCall):
    """Counted as one from outside."""

    __slots__ = ()
    protocol = "grpc"


class Rig:
    """A gateway in this process over the models in `root`."""

    def __init__(self, root: Path, **flags: Any) -> None:
        config, _ = load_config(
            flags={
                "sources": (str(root),),
                "trust.code": (str(root),),
                "http.address": "127.0.0.1:0",
                "grpc.address": "127.0.0.1:0",
                "grpc.server": "grpcio",
                **flags,
            },
            environment={},
        )
        self.gateway = Gateway(config)

    async def __aenter__(self) -> Rig:
        await self.gateway.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.close()

    def call(
        self, model: str, rows: Any, deadline: float | None = None, **kinds: Any
    ) -> asyncio.Task[InferenceResponse]:
        """A request over `rows`; a task that ends with the answer or the error."""
        array = np.array(rows, np.float32)
        tensor = Tensor("x", DATATYPES["FP32"], array.shape, array.tobytes())
        request = InferenceRequest(model, "", (tensor,), **kinds)
        now = perf_counter()
        call = GrpcCall(request, now, None if deadline is None else now + deadline)
        return asyncio.create_task(self.gateway.pipeline.infer(call))

    async def ask(self, model: str, rows: Any, **kinds: Any) -> Any:
        return (await self.call(model, rows, **kinds)).outputs[0].array

    def stream(self, model: str, row: Any) -> AsyncIterator[InferenceResponse]:
        array = np.array([row], np.float32)
        tensor = Tensor("x", DATATYPES["FP32"], array.shape, array.tobytes())
        call = AwaitableCall(InferenceRequest(model, "", (tensor,)), perf_counter())
        return self.gateway.pipeline.stream(call)

    def dispatcher(self, model: str) -> Any:
        return self.gateway.facts.servable(model).dispatcher

    def status(self, model: str) -> dict[str, Any]:
        versions: list[dict[str, Any]] = self.gateway.facts.status(model)["versions"]
        return versions[-1]

    def cause(self, model: str) -> str:
        return str(self.status(model)["cause"])

    async def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"misbehaving": MisbehavingRuntime(), "onnx": load_runtimes()["onnx"]}
    monkeypatch.setattr(gateway.app, "load_runtimes", lambda: everything)


def outcome(answer: asyncio.Task[InferenceResponse]) -> str:
    error = answer.exception()
    return "ok" if error is None else type(error).__name__


async def ended(calls: list[asyncio.Task[InferenceResponse]]) -> list[str]:
    await asyncio.wait(calls, timeout=PATIENCE)
    return [outcome(call) if call.done() else "never ended" for call in calls]


@contextlib.asynccontextmanager
async def bystander(rig: Rig, *models: str) -> AsyncIterator[None]:
    """Other models are asked all the while, and every answer is right."""
    done = False

    async def ask(model: str, add: float, times: float) -> int:
        count = 0
        while not done:
            value = float(count % 500)
            answer = await rig.ask(model, [[value, value]])
            assert answer.tolist() == [[value * times + add] * 2]
            count += 1
            await asyncio.sleep(0)
        return count

    asking = [
        asyncio.create_task(ask(m, *((0.0, 2.0) if m == "other" else (1.0, 1.0)))) for m in models
    ]
    try:
        yield
    finally:
        done = True
        assert all(count > 0 for count in await asyncio.gather(*asking))


def test_answers_as_in_process(tmp_path: Path) -> None:
    write(tmp_path / "here" / "1", adding(1.0, width=2))
    write(tmp_path / "there" / "1", adding(1.0, width=2))
    (tmp_path / "there" / "model.yaml").write_text("isolation: process\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            here, there = (rig.gateway.facts.metadata(name) for name in ("here", "there"))
            assert repr(here.inputs) == repr(there.inputs)
            assert (here.platform, here.versions) == (there.platform, there.versions)
            size = rig.gateway.facts.servable("there").max_batch_size
            assert size == rig.gateway.facts.servable("here").max_batch_size == 64
            calls = {n: rig.call("there", [[n, n + 1]] * (n % 5 + 1)) for n in range(300)}
            big = rig.call("there", [[n, n] for n in range(500)])  # in slices
            for n, call in calls.items():
                array = (await call).outputs[0].array
                assert array.tolist() == [[n + 1, n + 2]] * (n % 5 + 1)
            assert (await big).outputs[0].array.tolist() == [[n + 1, n + 1] for n in range(500)]
            stats = rig.dispatcher("there").stats
            rows = sum(n % 5 + 1 for n in range(300)) + 500
            assert stats.inference_count == rows
            assert stats.success.count == 301
            assert stats.execution_count < 301
            assert stats.compute_infer.ns > 0
            dispatcher = rig.dispatcher("there")
            assert (dispatcher.pending, dispatcher.waiting, dispatcher.waiting_rows) == (0, 0, 0)
            with pytest.raises(InvalidRequest, match="takes shape"):
                await rig.call("there", [[1.0, 2.0, 3.0]])
            # Every block comes back once nobody looks at it.
            await rig.until(lambda: not len(dispatcher._arena), "the requests' memory")

    asyncio.run(main())


def test_control_channel_carries_no_tensors(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", adding(1.0, width=2**20))
    (tmp_path / "m" / "model.yaml").write_text("isolation: process\n")

    async def main() -> tuple[int, int]:
        async with Rig(tmp_path) as rig:
            rows = np.arange(2**20, dtype=np.float32).reshape(1, 2**20) % 1000
            channel = rig.dispatcher("m")._model.child.channel
            await rig.ask("m", rows)
            before = channel.sent, channel.received
            answer = await rig.ask("m", rows)
            assert answer.nbytes == 4 * 2**20
            assert np.array_equal(answer, rows + 1)
            return channel.sent - before[0], channel.received - before[1]

    sent, received = asyncio.run(main())
    assert 0 < sent < 1024
    assert 0 < received < 1024


def test_crash_takes_the_running_batch_alone(tmp_path: Path) -> None:
    words = {
        "segfault": "SIGSEGV", "kill": "SIGKILL", "leave": LAST_WORDS,
        "hang": "hang_seconds = 0.5", "hold": "hang_seconds = 0.5",
    }  # fmt: skip
    for deed in words:
        write_misbehaving(
            tmp_path / deed, "isolation: {hang_seconds: 0.5}\noptions: {delay: 0.05}\n"
        )
    write_misbehaving(tmp_path / "other")
    write(tmp_path / "here" / "1", adding(1.0, width=2))

    async def crash(rig: Rig, deed: str) -> None:
        pid = rig.status(deed)["pid"]
        first = rig.call(deed, [[NUMBERS[deed], 0]])
        dispatcher = rig.dispatcher(deed)
        await rig.until(lambda: dispatcher.pending and not dispatcher.waiting, "it to run")
        waiting = [rig.call(deed, [[n, n]]) for n in range(100)]
        assert await ended([first]) == ["InferenceFailed"]
        for n, call in enumerate(waiting):
            assert (await call).outputs[0].array.tolist() == [[2 * n, 2 * n]]
        status = rig.status(deed)
        assert status["restarts"] == 1
        assert status["pid"] not in (None, pid)
        assert status["state"] == "ready"
        assert words[deed] in status["last_crash"]
        assert not psutil.pid_exists(pid)
        assert rig.dispatcher(deed).stats.fail.count == 1

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for deed in words:
                async with bystander(rig, "other", "here"):
                    await crash(rig, deed)

    asyncio.run(main())


def test_a_hang_is_seen_after_its_callers_have_left(tmp_path: Path) -> None:
    quick = "isolation: {hang_seconds: 0.5}\n"
    for name in ("hang", "hold"):
        write_misbehaving(tmp_path / name, quick)
    write_misbehaving(tmp_path / "streams", quick + "options: {decoupled: true}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for name in ("hang", "hold"):
                call = rig.call(name, [[NUMBERS[name], 0]])
                await asyncio.sleep(0.1)
                call.cancel()
                assert (await rig.ask(name, [[1, 2]])).tolist() == [[2, 4]]
            running = rig.stream("streams", [NUMBERS["hang"], 1])
            await anext(running)  # the next thing that the model does is the deed
            await asyncio.sleep(0.1)
            await running.aclose()  # type: ignore[attr-defined]
            last = [r.outputs[0].array[0, 1] async for r in rig.stream("streams", [0, 3])]
            assert last == [0, 1, 2]
            for name in ("hang", "hold", "streams"):
                await rig.until(lambda n=name: rig.status(n)["restarts"] == 1, "the restart")
                assert "hang_seconds = 0.5" in rig.status(name)["last_crash"]

    asyncio.run(main())


def test_a_stream_that_is_cancelled_at_once_leaves_nothing(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m", "isolation: process\noptions: {decoupled: true}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            dispatcher = rig.dispatcher("m")
            for _ in range(20):
                tensor = Tensor("x", DATATYPES["FP32"], (1, 2), np.zeros(2, np.float32).tobytes())
                call = AwaitableCall(InferenceRequest("m", "", (tensor,)), perf_counter())
                dispatcher.stream(call)
                call.cancel()  # both reach the child in one turn of its loop
            await rig.until(lambda: not dispatcher._slots, "the slots")
            await rig.until(lambda: not len(dispatcher._arena), "the requests' memory")
            assert [r.outputs[0].array[0, 1] async for r in rig.stream("m", [0, 2])] == [0, 1]

    asyncio.run(main())


def test_a_restarted_model_is_warm(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    write_misbehaving(
        tmp_path / "models" / "m", f"isolation: process\noptions: {{journal: {journal}}}\n"
    )

    async def main() -> None:
        async with Rig(tmp_path / "models") as rig:
            journal.write_text("")
            os.kill(rig.status("m")["pid"], signal.SIGKILL)
            await rig.until(lambda: rig.status("m")["restarts"] == 1, "the restart")
            assert journal.read_text().split() == ["1", "8", "64"]

    asyncio.run(main())


def test_a_load_that_hangs_ends(tmp_path: Path) -> None:
    folder = write_misbehaving(tmp_path / "m", "isolation: {load_seconds: 20}\n")
    hung = write_misbehaving(tmp_path / "hung", "isolation: {load_seconds: 0.5}\n")
    (hung / "hang").touch()

    async def main() -> None:
        async with Rig(tmp_path, **{"registry.watch": False}) as rig:
            assert rig.status("hung")["state"] == "failed"
            assert "isolation.load_seconds = 0.5" in rig.cause("hung")
            # While another process loads, calls end by their deadlines.
            dispatcher = rig.dispatcher("m")
            (folder / "hang").touch()
            os.kill(rig.status("m")["pid"], signal.SIGKILL)
            with pytest.raises(DeadlineExceeded):
                await rig.call("m", [[1, 2]], deadline=0.3)
            assert not dispatcher._up

    asyncio.run(main())


def test_a_spare_that_hangs_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "never_imported.py").write_text("import time\ntime.sleep(1000)\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setattr(MisbehavingRuntime, "preload", ("never_imported",))
    write_misbehaving(tmp_path / "models" / "m", "isolation: {load_seconds: 5, fork: false}\n")

    async def main() -> None:
        async with Rig(tmp_path / "models") as rig:
            spares = rig.gateway.nursery._spares
            await rig.until(lambda: spares, "the spare")
            (spare,) = spares.values()
            await rig.until(lambda: not spares, "its end")
            assert "isolation.load_seconds = 5" in spare.cause
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def test_a_spare_that_dies_when_it_is_needed_fails_no_load(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m", "isolation: {fork: false}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            spares = rig.gateway.nursery._spares
            await rig.until(lambda: spares, "the spare")
            (spare,) = spares.values()
            os.kill(spare.pid, signal.SIGSTOP)
            write_misbehaving(tmp_path / "n", "isolation: {fork: false}\n")
            scan = asyncio.create_task(rig.gateway.look(rig.gateway.registries[0]))
            await rig.until(lambda: spare not in spares.values(), "the load to take the spare")
            os.kill(spare.pid, signal.SIGKILL)
            await scan
            await rig.until(lambda: rig.status("n")["state"] == "ready", "the load")
            assert (await rig.ask("n", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def test_crash_while_idle(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            pid = rig.status("m")["pid"]
            os.kill(pid, signal.SIGKILL)
            calls = [rig.call("m", [[n, 1]]) for n in range(20)]
            assert await ended(calls) == ["ok"] * 20
            await rig.until(lambda: rig.status("m")["restarts"] == 1, "the restart")

    asyncio.run(main())


def test_idempotent_calls_are_run_again_alone(tmp_path: Path) -> None:
    for stateful in ("false", "true"):
        write_misbehaving(
            tmp_path / stateful,
            "isolation: process\nidempotent: true\n"
            f"options: {{delay: 0.05, stateful: {stateful}}}\n",
        )

    async def crash(rig: Rig, model: str) -> list[Any]:
        opener = rig.call(model, [[0, 0]])
        await asyncio.sleep(0)
        # One batch behind it: 20 that are good, and one that is poison.
        batch = [rig.call(model, [[n, n]]) for n in range(20)]
        poison = rig.call(model, [[NUMBERS["kill"], 0]])
        assert (await ended([opener, *batch, poison]))[-1] == "InferenceFailed"
        return [opener, *batch, poison]

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await crash(rig, "true")
            await rig.until(lambda: rig.status("true")["restarts"] == 1, "the restart")
            _, *batch, poison = calls = await crash(rig, "false")
            assert [outcome(call) for call in calls[:-1]] == ["ok"] * 21
            await rig.until(lambda: rig.status("false")["restarts"] == 2, "the restarts")
            for n, call in enumerate(batch):
                assert call.result().outputs[0].array.tolist() == [[2 * n, 2 * n]]
            with pytest.raises(InferenceFailed, match="a second time"):
                poison.result()

    asyncio.run(main())


def test_crash_while_loading_is_a_failed_load(tmp_path: Path) -> None:
    words = {"segfault": "SIGSEGV", "leave": LAST_WORDS, "fail": "ValueError: told to"}
    for deed in words:
        (write_misbehaving(tmp_path / deed) / deed).touch()
    write_misbehaving(tmp_path / "other")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for deed in words:
                assert rig.status(deed)["state"] == "failed"
                assert words[deed] in rig.cause(deed)
                assert "\n" not in rig.cause(deed)
            assert (await rig.ask("other", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def test_crash_loop_ends_in_failed(tmp_path: Path) -> None:
    folder = write_misbehaving(tmp_path / "m", "isolation: {max_restarts: 2}\n")
    write_misbehaving(tmp_path / "other")

    async def main() -> None:
        flags = {"lifecycle.retry_seconds": 0.2, "registry.watch": False}
        async with Rig(tmp_path, **flags) as rig:
            async with bystander(rig, "other"):
                (folder / "leave").touch()
                os.kill(rig.status("m")["pid"], signal.SIGKILL)
                await asyncio.sleep(0)
                calls = [rig.call("m", [[n, 1]]) for n in range(10)]
                assert set(await ended(calls)) == {"ModelNotReady"}
                await rig.until(lambda: rig.status("m")["state"] == "failed", "failed")
                assert LAST_WORDS in rig.cause("m")
                assert "exited with code 3" in rig.cause("m")
            (folder / "leave").unlink()
            # The lifecycle tries a failed load again by itself.
            await rig.until(lambda: rig.status("m")["state"] == "ready", "ready again")
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def test_deadlines_and_bounds_hold_while_there_is_no_child(tmp_path: Path) -> None:
    yaml = "isolation: {hang_seconds: 2}\nbatching: {queue: {max_rows: 8}}\n"
    write_misbehaving(tmp_path / "m", yaml)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            hung = rig.call("m", [[NUMBERS["hold"], 0]])
            dispatcher = rig.dispatcher("m")
            await rig.until(lambda: dispatcher.pending and not dispatcher.waiting, "it to run")
            late = rig.call("m", [[1, 1]], deadline=0.05)
            rest = [rig.call("m", [[n, 1]]) for n in range(7)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="8 rows"):
                await rig.call("m", [[9, 9]])
            with pytest.raises(DeadlineExceeded, match="was not executed"):
                await late
            assert not hung.done()
            gone = rest.pop()
            gone.cancel()
            assert await ended([hung, *rest]) == ["InferenceFailed"] + ["ok"] * 6
            stats = dispatcher.stats
            assert stats.failures == {"BACKEND": 1, "REJECTED": 2, "CANCELED": 1}
            assert dispatcher.pending == 0
            await rig.until(lambda: not len(dispatcher._arena), "the requests' memory")

    asyncio.run(main())


def test_memory_limit(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m", "isolation: {memory_mb: 600}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            with pytest.raises(SluiceError):
                await rig.call("m", [[NUMBERS["eat"], 0]])
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def test_stream(tmp_path: Path) -> None:
    yaml = "isolation: process\noptions: {decoupled: true, instances: 2}\n"
    write_misbehaving(tmp_path / "m", yaml)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            dispatcher = rig.dispatcher("m")
            got = [r.outputs[0].array[0, 1] async for r in rig.stream("m", [0, 50])]
            assert got == list(range(50))
            assert [r async for r in rig.stream("m", [0, 0])] == []
            # A reader that leaves ends the model's work, and its place is free again.
            for _ in range(4):
                answers = rig.stream("m", [0, 1_000_000])
                async for response in answers:
                    if response.outputs[0].array[0, 1] == 20:
                        break
                await answers.aclose()  # type: ignore[attr-defined]
            assert len([r async for r in rig.stream("m", [0, 30])]) == 30
            # A slow reader is waited for, not buffered for.
            slow = rig.stream("m", [0, 1000])
            await anext(slow)
            await asyncio.sleep(0.1)
            assert dispatcher._model.child.channel.incoming._leases.__len__() <= 16
            await slow.aclose()  # type: ignore[attr-defined]
            await rig.until(lambda: dispatcher.pending == 0, "the end of all streams")

    asyncio.run(main())


def test_crash_while_streaming(tmp_path: Path) -> None:
    deeds = ("segfault", "kill", "hang")
    for deed in deeds:
        write_misbehaving(
            tmp_path / deed, "isolation: {hang_seconds: 0.5}\noptions: {decoupled: true}\n"
        )

    async def crash(rig: Rig, deed: str) -> None:
        running = rig.stream(deed, [NUMBERS[deed], 20])
        assert (await anext(running)).outputs[0].array[0, 1] == 0
        waiting = rig.stream(deed, [0, 5])
        follower = asyncio.create_task(anext(waiting))
        count = 1
        with pytest.raises(InferenceFailed, match="died while it ran this"):
            count += len([response async for response in running])
        assert count <= 20
        assert (await follower).outputs[0].array[0, 1] == 0
        assert len([r async for r in waiting]) == 4
        await rig.until(lambda: rig.dispatcher(deed).pending == 0, "the end")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for deed in deeds:
                await crash(rig, deed)

    asyncio.run(main())


@pytest.mark.parametrize("idempotent", [False, True])
def test_kills_at_random_moments(tmp_path: Path, idempotent: bool) -> None:
    """Every caller gets its own rows, or, if they may have run already, an error."""
    yaml = f"isolation: {{max_restarts: 100}}\nidempotent: {str(idempotent).lower()}\n"
    write_misbehaving(tmp_path / "m", yaml + "options: {instances: 2}\nmax_batch_size: 8\n")
    chance = random.Random(5)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            dispatcher = rig.dispatcher("m")
            lost = answered = 0
            done = False

            async def ask(number: int) -> None:
                nonlocal lost, answered
                while not done:
                    rows = [[number, chance.randrange(500)]] * chance.randrange(1, 20)
                    call = rig.call("m", rows)
                    if chance.random() < 0.05:
                        await asyncio.sleep(chance.random() / 200)
                        call.cancel()
                        await asyncio.wait([call])
                        continue
                    try:
                        array = (await call).outputs[0].array
                    except InferenceFailed as error:
                        assert "died while it ran this" in str(error)
                        lost += 1
                    else:
                        assert array.tolist() == [[2 * a, 2 * b] for a, b in rows]
                        answered += 1

            asking = [asyncio.create_task(ask(n)) for n in range(60)]
            for crash in range(1, 4):
                before = answered
                await rig.until(lambda b=before: answered > b + 200, "some answers")
                await asyncio.sleep(chance.random() / 50)
                os.kill(rig.status("m")["pid"], signal.SIGKILL)
                await rig.until(
                    lambda n=crash: (
                        rig.status("m")["restarts"] == n and rig.status("m")["pid"] is not None
                    ),
                    "the restart",
                )
            done = True
            await asyncio.gather(*asking)
            # At most two batches were running, and requests in slices.
            assert lost <= (0 if idempotent else 3 * 60)
            assert dispatcher.pending == 0
            await rig.until(lambda: not len(dispatcher._arena), "the requests' memory")

    asyncio.run(main())


def test_models_in_children_call_others(tmp_path: Path) -> None:
    def calling(name: str, model: str) -> None:
        yaml = f"isolation: process\nmax_batch_size: 0\noptions: {{call: {model}, delay: 0.005}}\n"
        write_misbehaving(tmp_path / name, yaml)

    calling("asks_here", "here")
    calling("asks_streams", "streams")
    calling("asks_nobody", "nobody")
    write(tmp_path / "here" / "1", adding(1.0, width=2))
    write_misbehaving(
        tmp_path / "streams", "isolation: process\noptions: {decoupled: true, instances: 2}\n"
    )

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for _ in range(3):
                assert (await rig.ask("asks_here", [[CALL, 5]])).tolist() == [[CALL + 1, 6]]
            assert (await rig.ask("asks_here", [[DESCRIBE, 0]])).tolist() == [[1, 2]]
            with pytest.raises(SluiceError, match="nobody"):
                await rig.call("asks_nobody", [[CALL, 5]])
            with pytest.raises(SluiceError, match="nobody"):
                await rig.call("asks_nobody", [[DESCRIBE, 5]])
            total = sum(range(100))
            assert (await rig.ask("asks_streams", [[STREAM, 100]])).tolist() == [[STREAM, total]]
            for _ in range(3):
                answer = await rig.ask("asks_streams", [[LEAVE, 1_000_000]])
                assert answer.tolist() == [[LEAVE, sum(range(10))]]
            await rig.until(lambda: rig.dispatcher("streams").pending == 0, "the streams' end")
            # The answers' memory comes back too, in both directions.
            for name in ("asks_here", "asks_streams", "streams"):
                arena = rig.dispatcher(name)._arena
                await rig.until(lambda a=arena: not len(a), "the memory")
            assert rig.gateway.admission.in_flight == 0

    asyncio.run(main())


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    models = ("a", "b")
    for name in models:
        write_misbehaving(tmp_path / name, "isolation: {spare: false}\n")
    ourselves = psutil.Process()

    async def main() -> None:
        async with Rig(tmp_path, **{"registry.poll_seconds": 0.1}) as rig:
            baseline = 0
            for cycle in range(5):
                old = {name: rig.status(name)["pid"] for name in models}
                for name in models:
                    assert (await rig.ask(name, [[1, 2]])).tolist() == [[2, 4]]
                    os.utime(tmp_path / name / "1" / "model.mis", (cycle + 1, cycle + 1))
                await rig.gateway.look(rig.gateway.registries[0])

                def swapped(name: str, old: dict[str, int] = old) -> bool:
                    versions = rig.gateway.facts.status(name)["versions"]
                    return [v["state"] for v in versions] == ["ready"] and (
                        versions[0]["pid"] != old[name]
                    )

                await rig.until(lambda s=swapped: all(map(s, models)), "the new load")
                assert not any(map(psutil.pid_exists, old.values()))
                if cycle == 1:
                    baseline = ourselves.num_fds()
            # One kept by each model in each cycle since would be six.
            assert ourselves.num_fds() <= baseline + 3

    asyncio.run(main())
    assert not [p for p in ourselves.children(recursive=True) if p.status() == "zombie"]


def test_spare_takes_over(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m", "isolation: {fork: false}\n")
    write_misbehaving(tmp_path / "without", "isolation: {spare: false}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            spares = rig.gateway.nursery._spares
            await rig.until(lambda: len(spares) == 1, "the spare")
            (spare,) = spares.values()
            os.kill(rig.status("m")["pid"], signal.SIGKILL)
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]
            assert rig.status("m")["pid"] == spare.pid
            await rig.until(lambda: spare not in spares.values() and spares, "another spare")
            # One that dies is not missed before it is needed.
            (spare,) = spares.values()
            os.kill(spare.pid, signal.SIGKILL)
            await rig.until(lambda: not spares, "the end of the spare")
            os.kill(rig.status("m")["pid"], signal.SIGKILL)
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]
            os.kill(rig.status("without")["pid"], signal.SIGKILL)
            assert (await rig.ask("without", [[1, 2]])).tolist() == [[2, 4]]
            # The last model of its kind takes the spare along.
            await rig.until(lambda: spares, "another spare")
            (spare,) = spares.values()
            (tmp_path / "m" / "1" / "model.mis").unlink()
            (tmp_path / "m" / "1").rmdir()
            await rig.gateway.look(rig.gateway.registries[0])
            await rig.until(lambda: spare.ended.is_set(), "the end of the spare")

    asyncio.run(main())


def test_own_environment_beside_the_gateways(tmp_path: Path) -> None:
    """Two models with conflicting versions of one package serve side by side."""
    folder = environment("old-numpy")
    env = f"env: {{PYTHONPATH: '{ROOT}', FLAVOUR: old}}"
    write_misbehaving(tmp_path / "old", f"isolation: {{python: '{folder}', {env}}}\n")
    write_misbehaving(tmp_path / "new")
    lacking = f"isolation: {{python: '{folder}', {env}}}\nruntime: onnx\n"
    write(tmp_path / "lacking" / "1", adding(1.0, width=2))
    (tmp_path / "lacking" / "model.yaml").write_text(lacking)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            assert rig.gateway.facts.metadata("old").platform == "misbehaving, numpy 1.26.4, old"
            ours = f"misbehaving, numpy {np.__version__}, "
            assert rig.gateway.facts.metadata("new").platform == ours
            for name in ("old", "new"):
                assert (await rig.ask(name, [[1, 2]])).tolist() == [[2, 4]]
            assert rig.status("lacking")["state"] == "failed"
            pip = folder / "bin" / "pip"
            assert f"type: {pip} install 'onnxruntime>=1.20'" in rig.cause("lacking")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("isolation", "said"),
    [
        ("{python: nowhere}", "isolation.python: 'nowhere' is no virtual environment"),
        ("{cpus: 4096}", "isolation.cpus is 4096, but the gateway may use"),
        ("{env: {'A=B': c}}", "cannot be an environment variable"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, isolation: str, said: str) -> None:
    write_misbehaving(tmp_path / "m", f"isolation: {isolation}\n")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            assert rig.status("m")["state"] == "failed"
            assert said in rig.cause("m")

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ["{python: /bin/sh}", "{env: {LD_PRELOAD: evil.so}}"])
def test_settings_that_choose_code_need_trust(tmp_path: Path, isolation: str) -> None:
    write_misbehaving(tmp_path / "m", f"isolation: {isolation}\n")

    async def main() -> None:
        async with Rig(tmp_path, **{"trust.code": ("/elsewhere",)}) as rig:
            assert rig.status("m")["state"] == "failed"
            assert "its source is not trusted" in rig.cause("m")

    asyncio.run(main())


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which a gateway finds our runtime, as if it were installed."""
    folder = tmp_path / "plugin" / "misbehaving-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[sluicegate.runtimes]\nmisbehaving = tests.support.misbehaving:MisbehavingRuntime\n"
    )
    return {"PYTHONPATH": f"{ROOT}:{tmp_path / 'plugin'}"}


def test_command_line_shows_the_last_words(tmp_path: Path, plugin: dict[str, str]) -> None:
    models = tmp_path / "models"
    folder = write_misbehaving(models / "m", "isolation: {max_restarts: 1}\n")
    write_misbehaving(models / "other")
    later = {"lifecycle.retry_seconds": 600, "registry.watch": "false"}
    gateway = GatewayProcess(tmp_path, [models], environment=plugin, settings=later)
    try:
        (folder / "leave").touch()
        os.kill(gateway.get("/admin/v1/models/m")["versions"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: gateway.get("/admin/v1/models/m")["state"] == "failed", "failed")
        command = [sys.executable, "-m", "gateway", "models", "--url", gateway.http, "--json"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        (version,) = json.loads(shown.stdout)["models"][0]["versions"]
        assert version["state"] == "failed"
        assert LAST_WORDS in version["cause"]
        assert f"] {LAST_WORDS}" in gateway.log()
    finally:
        assert gateway.stop() == 0


def test_children_end_with_a_gateway_that_is_killed(tmp_path: Path, plugin: dict[str, str]) -> None:
    models = tmp_path / "models"
    write_misbehaving(models / "m")
    write_misbehaving(models / "hung")
    write_misbehaving(models / "loading")
    (models / "loading" / "1" / "hang").touch()
    (models / "m" / "1" / "start").touch()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    gateway = GatewayProcess(
        tmp_path,
        [models],
        grpc_server="grpcio",
        environment={**plugin, "TMPDIR": str(temporary)},
        ready=False,
    )
    try:

        def states() -> dict[str, Any]:
            found = gateway.get("/admin/v1/models")["models"]
            return {each["name"]: each for each in found}

        wait_until(lambda: states()["m"]["state"] == states()["hung"]["state"] == "ready", "models")
        hang = threading.Thread(target=post, args=(gateway, "hung", NUMBERS["hold"]), daemon=True)
        hang.start()
        wait_until(lambda: states()["hung"]["versions"][0]["pending"] == 1, "the hang")
        load = threading.Thread(target=lambda: [post(gateway, "m", 1) for _ in range(100_000)])
        load.daemon = True
        load.start()
        wait_until(lambda: states()["m"]["versions"][0]["requests"] > 20, "some load")
        children = psutil.Process(gateway.pid).children(recursive=True)
        assert len(children) >= 4
        assert "sleep" in [child.name() for child in children]
    finally:
        gateway.process.kill()
        gateway.process.wait()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert not alive
    # The grpcio server behind no native one has no socket there either.
    assert not list(temporary.iterdir())
    assert not list(Path("/dev/shm").glob("*sluice*"))


COUNTING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily("my_calls", "Mine.", pb_utils.MetricFamily.COUNTER)
        self.calls = family.Metric({"model": "counting"})

    def execute(self, requests):
        self.calls.increment(len(requests))
        x = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each)]) for each in x]
"""


def test_metrics_of_a_models_own(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "counting"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(COUNTING)
    (folder / "config.pbtxt").write_text(
        'backend: "python"\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 2 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 2 ] } ]\n'
    )
    (folder / "model.yaml").write_text("isolation: process\n")
    gateway = GatewayProcess(tmp_path, [tmp_path / "models"])

    def counted() -> float | None:
        with urllib.request.urlopen(f"{gateway.http}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith('my_calls{model="counting"} '):
                    return float(line.rpartition(" ")[2])
        return None

    try:
        wait_until(lambda: counted() is not None, "the metric")
        before = counted() or 0.0
        for _ in range(3):
            post(gateway, "counting", 1)
        wait_until(lambda: counted() == before + 3, "the count")
        os.kill(gateway.get("/admin/v1/models/counting")["versions"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: counted() != before + 3, "the count to end with the process")
    finally:
        assert gateway.stop() == 0


def test_idle_memory_is_kept_while_a_child_loads(tmp_path: Path) -> None:
    """One that was shown a segment must not be told that it is gone before it listens."""
    write_misbehaving(tmp_path / "m")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            dispatcher = rig.dispatcher("m")
            os.kill(rig.status("m")["pid"], signal.SIGKILL)
            await rig.until(lambda: not dispatcher._up, "the crash")
            calls = [rig.call("m", np.ones((64, 2))) for _ in range(8)]
            await asyncio.sleep(0)
            arena = dispatcher._arena
            block = arena.take(4 << 20)  # a segment of its own, idle from now on
            arena.give(block)
            many = len(arena.segments)
            assert not dispatcher._up
            dispatcher._trim()
            assert len(arena.segments) == many
            assert await ended(calls) == ["ok"] * 8
            dispatcher._trim()
            assert len(arena.segments) < many
            assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]

    asyncio.run(main())


def post(gateway: GatewayProcess, model: str, value: float) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 0]}]}
    request = urllib.request.Request(
        f"{gateway.http}/v2/models/{model}/infer", json.dumps(body).encode()
    )
    with contextlib.suppress(OSError, http.client.HTTPException):
        urllib.request.urlopen(request).close()


def test_close_does_not_wait_for_what_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.isolation.process.CLOSE_SECONDS", 0.2)
    write_misbehaving(tmp_path / "m")

    async def main() -> int:
        async with Rig(tmp_path) as rig:
            pid: int = rig.status("m")["pid"]
            os.kill(pid, signal.SIGSTOP)
            return pid

    pid = asyncio.run(main())
    assert not psutil.pid_exists(pid)
