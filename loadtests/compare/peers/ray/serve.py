"""Ray Serve: one application a model; raw rows or Open Inference Protocol, HTTP and gRPC."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import ray
from onnx_serving import RAW, SHAPE_HEADER, Onnx, settings, shape_text, to_json
from ray import serve
from ray.serve.config import gRPCOptions
from starlette.requests import Request
from starlette.responses import Response
from tritonclient.grpc import service_pb2

GIVEN = settings()
SERVICER = "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
DTYPES = {"FP32": np.float32, "INT64": np.int64}


@serve.deployment(
    max_ongoing_requests=GIVEN["max_ongoing_requests"],
    ray_actor_options={"num_cpus": 0.1},  # all models fit in; nothing is limited by this
)
class Model:
    """One model; `infer` is what Ray Serve batches."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._onnx = Onnx(path, GIVEN["threads"])

    @serve.batch(
        max_batch_size=GIVEN["max_batch_size"], batch_wait_timeout_s=GIVEN["batch_wait_timeout_s"]
    )
    async def infer(self, rows: list[Any]) -> list[Any]:
        """One call for the batch."""
        answers: list[Any] = self._onnx.run_all(rows)
        return answers

    async def __call__(self, request: Request) -> Response:
        """JSON or raw rows, by the content type; answers in kind."""
        body = await request.body()
        if request.headers.get("content-type") == RAW:
            y = await self.infer(self._onnx.from_raw(body))
            return Response(y.tobytes(), media_type=RAW, headers={SHAPE_HEADER: shape_text(y)})
        y = await self.infer(self._onnx.from_json(body))
        return Response(to_json(self._name, y), media_type="application/json")

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802  # the name of the gRPC method
        """One raw input, one raw output."""
        (tensor,) = request.inputs
        x = np.frombuffer(request.raw_input_contents[0], DTYPES[tensor.datatype])
        y = await self.infer(x.reshape(tuple(tensor.shape)))
        answer = service_pb2.ModelInferResponse(model_name=self._name)
        answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
        answer.raw_output_contents.append(y.tobytes())
        return answer


def main() -> None:
    """Serves until told to stop."""
    stop = threading.Event()
    deployment: Any = Model  # the decorator has made a deployment of the class
    ray.init(
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=GIVEN["temp"],
        _node_ip_address="127.0.0.1",
        object_store_memory=GIVEN["object_store_bytes"],
    )
    # Behind `ray.init`, which puts handlers of its own there.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": GIVEN["port"]},
            grpc_options=gRPCOptions(port=GIVEN["grpc_port"], grpc_servicer_functions=[SERVICER]),
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        for name, path in GIVEN["models"].items():
            replicas = {"num_replicas": GIVEN["replicas"][name]}
            bound = deployment.options(**replicas).bind(name, path)
            serve.run(bound, name=name, route_prefix=f"/{name}")
        stop.wait()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
