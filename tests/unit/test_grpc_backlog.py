"""The native gRPC server in overload, on a front whose calls are made up."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.admission import Admission
from gateway.config import LimitsConfig
from gateway.servers import grpc_native
from gateway.servers.shedding import BURST

CANCELLED = 1


class Front:
    """Gives what is put in `coming`."""

    bound_port = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.coming: list[tuple[Any, ...]] = []
        self.failed: dict[int, tuple[int, str, Any]] = {}
        self.answered: list[int] = []

    def set_fallback(self, path: str) -> None: ...

    def recv_batch_details(self, most: int, timeout_ms: int | None = None) -> list[Any]:
        taken, self.coming = self.coming[:most], self.coming[most:]
        return taken

    def fail(self, call_id: int, code: int, text: str, trailers: Any = None) -> bool:
        self.failed[call_id] = code, text, trailers
        return True

    def respond(self, call_id: int, payload: bytes, *args: Any) -> bool:
        self.answered.append(call_id)
        return True


class Pipeline:
    """Keeps what it is to serve."""

    def __init__(self) -> None:
        self.admission = Admission(LimitsConfig())
        self.refused: Counter[tuple[str, str]] = Counter()
        self.served: list[Any] = []

    def serve(self, call: Any) -> None:
        self.served.append(call)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(grpc_native, "NativeGrpcFront", Front)

    async def make() -> Any:
        return grpc_native.NativeGrpcServer(
            "127.0.0.1:0",
            Pipeline(),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            SimpleNamespace(handlers={"ServerLive": lambda payload: b"live"}, slow={}),  # type: ignore[arg-type]
            LimitsConfig(),
            io_threads=1,
            poll_us=0,
            fallback="",
        )

    return asyncio.run(make())


def call(number: int, left: float | None = None, method: int = 0) -> tuple[Any, ...]:
    return (grpc_native.EVENT_CALL, number, method, b"", None, ((), f"peer-{number % 16}", left))


def cancel(number: int) -> tuple[Any, ...]:
    return (grpc_native.EVENT_CALL + CANCELLED, number, 0, None, None, None)


def turn(server: Any) -> None:
    server._arrived(server.front.recv_batch_details(BURST, 0))


def ids(server: Any) -> list[int]:
    return [each._id for each in server.pipeline.served]


def test_one_burst_is_begun_in_a_turn_and_all_that_came_is_seen(server: Any) -> None:
    server.front.coming = [call(number, left=1.0) for number in range(1000)]
    turn(server)
    assert server.front.coming == []
    assert ids(server) == list(range(BURST))
    for _ in range(4):
        turn(server)
    assert ids(server) == list(range(1000))
    # They came together, whenever they were begun; and so does their deadline.
    assert len({each.arrived for each in server.pipeline.served}) == 1
    assert len({each.deadline for each in server.pipeline.served}) == 1
    assert server.pipeline.admission.in_flight == 1000
    turn(server)
    assert not server._backlog.flooded


def test_who_goes_away_while_waiting_is_not_served(server: Any) -> None:
    server.front.coming = [*(call(number) for number in range(600)), cancel(500), cancel(3)]
    turn(server)
    server.front.coming = [cancel(501), cancel(7)]
    for _ in range(3):
        turn(server)
    assert set(range(600)) - set(ids(server)) == {3, 500, 501}
    ended = [each._id for each in server.pipeline.served if each.state == 3]
    assert ended == [7]  # it had begun
    assert server.pipeline.admission.in_flight == 596


def test_in_overload_the_newest_are_refused_and_counted(server: Any) -> None:
    server._backlog.overload.limit = 100
    server._backlog.overload.rate = 5000.0
    server._backlog.overload._refused_at = float("inf")
    server._backlog.flooded = True
    server._backlog._peers = Counter()
    server.front.coming = [call(number) for number in range(1000)]
    server.front.coming += [call(1000, method=1)]
    turn(server)
    turn(server)
    assert 100 <= len(ids(server)) < 2 * BURST
    assert server.front.answered == [1000]  # whoever asks how we are is told
    refused = set(range(1000)) - set(ids(server))
    assert server.front.failed.keys() == refused
    assert server.pipeline.refused == {("grpc", "overloaded"): len(refused)}
    code, text, trailers = server.front.failed[999]
    assert (code, trailers) == (8, (("retry-after", "1"),))
    assert "try again later" in text


def test_the_end_of_the_server_tells_those_who_wait(server: Any) -> None:
    server.front.coming = [call(number) for number in range(600)]
    turn(server)
    server.end_calls()
    assert server.front.failed.keys() == set(range(600))
    assert {code for code, _, _ in server.front.failed.values()} == {14}
