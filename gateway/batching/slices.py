"""A request with more rows than a batch may hold: cut up, run, put together again."""

from __future__ import annotations

from collections.abc import Callable

from gateway.batching.assembly import join_slices
from gateway.call import Call, Owner
from gateway.errors import InferenceFailed, SluiceError
from gateway.tensors import InferenceRequest, InferenceResponse


class Slice(Call):
    """Some rows of a larger request, waiting and running like any other call."""

    __slots__ = ("_index", "_whole")

    def __init__(self, whole: Slices, index: int, request: InferenceRequest) -> None:
        parent = whole.parent
        super().__init__(parent.arrived, parent.deadline)
        self.caller_deadline = getattr(parent, "caller_deadline", parent.deadline)
        self.request = request
        self._whole = whole
        self._index = index

    @property
    def parent(self) -> Call:
        """The larger request's call."""
        return self._whole.parent

    def _replied(self, response: InferenceResponse) -> None:
        self._whole.answered(self._index, response)

    def _failed(self, error: SluiceError) -> None:
        self._whole.failed(error)


class Slices:
    """The slices of one call; stands in the batcher's place for whoever cancels the call."""

    def __init__(
        self,
        parent: Call,
        limit: int,
        succeed: Callable[[Call, InferenceResponse], None],
        fail: Callable[[Call, SluiceError], None],
        owner: Owner,
    ) -> None:
        self.parent = parent
        self._owner = owner
        self.elsewhere = owner.elsewhere
        self._succeed = succeed
        self._fail = fail
        request = parent.request
        starts = range(0, request.rows, limit)
        self.slices = [
            Slice(
                self,
                index,
                InferenceRequest(
                    request.model,
                    request.version,
                    tuple(t.rows(start, min(start + limit, request.rows)) for t in request.inputs),
                    id=request.id,
                    outputs=request.outputs,
                    parameters=request.parameters,
                    signature=request.signature,
                    priority=request.priority,
                ),
            )
            for index, start in enumerate(starts)
        ]
        self._answers: list[InferenceResponse | None] = [None] * len(self.slices)
        self._missing = len(self.slices)

    def answered(self, index: int, response: InferenceResponse) -> None:
        self._answers[index] = response
        self._missing -= 1
        if not self._missing:
            parts = [part for part in self._answers if part is not None]
            try:
                outputs = join_slices(parts)
            except ValueError as error:
                text = f"the answers to the slices of a large request do not fit together: {error}"
                self._fail(self.parent, InferenceFailed(text))
                return
            first = parts[0]
            whole = InferenceResponse(
                first.model,
                first.version,
                outputs,
                id=self.parent.request.id,
                # Those of one slice; nothing is known of how others could be joined.
                parameters=first.parameters,
            )
            self._succeed(self.parent, whole)

    def failed(self, error: SluiceError) -> None:
        """One slice failing fails the whole; the others need not run."""
        self.cancel()
        self._fail(self.parent, error)

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        self.cancel()
        # The slices have left the lines by themselves; the whole was never in one.
        self._owner.cancelled(call, waiting=False)

    def cancel(self) -> None:
        for piece in self.slices:
            piece.cancel()
