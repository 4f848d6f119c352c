"""A small inference server over gRPC and HTTP that misbehaves as it is told.

Its model ``add`` gives ``y = x + 1``; the first value of ``x`` chooses what else happens (see
`Server.act`). As a module it runs in a thread; as ``python -m tests.support.stand_in`` it is a
process that can be killed, and prints its two ports.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from aiohttp import web

from gateway.codecs.messages import METHODS, SERVICE
from tests.support.gateway import ROOT

Status = grpc.StatusCode

SLOW, UNAVAILABLE, EXHAUSTED, INVALID, MISSING, LATE, BROKEN, LISTED = range(101, 109)
"""First values of x; others are answered at once."""
CODES = {
    UNAVAILABLE: (Status.UNAVAILABLE, 503, "not now"),
    EXHAUSTED: (Status.RESOURCE_EXHAUSTED, 429, "too much to do"),
    INVALID: (Status.INVALID_ARGUMENT, 400, "x is wrong\nin /srv/secret/model.py"),
    MISSING: (Status.NOT_FOUND, 404, "no such model"),
    LATE: (Status.DEADLINE_EXCEEDED, 504, "too late"),
    BROKEN: (Status.INTERNAL, 500, "broken in /srv/secret/model.py"),
    LISTED: (Status.PERMISSION_DENIED, 403, "you may not"),
}
MODEL = {
    "name": "add",
    "versions": ["1"],
    "platform": "stand_in",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}


class Server:
    """Both servers, on the running loop."""

    def __init__(self) -> None:
        self.ready = True
        self.model_ready = True
        self.refuses = False
        """Answer every inference request with UNAVAILABLE (503)."""
        self.calls: list[dict[str, Any]] = []
        """Headers of each inference request, and what became of it under ``end``."""
        self.extensions: list[str] = []
        self.unasked = False
        """Whether it has no route for the question if it is ready, by HTTP."""
        self.says_nothing = False
        """Whether what it says of itself is an error."""
        self.questions: list[tuple[str, dict[str, str]]] = []
        """What else it was asked, by gRPC method or HTTP path, with the headers."""
        self.tls: tuple[Path, Path] | None = None
        """Certificate and key."""
        self._broken: set[Any] = set()
        """Connections that brought a server error: the next request on one ends it, as where a
        framework closes it a moment later."""
        self.grpc_port = self.http_port = 0

    async def start(self, grpc_port: int = 0, http_port: int = 0) -> None:
        self._grpc = grpc.aio.server()
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name in ("ServerReady", "ModelReady", "ModelMetadata", "ServerMetadata")
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self.infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self.stream)
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        address, context = f"127.0.0.1:{grpc_port}", None
        if self.tls is None:
            self.grpc_port = self._grpc.add_insecure_port(address)
        else:
            certificate, key = self.tls
            pair = (key.read_bytes(), certificate.read_bytes())
            self.grpc_port = self._grpc.add_secure_port(
                address, grpc.ssl_server_credentials([pair])
            )
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate, key)
        await self._grpc.start()

        @web.middleware
        async def listen(request: web.Request, handler: Any) -> Any:
            if request.method == "GET":
                headers = {name.lower(): value for name, value in request.headers.items()}
                self.questions.append((request.path, headers))
            return await handler(request)

        app = web.Application(middlewares=[listen])
        app.router.add_get("/v2", self.http_server)
        app.router.add_get("/v2/health/ready", self.http_ready)
        app.router.add_get("/v2/models/add", self.http_model)
        app.router.add_get("/v2/models/add/ready", self.http_model_ready)
        app.router.add_post("/v2/models/add/infer", self.http_infer)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", http_port, ssl_context=context)
        await site.start()
        self.http_port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._grpc.stop(None)
        await self._runner.cleanup()

    async def act(self, first: float, headers: dict[str, str]) -> tuple[Any, int, str] | None:
        """What happens besides adding; an error if the request is not to be answered."""
        call: dict[str, Any] = dict(headers, end="")
        self.calls.append(call)
        if self.refuses:
            return CODES[UNAVAILABLE]
        if first == SLOW:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                call["end"] = "cancelled"
                raise
        call["end"] = "answered"
        return CODES.get(int(first))

    # --- gRPC

    async def ServerReady(self, payload: bytes, context: Any) -> bytes:
        self.asked("ServerReady", context)
        return message("ServerReady", ready=self.ready)

    async def ModelReady(self, payload: bytes, context: Any) -> bytes:
        self.asked("ModelReady", context)
        request = METHODS["ModelReady"].request.FromString(payload)
        if request.name != "add":
            await context.abort(Status.NOT_FOUND, f"unknown model '{request.name}'")
        return message("ModelReady", ready=self.model_ready)

    async def ModelMetadata(self, payload: bytes, context: Any) -> bytes:
        self.asked("ModelMetadata", context)
        return message("ModelMetadata", **MODEL)

    def asked(self, what: str, context: Any) -> None:
        self.questions.append((what, dict(context.invocation_metadata())))

    async def ServerMetadata(self, payload: bytes, context: Any) -> bytes:
        self.asked("ServerMetadata", context)
        return message("ServerMetadata", name="stand-in", version="1", extensions=self.extensions)

    async def infer(self, payload: bytes, context: Any) -> bytes:
        request = METHODS["ModelInfer"].request.FromString(payload)
        x = np.frombuffer(request.raw_input_contents[0], np.float32)
        error = await self.act(float(x[0]), dict(context.invocation_metadata()))
        if error is not None:
            await context.abort(error[0], error[2])
        return answer(request, x).SerializeToString()

    async def stream(self, requests: Any, context: Any) -> Any:
        """As many answers as the second value says, then what the first does."""
        async for payload in requests:
            request = METHODS["ModelInfer"].request.FromString(payload)
            x = np.frombuffer(request.raw_input_contents[0], np.float32)
            for number in range(int(x[1])):
                yield message("ModelStreamInfer", infer_response=answer(request, x + number))
            error = await self.act(float(x[0]), dict(context.invocation_metadata()))
            if error is not None and error[0] is Status.UNAVAILABLE:
                await context.abort(error[0], error[2])
            if error is not None:
                yield message("ModelStreamInfer", error_message=error[2])

    # --- HTTP

    async def http_server(self, request: web.Request) -> web.Response:
        if self.says_nothing:
            raise web.HTTPInternalServerError
        return web.json_response(
            {"name": "stand-in", "version": "1", "extensions": self.extensions}
        )

    async def http_ready(self, request: web.Request) -> web.Response:
        if self.unasked:
            raise web.HTTPNotFound
        return web.json_response({"ready": self.ready}, status=200 if self.ready else 503)

    async def http_model_ready(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "add", "ready": self.model_ready})

    async def http_model(self, request: web.Request) -> web.Response:
        return web.json_response(MODEL)

    async def http_infer(self, request: web.Request) -> web.Response:
        if request.transport in self._broken:
            request.transport.abort()
        tree = await request.json()
        x = np.array(tree["inputs"][0]["data"], np.float32).ravel()
        headers = {name.lower(): value for name, value in request.headers.items()}
        error = await self.act(float(x[0]), headers)
        if error is not None:
            if error[1] == 500:
                self._broken.add(request.transport)
            return web.json_response({"error": error[2]}, status=error[1])
        y = {"name": "y", "datatype": "FP32", "shape": tree["inputs"][0]["shape"]}
        return web.json_response(
            {"model_name": "add", "outputs": [{**y, "data": (x + 1).tolist()}]}
        )


def answer(request: Any, x: Any) -> Any:
    return METHODS["ModelInfer"].response(
        model_name="add",
        model_version="1",
        id=request.id,
        outputs=[{"name": "y", "datatype": "FP32", "shape": list(request.inputs[0].shape)}],
        raw_output_contents=[(x + np.float32(1)).tobytes()],
    )


def message(method: str, **fields: Any) -> bytes:
    data: bytes = METHODS[method].response(**fields).SerializeToString()
    return data


class StandIn(Server):
    """A `Server` in a thread of this process."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__()
        self.tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wait(self.start)

    def _wait(self, work: Callable[..., Any], *arguments: int) -> None:
        asyncio.run_coroutine_threadsafe(work(*arguments), self._loop).result(30)

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def pause(self) -> None:
        """Closes its ports."""
        self._wait(self.stop)

    def resume(self) -> None:
        """Opens them again, the same ones."""
        self._wait(self.start, self.grpc_port, self.http_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._wait(self.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Process:
    """A stand-in that can be killed."""

    def __init__(self, *ports: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stand_in", *map(str, ports)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.ports = json.loads(self._process.stdout.readline())
        self.urls = {
            "grpc": f"grpc://127.0.0.1:{self.ports[0]}",
            "http": f"http://127.0.0.1:{self.ports[1]}",
        }

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


async def main() -> None:
    server = Server()
    await server.start(*map(int, sys.argv[1:]))
    print(json.dumps([server.grpc_port, server.http_port]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
