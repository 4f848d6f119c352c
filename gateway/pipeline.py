"""The path of a request, from bytes to bytes, in one place.

        servers      codecs                  core                       runtimes
    bytes → http, grpc → decode → admit → route → batch → execute → onnx, ...
    bytes ← http, grpc ← encode ←──────── split rows ←─────

A server makes a `Call` (its subclass knows socket and codec) and hands it to
`Pipeline.serve`. That function is the way in. The way out begins in
`Batcher._finished`, which cuts the outputs into rows and calls `Call.reply`; there the
codec encodes and the server writes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Final, Protocol, TypeVar

from gateway.admission import Admission, refuse_sequences
from gateway.call import Call
from gateway.errors import Cancelled, InferenceFailed, NotLoaded, SluiceError, Unsupported
from gateway.routing import Route, Router
from gateway.servable import Servable
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.stats import error_name, failure_reason
from gateway.tensors import InferenceRequest, InferenceResponse

MANY_ANSWERS: Final = (
    "model '{0}' may answer a request any number of times; call it by ModelStreamInfer (gRPC) "
    "or by POST /v2/models/{0}/generate_stream (or /generate)"
)

Answers = AsyncGenerator[InferenceResponse]
"""Answers to one call, as they come."""
T = TypeVar("T")


class Demanded(Protocol):
    """Loads models that are loaded on demand: `gateway.lifecycle.demand.Demand`."""

    def wait(
        self, call: Call, error: NotLoaded, again: Callable[[SluiceError | None], object]
    ) -> None:
        """Keeps the call until its model is loaded (`again(None)`) or cannot be (`again(error)`).

        Raises `SluiceError`, in which case nothing is kept.
        """

    async def loaded(self, error: NotLoaded, *, inner: bool = False) -> None:
        """The same for questions that are no calls. Raises `SluiceError`."""


class Late:
    """What `Pipeline.serve` will have returned once the model is loaded; to be awaited, or heard
    of at once by `then`."""

    def __init__(self) -> None:
        self._given: asyncio.Future[Answers | None] = asyncio.get_running_loop().create_future()
        self._then: Callable[[Answers | None], object] | None = None

    def then(self, heard: Callable[[Answers | None], object]) -> None:
        """Instead of awaiting it: `heard` is called in the moment in which the call is served."""
        self._then = heard

    def give(self, answers: Answers | Late | None) -> None:
        """Called once."""
        if isinstance(answers, Late):  # it has to wait again
            answers.then(self.give)
        elif self._then is not None:
            self._then(answers)
        elif not self._given.done():
            self._given.set_result(answers)

    def __await__(self) -> Generator[object, None, Answers | None]:
        return self._given.__await__()


class Pipeline:
    """Everything between the servers and the runtimes. Owned by the event loop."""

    def __init__(self, router: Router[Servable], admission: Admission) -> None:
        self.router = router
        self.admission = admission
        self.demand: Demanded | None = None
        """Where calls wait for models that are loaded on demand."""
        self.refused: Counter[tuple[str, str]] = Counter()
        """(protocol, code) → requests that ended before a version was chosen."""

    def serve(
        self, call: Call, *, many: bool = False, waited: bool = False
    ) -> Answers | Late | None:
        """Takes a call all the way into its servable's waiting line; never raises.

        `many` says that the caller takes any number of answers. Those of a decoupled model are
        then returned, to be iterated over and closed; every other call ends by itself. `waited`:
        it was let in before, and has waited for its model to be loaded or for its body to be read.
        """
        servable: Servable | None = None
        try:
            # bytes → tensors; the codec checks all that can be checked without the model
            request = call.request if waited and hasattr(call, "request") else call.decode()
            call.request = request
            # limits and draining
            self.admission.admit(request, inner=call.inner or waited)
            # model, version or label, routing key → servable, from one immutable snapshot
            servable, call.route = call.chosen or self.choose(call, request)
            if request.parameters is not None and not servable.model.sequences:
                refuse_sequences(request.parameters)
            if servable.decoupled:
                if not many:
                    raise Unsupported(MANY_ANSWERS.format(request.model))
                return servable.dispatcher.stream(call)
            # shape and datatype against the model, queue bounds, deadline; then it waits, runs
            # in a batch, and ends in call.reply (encode, write) or call.fail
            servable.dispatcher.submit(call)
        except NotLoaded as error:
            return self._later(call, error, many=many)
        except SluiceError as error:
            self._refuse(call, servable, error)
        except Exception as error:
            log.exception("unexpected error on the request path")
            self._refuse(call, servable, InferenceFailed(f"internal error: {type(error).__name__}"))
        return None

    def choose(self, call: Call, request: InferenceRequest) -> tuple[Servable, str]:
        """The servable that answers, and why it. Raises `NotFound` or `ModelNotReady`; `NotLoaded`
        where it would answer once it is loaded."""
        route = self.router.table.get(request.model)
        if route is None:
            route = self.router.route(request.model)
        if request.version:
            return route.named(request.version)
        if route.only is not None:
            return route.default(None)
        return route.default(routing_key(call, request, route))

    def _later(self, call: Call, error: NotLoaded, *, many: bool) -> Late | None:
        """Nothing is loaded that could answer: the call waits until something is."""
        late = Late() if many else None

        def again(failure: SluiceError | None) -> None:
            answers = None
            if failure is not None:
                self._refuse(call, None, failure)
            else:
                answers = self.serve(call, many=many, waited=True)
            if late is not None:
                late.give(answers)

        if self.demand is None:
            self._refuse(call, None, error)
            return None
        try:
            self.demand.wait(call, error, again)
        except SluiceError as refusal:
            self._refuse(call, None, refusal)
            return None
        return late

    async def when_loaded(self, ask: Callable[[], T], *, inner: bool = False) -> T:
        """What `ask` says, once the model that it is about is loaded; `inner`: another model wants
        to know. Raises `SluiceError`."""
        while True:
            try:
                return ask()
            except NotLoaded as error:
                if self.demand is None:
                    raise
                await self.demand.loaded(error, inner=inner)

    def refuse(self, call: Call, error: SluiceError) -> None:
        """Ends a call that was found wanting before it could be served."""
        self._refuse(call, None, error)

    def _refuse(self, call: Call, servable: Servable | None, error: SluiceError) -> None:
        if servable is None:
            self.refused[call.protocol, error_name(error)] += 1
            seconds = 0.0
        else:
            seconds = max(servable.dispatcher.now() - call.arrived, 0.0)
            servable.stats.failed(call.protocol, error_name(error), failure_reason(error), seconds)
        if access_log.share:
            version = "" if servable is None else servable.version
            access_log.record(call, version, error_name(error), seconds)
        call.fail(error)

    async def stream(self, call: AwaitableCall, *, waited: bool = False) -> Answers:
        """The answers to a call, as they come: one from most models, any number from decoupled
        ones. Closing the iterator cancels the call. Raises `SluiceError`."""
        served = self.serve(call, many=True, waited=waited)
        answers = None if isinstance(served, Late) else served
        try:
            if isinstance(served, Late):
                answers = await served
            if answers is None:
                yield await call.future
                return
            async for response in answers:
                response.route = call.route
                yield response
        except (SluiceError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("unexpected error in a stream of answers")
            raise InferenceFailed(f"internal error: {type(error).__name__}") from None
        finally:
            if answers is not None:
                await answers.aclose()
            call.cancel()

    async def infer(self, call: AwaitableCall, *, waited: bool = False) -> InferenceResponse:
        """Serves a call and waits for its end; being cancelled cancels it."""
        self.serve(call, waited=waited)
        try:
            return await call.future
        except asyncio.CancelledError:
            call.cancel()
            raise


def routing_key(call: Call, request: InferenceRequest, route: Route[Servable]) -> str | None:
    """The value that keeps a caller on one version, if the request carries one."""
    sticky = route.sticky
    if sticky.header is not None:
        key = call.header(sticky.header)
        if key:
            return key
    if sticky.parameter is not None and request.parameters is not None:
        value = request.parameters.get(sticky.parameter)
        if value is not None:
            return str(value)
    return None


class AwaitableCall(Call):
    """A call whose end is a future: for streams, for tests."""

    __slots__ = ("future", "headers")

    def __init__(
        self,
        request: InferenceRequest | None,
        arrived: float,
        deadline: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(arrived, deadline)
        if request is not None:
            self.request = request
        self.headers = headers or {}
        self.future: asyncio.Future[InferenceResponse] = asyncio.get_running_loop().create_future()

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def _replied(self, response: InferenceResponse) -> None:
        if not self.future.done():
            self.future.set_result(response)

    def _failed(self, error: SluiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def _cancelled(self) -> None:
        if not self.future.done():
            self.future.set_exception(Cancelled("the caller went away"))
            self.future.exception()  # nobody has to be there to hear it
