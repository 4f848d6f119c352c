"""What kserve's clients do with a gateway; run as ``python kserve_cases.py HTTP_URL GRPC_ADDRESS``.

A process of its own: kserve and tritonclient define the same protobuf package and cannot be
imported together. Prints a line a case and ends with 1 if one failed.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback

import httpx
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

import gateway.codecs.messages  # noqa: F401  (the gateway's definitions beside kserve's)

V1 = RESTConfig(protocol="v1", timeout=30)
V2 = RESTConfig(protocol="v2", timeout=30)
HTTP = sys.argv[1]
GRPC = sys.argv[2]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def request_of(
    array: np.ndarray, kind: str, model: str = "add", *, binary: bool, **options: object
) -> InferRequest:
    tensor = InferInput("x", list(array.shape), kind)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, [tensor], **options)


# --- REST, V2


async def rest_health() -> None:
    async with InferenceRESTClient(V2) as client:
        assert await client.is_server_live(HTTP) is True
        assert await client.is_server_ready(HTTP) is True
        assert await client.is_model_ready(HTTP, "add") is True
        assert await client.is_model_ready(HTTP, "nothing") is False


async def rest_infer_json() -> None:
    async with InferenceRESTClient(V2) as client:
        for binary_out in (False, True):
            wanted = RequestedOutput("y", {"binary_data": binary_out})
            request = request_of(X, "FP32", binary=False, request_id="a", request_outputs=[wanted])
            response = await client.infer(HTTP, request, model_name="add")
            check(response, "a")


async def rest_infer_binary() -> None:
    async with InferenceRESTClient(V2) as client:
        for binary_out in (False, True):
            wanted = RequestedOutput("y", {"binary_data": binary_out})
            request = request_of(X, "FP32", binary=True, request_id="a", request_outputs=[wanted])
            response = await client.infer(HTTP, request, model_name="add")
            check(response, "a")


async def rest_infer_without_id_or_outputs() -> None:
    async with InferenceRESTClient(V2) as client:
        response = await client.infer(HTTP, request_of(X, "FP32", binary=True), model_name="add")
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), X + 1)


async def rest_infer_dict() -> None:
    """A dict is sent as it is."""
    body = {
        "id": "",
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
    }
    headers: dict[str, str] = {}
    async with InferenceRESTClient(V2) as client:
        response = await client.infer(HTTP, body, model_name="add", response_headers=headers)
    assert response.outputs[0].data == [2, 3, 4, 5]
    assert headers["x-sluice-version"] == "1"


async def rest_strings() -> None:
    texts = np.array([["one", "zwei ü"]], object)
    async with InferenceRESTClient(V2) as client:
        for binary in (False, True):
            request = request_of(texts, "BYTES", "identity_bytes", binary=binary)
            response = await client.infer(HTTP, request, model_name="identity_bytes")
            found = response.outputs[0].as_numpy().ravel().tolist()
            assert [f.decode() if isinstance(f, bytes) else f for f in found] == ["one", "zwei ü"]


async def rest_fp16() -> None:
    halves = np.array([[0.5, 2.0]], np.float16)
    wanted = RequestedOutput("y", {"binary_data": True})
    request = request_of(halves, "FP16", "identity_fp16", binary=True, request_outputs=[wanted])
    async with InferenceRESTClient(V2) as client:
        response = await client.infer(HTTP, request, model_name="identity_fp16")
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), halves)


async def rest_errors() -> None:
    async with InferenceRESTClient(V2) as client:
        try:
            await client.infer(HTTP, request_of(X, "FP32", binary=True), model_name="nothing")
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 404
            assert str(error).startswith("Request for unknown model"), error
        else:
            raise AssertionError("no error")


# --- REST, V1


async def v1_health() -> None:
    async with InferenceRESTClient(V1) as client:
        assert await client.is_server_live(HTTP) is True
        assert await client.is_model_ready(HTTP, "add") is True
        try:
            await client.is_model_ready(HTTP, "nothing")
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 404
        else:
            raise AssertionError("no error")


async def v1_predict() -> None:
    async with InferenceRESTClient(V1) as client:
        answer = await client.infer(HTTP, {"instances": X.tolist()}, model_name="add")
        assert answer == {"predictions": (X + 1).tolist()}
        rows = [{"a": [1, 2], "b": [3, 4]}, {"a": [5, 6], "b": [7, 8]}]
        answer = await client.infer(HTTP, {"instances": rows}, model_name="pair")
        assert answer["predictions"] == [
            {"sum": [4, 6], "difference": [-2, -2]},
            {"sum": [12, 14], "difference": [-2, -2]},
        ]
        columns = {"inputs": {"a": [[1, 2]], "b": [[3, 4]]}}
        answer = await client.infer(HTTP, columns, model_name="pair")
        assert answer["predictions"] == [{"sum": [4, 6], "difference": [-2, -2]}]
        answer = await client.infer(HTTP, {"instances": ["def f():"]}, model_name="text")
        assert answer["predictions"][0]["kind"] == "code", answer


async def v1_errors() -> None:
    async with InferenceRESTClient(V1) as client:
        for model, body, status in (
            ("nothing", {"instances": [[1]]}, 404),
            ("add", {"instances": [[1]]}, 400),
            ("add", {}, 400),
        ):
            try:
                await client.infer(HTTP, body, model_name=model)
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == status, error
            else:
                raise AssertionError("no error")


# --- gRPC


async def grpc_health() -> None:
    async with InferenceGRPCClient(GRPC) as client:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("add") is True


async def grpc_infer() -> None:
    async with InferenceGRPCClient(GRPC) as client:
        for binary in (True, False):
            request = request_of(X, "FP32", binary=binary, request_id="b")
            response = await client.infer(request)
            check(response, "b")
            assert response.model_version == "1"


async def grpc_every_typed_datatype() -> None:
    kinds = {
        "BOOL": np.bool_, "FP32": np.float32, "FP64": np.float64,
        **{f"INT{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
        **{f"UINT{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    }  # fmt: skip
    async with InferenceGRPCClient(GRPC) as client:
        for kind, dtype in kinds.items():
            array = np.array([[0, 1, 1]], dtype)
            for binary in (True, False):
                request = request_of(array, kind, f"identity_{kind.lower()}", binary=binary)
                found = (await client.infer(request)).outputs[0].as_numpy()
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype, kind


async def grpc_strings() -> None:
    texts = np.array([["one", "zwei ü"]], object)
    async with InferenceGRPCClient(GRPC) as client:
        request = request_of(texts, "BYTES", "identity_bytes", binary=True)
        found = (await client.infer(request)).outputs[0].as_numpy().ravel().tolist()
        assert [f.decode() if isinstance(f, bytes) else f for f in found] == ["one", "zwei ü"]


async def grpc_errors() -> None:
    import grpc

    async with InferenceGRPCClient(GRPC) as client:
        try:
            await client.infer(request_of(X, "FP32", "nothing", binary=True))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert error.details().startswith("Request for unknown model")
        else:
            raise AssertionError("no error")


def check(response: object, request_id: str) -> None:
    assert response.id == request_id, response.id
    assert response.model_name == "add"
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), X + 1)


def main() -> int:
    failed = 0
    for name, case in list(globals().items()):
        if not inspect.iscoroutinefunction(case):
            continue
        try:
            asyncio.run(case())
            print(f"{name}: passed")
        except Exception:
            failed += 1
            print(f"{name}: FAILED\n{traceback.format_exc()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
