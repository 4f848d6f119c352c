"""The OpenAPI 3.0 document of everything that the HTTP port answers.

A test compares its paths with the routes, so that neither can run ahead of the other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from gateway import __version__
from gateway.tensors import DATATYPES

Json = dict[str, Any]


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, *required: str, text: str = "") -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if text:
        schema["description"] = text
    return schema


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_STRING: Json = {"type": "string"}
_BOOL: Json = {"type": "boolean"}
_NUMBER: Json = {"type": "number"}
_MESSAGE: Json = {"type": "string", "description": "Why; kept in the history."}
_PARAMETERS: Json = {
    "type": "object",
    "additionalProperties": {"oneOf": [_STRING, _NUMBER, _BOOL]},
}
_DATA: Json = {"type": "array", "items": {}, "description": "Row-major, flat or nested."}
_TENSOR: Json = {
    "name": _STRING,
    "shape": _list({"type": "integer"}),
    "datatype": {"type": "string", "enum": list(DATATYPES)},
    "parameters": _PARAMETERS,
    "data": _DATA,
}
_SPEC = _object(
    {"name": _STRING, "datatype": _STRING, "shape": _list({"type": "integer"})},
    text="-1 is a dimension of any size.",
)

SCHEMAS: Json = {
    "Error": _object({"error": _STRING}, "error"),
    "InferenceRequest": _object(
        {
            "id": _STRING,
            "parameters": _PARAMETERS,
            "inputs": _list(_object(_TENSOR, "name", "shape", "datatype")),
            "outputs": _list(_object({"name": _STRING, "parameters": _PARAMETERS}, "name")),
        },
        "inputs",
    ),
    "InferenceResponse": _object(
        {
            "model_name": _STRING,
            "model_version": _STRING,
            "id": _STRING,
            "parameters": _PARAMETERS,
            "outputs": _list(_object(_TENSOR)),
        },
    ),
    "ModelMetadata": _object(
        {
            "name": _STRING,
            "versions": _list(_STRING),
            "platform": _STRING,
            "inputs": _list(_SPEC),
            "outputs": _list(_SPEC),
        }
    ),
    "Split": _object(
        {
            "weights": {"type": "object", "additionalProperties": _NUMBER},
            "stable": _STRING,
            "sticky": _object({"header": _STRING, "parameter": _STRING}),
            "message": _MESSAGE,
        },
        "weights",
    ),
    "Promote": _object({"version": _STRING, "message": _MESSAGE}, "version"),
    "Labels": _object(
        {"labels": {"type": "object", "additionalProperties": _STRING}, "message": _MESSAGE},
        "labels",
    ),
    "SomeLabels": _object(
        {
            "labels": {"type": "object", "additionalProperties": {**_STRING, "nullable": True}},
            "message": _MESSAGE,
        },
        "labels",
        text="null takes a label away; others stay.",
    ),
    "Rollback": _object(
        {
            "to": {
                "type": "integer",
                "description": "Entry of the history to go back to, as it was after it.",
            },
            "message": _MESSAGE,
        }
    ),
    "Change": _object({"message": _MESSAGE}),
    "RepositoryRequest": _object(
        {
            "parameters": {
                "type": "object",
                "additionalProperties": {"oneOf": [_STRING, _NUMBER, _BOOL]},
                "description": "Load: config (a ModelConfig as JSON text), file:<version>/<name> "
                "(base64), version. Unload: unload_dependents, version.",
            }
        }
    ),
    "RepositoryAnswer": _object({"name": _STRING, "load": _BOOL, "unload": _BOOL}),
    "V1Request": _object({"instances": _list({}), "inputs": {}}, text="One of the two."),
    "V1Response": _object({"predictions": {}}),
    "GenerateRequest": {
        "type": "object",
        "properties": {"id": _STRING, "parameters": _PARAMETERS},
        "additionalProperties": {},
        "description": "Keys named like an input are tensors (a value or a list), all others are "
        "parameters.",
    },
    "GenerateResponse": {
        "type": "object",
        "properties": {"model_name": _STRING, "model_version": _STRING, "id": _STRING},
        "additionalProperties": {},
        "description": "Beside these, each output by its name: a value or a flat list.",
    },
    "Invocations": _object(
        {
            "dataframe_split": _object({"columns": _list(_STRING), "data": _list(_list({}))}),
            "dataframe_records": _list({"type": "object"}),
            "instances": _list({}),
            "inputs": {},
            "params": {"type": "object"},
        },
        text="Exactly one of the four, and params beside; or CSV.",
    ),
    "Deployment": _object(
        {
            "name": _STRING,
            "uri": _STRING,
            "flavor": _STRING,
            "settings": {"type": "object"},
            "traffic": {"type": "object"},
            "message": _STRING,
        }
    ),
    "Anything": {"type": "object"},
}

_INFER_HEADERS = [
    ("Inference-Header-Content-Length", "Length of the JSON part where binary tensors follow it."),
    ("x-request-timeout-ms", "Milliseconds after which the answer is of no use any more."),
    ("x-sluice-key", "Keeps all requests with this key on one version of a split."),
]


def _operation(
    tag: str,
    summary: str,
    answer: str = "Anything",
    body: str | None = None,
    statuses: tuple[int, ...] = (),
) -> Json:
    responses: Json = {
        "200": {
            "description": "OK",
            "content": {"application/json": {"schema": _ref(answer)}},
        }
    }
    for status in statuses:
        responses[str(status)] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    operation: Json = {"tags": [tag], "summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return operation


_STATUSES = {
    400: "Something in the request is wrong",
    403: "Not allowed",
    404: "No such model or version",
    409: "It does not fit the state that the model is in, such as paused",
    413: "Too large",
    429: "Too much work; see Retry-After",
    501: "Not supported",
    503: "Not ready",
    504: "The deadline passed in the queue",
}
_HISTORY_QUERY = (
    ("limit", "Most entries, from 1 to 1000; 50 unless given."),
    ("until", "Leaves out what came later: ISO 8601, or words such as '2 hours ago'."),
    ("at", "Answers what was served at that moment instead; not with the other two."),
)
_INFER = (400, 404, 413, 429, 501, 503, 504)
_CHANGE = (400, 403, 404, 409)


def _paths() -> Json:
    paths: Json = {
        "/": {"get": _operation("server", "KServe V1 liveness")},
        "/v2": {"get": _operation("server", "Name, version and extensions of the server")},
        "/v2/health/live": {"get": _operation("server", "Is the process alive?")},
        "/v2/health/ready": {
            "get": _operation("server", "Is it ready for traffic?", statuses=(503,))
        },
        "/v2/models": {"get": _operation("models", "Names of the models that can answer")},
        "/v2/models/stats": {"get": _operation("models", "Statistics of every version")},
        "/v2/repository/index": {
            "post": _operation("models", "Every version and its state", body="Anything"),
            "get": _operation("models", "Every version and its state"),
        },
        "/v1/models": {"get": _operation("v1", "Names of the models that can answer")},
        "/v1/models/{model}": {"get": _operation("v1", "Is the model ready?", statuses=(404, 503))},
        "/v1/models/{model}:predict": {
            "post": _operation("v1", "Inference by KServe V1", "V1Response", "V1Request", _INFER)
        },
        "/metrics": {"get": _operation("server", "Metrics in Prometheus' text format")},
        "/admin/v1/status": {"get": _operation("admin", "The gateway", statuses=(403,))},
        "/admin/v1/models": {"get": _operation("admin", "Every model", statuses=(403,))},
        "/admin/v1/models/{model}": {"get": _operation("admin", "One model", statuses=(403, 404))},
        "/admin/v1/models/{model}/versions/{version}/log": {
            "get": _operation(
                "admin", "What happened in a version's last loads", statuses=(403, 404)
            )
        },
        "/admin/v1/models/{model}/split": {
            "put": _operation("admin", "Set the split", body="Split", statuses=_CHANGE)
        },
        "/admin/v1/models/{model}/promote": {
            "post": _operation(
                "admin", "Give one version everything", body="Promote", statuses=(*_CHANGE, 503)
            )
        },
        "/admin/v1/models/{model}/labels": {
            "put": _operation("admin", "Set the labels", body="Labels", statuses=_CHANGE),
            "patch": _operation("admin", "Set some labels", body="SomeLabels", statuses=_CHANGE),
        },
        "/admin/v1/models/{model}/rollback": {
            "post": _operation(
                "admin",
                "Take the latest change of split or labels back",
                body="Rollback",
                statuses=(*_CHANGE, 503),
            )
        },
    }
    for path, summary in (
        ("/admin/v1/history", "Who changed what of any model, when and why"),
        ("/admin/v1/models/{model}/history", "Who changed what of a model, when and why"),
    ):
        operation = _operation("admin", summary, statuses=(400, 403, 404, 503))
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": _STRING, "description": text}
            for name, text in _HISTORY_QUERY
        ]
        paths[path] = {"get": operation}
    admin = "/admin/v1/models/{model}"
    for what, text in (
        ("pause", "Keep it as it is, whatever its registry says"),
        ("resume", "End a pause"),
        ("load", "Load it, and wait until it is ready"),
        ("unload", "Take it out of the routes"),
        ("versions/{version}/load", "Load one version, and wait until it is ready"),
        ("versions/{version}/unload", "Take one version out of the routes"),
    ):
        change = _operation("admin", text, body="Change", statuses=(*_CHANGE, 503))
        change["requestBody"]["required"] = False
        paths[f"{admin}/{what}"] = {"post": change}
    repository = "/v2/repository/models/{model}"
    for prefix in (repository, f"{repository}/versions/{{version}}"):
        for what, text in (("load", "Load"), ("unload", "Unload")):
            change = _operation(
                "models",
                f"{text} (if control.enabled)",
                "RepositoryAnswer",
                "RepositoryRequest",
                (*_CHANGE, 413, 503),
            )
            change["requestBody"]["required"] = False
            paths[f"{prefix}/{what}"] = {"post": change}
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths[prefix] = {
            "get": _operation("models", "Metadata", "ModelMetadata", statuses=(404, 503))
        }
        paths[f"{prefix}/ready"] = {
            "get": _operation("models", "Can it answer?", statuses=(404, 503))
        }
        paths[f"{prefix}/config"] = {
            "get": _operation("models", "Configuration in Triton's form", statuses=(404, 503))
        }
        paths[f"{prefix}/stats"] = {"get": _operation("models", "Statistics", statuses=(404, 503))}
        infer = _operation(
            "inference", "Inference", "InferenceResponse", "InferenceRequest", _INFER
        )
        infer["parameters"] = [
            {"name": name, "in": "header", "schema": _STRING, "description": text}
            for name, text in _INFER_HEADERS
        ]
        paths[f"{prefix}/infer"] = {"post": infer}
        for name, summary in (
            ("generate", "Inference with flat JSON, exactly one answer"),
            ("generate_stream", "The same with any number of answers, as server-sent events"),
        ):
            operation = _operation(
                "inference", summary, "GenerateResponse", "GenerateRequest", _INFER
            )
            operation["parameters"] = [
                {"name": header, "in": "header", "schema": _STRING, "description": text}
                for header, text in _INFER_HEADERS[1:]
            ]
            if name == "generate_stream":
                content = operation["responses"]["200"]["content"]
                content["text/event-stream"] = content.pop("application/json")
            paths[f"{prefix}/{name}"] = {"post": operation}
    paths |= _mlflow_paths()
    for path, operations in paths.items():
        named = [name for name in ("model", "version", "name") if f"{{{name}}}" in path]
        for operation in operations.values():
            operation.setdefault("parameters", [])
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": _STRING} for name in named
            ] + operation["parameters"]
    return paths


def _mlflow_paths() -> Json:
    """What MLflow's clients ask for."""
    base = "/admin/v1/deployments"
    changes = (400, 403, 404, 409, 503)
    paths: Json = {
        "/ping": {"get": _operation("mlflow", "Is it ready for traffic?", statuses=(503,))},
        "/health": {"get": _operation("mlflow", "Is it ready for traffic?", statuses=(503,))},
        "/version": {"get": _operation("mlflow", "The MLflow whose scoring protocol this is")},
        base: {
            "get": _operation("admin", "Every deployment", statuses=(403,)),
            "post": _operation("admin", "Deploy a model by its URI", body="Deployment",
                               statuses=changes),
        },
        f"{base}/{{name}}": {
            "get": _operation("admin", "One deployment", statuses=(403, 404)),
            "put": _operation("admin", "Another version, settings or split", body="Deployment",
                              statuses=changes),
            "delete": _operation("admin", "Unload and forget it", statuses=changes),
        },
    }  # fmt: skip
    for prefix in ("", "/models/{model}", "/models/{model}/versions/{version}"):
        paths[f"{prefix}/invocations"] = {
            "post": _operation(
                "mlflow", "Inference by MLflow's scoring protocol", "V1Response", "Invocations",
                _INFER,
            )
        }  # fmt: skip
    return paths


@cache
def document() -> Json:
    """The OpenAPI document."""
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Sluicegate",
            "version": __version__,
            "description": "Open Inference Protocol, KServe V1, admin API and metrics. gRPC is on "
            "a port of its own.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {"schemas": SCHEMAS},
    }
