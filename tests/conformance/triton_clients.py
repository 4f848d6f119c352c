"""The four clients of tritonclient behind one face, so that a test is written once.

The clients are the published ones, unchanged; `TritonClient.call` only waits for those that
are asyncio.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from tests.support.gateway import GatewayProcess

MODULES: dict[str, ModuleType] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}


class TritonClient:
    """One of tritonclient's four clients."""

    def __init__(self, flavor: str, gateway: GatewayProcess) -> None:
        self.flavor = flavor
        self.gateway = gateway
        self.is_http = flavor.startswith("http")
        self.module = MODULES[flavor]
        self._loop = asyncio.new_event_loop()
        address = gateway.http_address if self.is_http else gateway.grpc
        self.client = self._run(self._make(address))

    async def _make(self, address: str) -> Any:
        # aiohttp and grpc.aio want to be made where they are used.
        return self.module.InferenceServerClient(address)

    def _run(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method and waits for its result."""

        async def wait() -> Any:
            result = getattr(self.client, method)(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        if self.flavor.endswith("aio"):
            return self._run(wait())
        return getattr(self.client, method)(*arguments, **options)

    def json(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method; its answer as JSON, in which gRPC leaves out zeros."""
        if not self.is_http:
            options["as_json"] = True
        return self.call(method, *arguments, **options)

    def tensor(self, name: str, kind: str, array: np.ndarray[Any, Any], **how: Any) -> Any:
        """An InferInput. `how` may be `binary_data`, over HTTP."""
        tensor = self.module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array, **(how if self.is_http else {}))
        return tensor

    def outputs(self, *names: str, **how: Any) -> list[Any]:
        """InferRequestedOutputs. `how` may be `binary_data`, over HTTP."""
        make = self.module.InferRequestedOutput
        return [make(name, **(how if self.is_http else {})) for name in names]

    def add(self, values: Iterable[float], **options: Any) -> Any:
        """Infers with the model `add`."""
        x = np.array([list(values)], np.float32)
        return self.call("infer", "add", [self.tensor("x", "FP32", x)], **options)

    def status(self, http: int, grpc: str) -> str:
        """How this client names a status."""
        return str(http) if self.is_http else f"StatusCode.{grpc}"

    def close(self) -> None:
        self.call("close")
        # aiohttp closes its sockets a moment later.
        self._run(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
