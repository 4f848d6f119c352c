"""What a Python model is told about itself, and how it calls other models of the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidRequest, printable
from gateway.tensors import (
    BYTES,
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    datatype_of,
)
from runtimes.interface import Artifact, Description, Host

ON_A_LOOP: Final = "would block the event loop; use: await context.{0}_async(...)"


class Context:
    """Given to `load`. `call` and its kin are for use at any time, from any thread."""

    def __init__(self, artifact: Artifact, device: str, gpu: int | None, instance: int) -> None:
        self.model: str = artifact.model
        self.version: str = artifact.version
        self.folder: Path = artifact.path
        """Where ``model.py`` and the files beside it are."""
        self.options: dict[str, Any] = dict(artifact.settings.options)
        """As model.yaml has them, or config.pbtxt's ``parameters``."""
        self.device = device
        """``cpu`` or ``gpu``."""
        self.gpu = gpu
        """Index of the GPU this instance should use; `None` on a CPU."""
        self.instance = instance
        """0 for the first instance."""
        self.log = logging.getLogger(f"sluice.models.{artifact.model}")
        self._host: Host | None = artifact.host

    def call(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float = 0.0,
    ) -> dict[str, Array]:
        """The outputs of another model of this gateway; `timeout` in seconds, 0 = none.

        Raises `gateway.errors.SluiceError`, such as `UnknownModel` or `DeadlineExceeded`.
        """
        refuse_on_loop("call")
        request = make_request(model, inputs, version, outputs, parameters, timeout)
        return arrays_of(self._call(request).result())

    async def call_async(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float = 0.0,
    ) -> dict[str, Array]:
        """As `call`, for coroutines; being cancelled cancels it."""
        request = make_request(model, inputs, version, outputs, parameters, timeout)
        return arrays_of(await asyncio.wrap_future(self._call(request)))

    def stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float = 0.0,
    ) -> Iterator[dict[str, Array]]:
        """The answers of a model that gives any number of them."""
        refuse_on_loop("stream")
        request = make_request(model, inputs, version, outputs, parameters, timeout)
        for response in self._known_host().stream(request):
            yield arrays_of(response)

    async def stream_async(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float = 0.0,
    ) -> AsyncIterator[dict[str, Array]]:
        """As `stream`, for coroutines."""
        request = make_request(model, inputs, version, outputs, parameters, timeout)
        responses = self._known_host().stream(request)
        try:
            while (response := await asyncio.to_thread(next, responses, None)) is not None:
                yield arrays_of(response)
        finally:
            await asyncio.to_thread(close_iterator, responses)

    def describe(self, model: str, version: str = "") -> Description:
        """What another model takes and gives. Raises `ModelNotReady`, `UnknownModel`, ..."""
        return self._known_host().describe(model, version)

    def _call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        return self._known_host().call(request)

    def _known_host(self) -> Host:
        if self._host is None:
            raise InferenceFailed("other models cannot be called: no gateway runs here")
        return self._host


def refuse_on_loop(name: str) -> None:
    """Raises `RuntimeError` inside a coroutine, where waiting would block everything else."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"context.{name}() {ON_A_LOOP.format(name)}")


def close_iterator(iterator: Iterator[object]) -> None:
    """Closes it if it can be closed."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


def make_request(
    model: str,
    inputs: Mapping[str, Any],
    version: str = "",
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Parameter] | None = None,
    timeout: float = 0.0,
) -> InferenceRequest:
    """A request from arrays. Raises `InvalidRequest` for what is no tensor."""
    return InferenceRequest(
        model,
        str(version),
        tuple(tensor_of(name, value) for name, value in inputs.items()),
        outputs=tuple(outputs),
        parameters=dict(parameters) if parameters else None,
        timeout_us=round(timeout * 1e6),
    )


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor over a copy of nothing: whoever changes the array later changes the request."""
    array = np.asarray(value)
    try:
        kind = datatype_of(array)
    except KeyError:
        raise InvalidRequest(
            f"input '{printable(name)}': numpy's {array.dtype} has no datatype in the protocol"
        ) from None
    if kind is BYTES and array.dtype.kind != "O":
        array = array.astype(object)
    elif kind is not BYTES and array.dtype != kind.dtype:
        array = array.astype(kind.dtype)
    if kind is not BYTES and not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return Tensor(name, kind, array.shape, array=array)


def arrays_of(response: InferenceResponse) -> dict[str, Array]:
    """The outputs of a response by name."""
    return {tensor.name: tensor.array for tensor in response.outputs}
