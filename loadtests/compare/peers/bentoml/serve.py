"""BentoML: one service with two batchable APIs a model, ``/MODEL/json`` and ``/MODEL/raw``."""

from __future__ import annotations

from typing import Any

import bentoml
from _bentoml_sdk.io_models import IORootModel
from onnx_serving import RAW, SHAPE_HEADER, Onnx, settings, shape_text, to_json
from starlette.requests import Request
from starlette.responses import Response

GIVEN = settings()


def descriptors(model: Onnx, name: str) -> dict[str, type[Any]]:
    """What reads requests and writes answers, for each of the two APIs.

    BentoML's own tensors are JSON lists that pydantic checks number by number; classes of one's
    own may do both themselves, and it is several times as fast.
    """

    class Json(IORootModel[Any]):
        __root_input__ = True

        @classmethod
        async def from_http_request(cls, request: Request, serde: Any) -> Any:
            return cls.model_construct(root=model.from_json(await request.body()))

        @classmethod
        async def to_http_response(cls, obj: Any, serde: Any) -> Response:
            return Response(to_json(name, obj), media_type="application/json")

    class Raw(IORootModel[Any]):
        __root_input__ = True

        @classmethod
        async def from_http_request(cls, request: Request, serde: Any) -> Any:
            return cls.model_construct(root=model.from_raw(await request.body()))

        @classmethod
        async def to_http_response(cls, obj: Any, serde: Any) -> Response:
            return Response(obj.tobytes(), media_type=RAW, headers={SHAPE_HEADER: shape_text(obj)})

    return {"json": Json, "raw": Raw}


def api(model: Onnx, name: str, form: str, spec: type[Any]) -> Any:
    """One batchable API: the rows of all requests of a batch come joined, and leave so."""

    def infer(self: Any, x: Any, /) -> Any:
        return model.run(x)

    infer.__name__ = infer.__qualname__ = f"{name}_{form}"
    return bentoml.api(
        infer,
        route=f"/{name}/{form}",
        input_spec=spec,
        output_spec=spec,
        batchable=True,
        max_batch_size=GIVEN["max_batch_size"],
        max_latency_ms=GIVEN["max_latency_ms"],
    )


def members() -> dict[str, Any]:
    """The APIs of all models."""
    found: dict[str, Any] = {}
    for name, path in GIVEN["models"].items():
        model = Onnx(path, GIVEN["threads"])
        for form, spec in descriptors(model, name).items():
            found[f"{name}_{form}"] = api(model, name, form, spec)
    return found


service = bentoml.service(
    name="models",
    workers=GIVEN["workers"],
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    http={"host": "127.0.0.1", "port": GIVEN["port"]},
    monitoring={"enabled": False},
)(type("Models", (), members()))
