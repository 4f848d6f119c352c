"""A stand-in for the gateway that can be told to misbehave: ``--sluice "... --fault swapped"``.

It serves a directory of models as the gateway does (HTTP, gRPC, the success counter), slowly
and with tritonclient's messages, so that the comparison can be tested without the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime
from tritonclient.grpc import service_pb2

FAULTS = ("none", "swapped", "uncounted", "grpc-error", "http-error", "no-counter")
EVERY = 20
"""A fault hits one request in this many, but ``swapped`` hits each."""


class Fake:
    """The models, the counter and the fault."""

    def __init__(self, directory: Path, fault: str) -> None:
        self.fault = fault
        self.sessions = {
            path.parent.parent.name: onnxruntime.InferenceSession(str(path))
            for path in directory.glob("*/1/model.onnx")
        }
        self.counts = dict.fromkeys(self.sessions, 0)
        self.number = itertools.count(1)

    def faulty(self, fault: str) -> bool:
        """Whether this request is one to spoil."""
        return self.fault == fault and next(self.number) % EVERY == 0

    def infer(self, model: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the model, counts, and perhaps spoils the answer."""
        y: npt.NDArray[np.float32] = self.sessions[model].run(["y"], {"x": x})[0]
        if not self.faulty("uncounted"):
            self.counts[model] += 1
        return y + np.float32(0.5) if self.fault == "swapped" else y

    def metrics(self) -> str:
        """The counter in Prometheus' text form."""
        if self.fault == "no-counter":
            return ""
        name = "nv_inference_request_success"
        return "".join(
            f'{name}{{model="{model}",version="1"}} {count}\n'
            for model, count in self.counts.items()
        )


class Answer(NamedTuple):
    """Body, and one header line more."""

    body: bytes
    header: str = ""


def http_answer(fake: Fake, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Answer]:
    """Status and answer."""
    if path == "/metrics":
        return 200, Answer(fake.metrics().encode())
    if not path.endswith("/infer"):
        return 200, Answer(json.dumps({"name": "fake", "version": "0"}).encode())
    if fake.faulty("http-error"):
        return 500, Answer(b'{"error": "as told"}')
    length = headers.get("inference-header-content-length")
    head = json.loads(body[: int(length)] if length else body)
    (tensor,) = head["inputs"]
    if length:
        x = np.frombuffer(body[int(length) :], np.float32).reshape(tensor["shape"])
    else:
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    y = fake.infer(path.split("/")[3], x)
    output: dict[str, object] = {"name": "y", "shape": list(y.shape), "datatype": "FP32"}
    if not length:
        output["data"] = y.ravel().tolist()
        return 200, Answer(json.dumps({"outputs": [output]}).encode())
    output["parameters"] = {"binary_data_size": y.nbytes}
    text = json.dumps({"outputs": [output]}).encode()
    header = f"Inference-Header-Content-Length: {len(text)}\r\n"
    return 200, Answer(text + y.tobytes(), header)


async def serve_http(
    fake: Fake, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One kept-alive connection."""
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = lines[0].split()[1]
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            status, answer = http_answer(fake, path, headers, body)
            start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer.body)}\r\n"
            writer.write(f"{start}{answer.header}\r\n".encode() + answer.body)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def handler(fake: Fake) -> grpc.GenericRpcHandler:
    """``ModelInfer`` alone."""

    async def infer(
        request: service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        if fake.faulty("grpc-error"):
            await context.abort(grpc.StatusCode.INTERNAL, "as told")
        shape = list(request.inputs[0].shape)
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        y = fake.infer(request.model_name, x)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
        answer.raw_output_contents.append(y.tobytes())
        return answer

    method = grpc.unary_unary_rpc_method_handler(
        infer,
        service_pb2.ModelInferRequest.FromString,
        service_pb2.ModelInferResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": method}
    )


async def main() -> None:
    """Serves until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--http", required=True)
    parser.add_argument("--grpc", required=True)
    args = parser.parse_args()
    fake = Fake(args.directory, args.fault)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(fake),))
    server.add_insecure_port(args.grpc)
    await server.start()
    host, port = args.http.split(":")
    await asyncio.start_server(lambda r, w: serve_http(fake, r, w), host, int(port))
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
