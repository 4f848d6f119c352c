"""A request that is cut up is answered as if it had not been."""

from __future__ import annotations

import numpy as np

from gateway.batching.slices import Slices
from gateway.call import Call
from gateway.errors import SluiceError
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor

FP32 = DATATYPES["FP32"]


class Owner:
    elsewhere = False

    def cancelled(self, call: Call, *, waiting: bool) -> None: ...


def test_the_parameters_of_the_first_slice_are_those_of_the_whole() -> None:
    x = np.arange(5, dtype=np.float32).reshape(5, 1)
    parent = Call(0.0)
    request = InferenceRequest("m", "", (Tensor("x", FP32, x.shape, array=x),), id="a")
    parent.request = request
    ended: list[InferenceResponse] = []

    def fail(call: Call, error: SluiceError) -> None:
        raise error

    whole = Slices(parent, 2, lambda _, response: ended.append(response), fail, Owner())
    for index in (2, 1, 0):  # they end in any order
        y = whole.slices[index].request.inputs[0]
        parameters = {"part": index}
        whole.answered(index, InferenceResponse("m", "1", (y,), parameters=dict(parameters)))
    (answer,) = ended
    assert answer.parameters == {"part": 0} and answer.id == "a"
    assert answer.outputs[0].array.tolist() == x.tolist()
