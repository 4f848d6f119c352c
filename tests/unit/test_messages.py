"""The wire contract: our definitions equal those that existing clients were compiled from."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from gateway.codecs import messages

ROOT = Path(__file__).resolve().parents[2]

_TRITON_FILES = """
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
import sys
found = descriptor_pb2.FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(found.file.add())
sys.stdout.buffer.write(found.SerializeToString())
"""


def run_python(code: str) -> bytes:
    """Output of ``code`` in a process of its own: what it imports stays out of this one."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT
    ).stdout


def flatten(files: Any) -> dict[str, Any]:
    """Every message, enum and method by its full name, in a form without order or layout."""
    found: dict[str, Any] = {}

    def add_enum(enum: Any, prefix: str) -> None:
        found[f"{prefix}.{enum.name}"] = {value.name: value.number for value in enum.value}

    def add_message(message: Any, prefix: str) -> None:
        name = f"{prefix}.{message.name}"
        found[name] = {
            field.name: (
                field.number,
                field.type,
                field.label,
                field.type_name,
                field.proto3_optional,
                message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
                field.options.SerializeToString(),
            )
            for field in message.field
        }
        for nested in message.nested_type:
            add_message(nested, name)
        for enum in message.enum_type:
            add_enum(enum, name)

    for file in files:
        assert (file.package, file.syntax) == ("inference", "proto3")
        for message in file.message_type:
            add_message(message, file.package)
        for enum in file.enum_type:
            add_enum(enum, file.package)
        for service in file.service:
            for method in service.method:
                found[f"rpc {service.name}.{method.name}"] = (
                    method.input_type,
                    method.output_type,
                    method.client_streaming,
                    method.server_streaming,
                )
    return found


def committed_set() -> Any:
    data = Path(messages.__file__).with_name("descriptors.binpb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data)


def test_committed_descriptors_are_a_fresh_compilation() -> None:
    spec = importlib.util.spec_from_file_location("protos_compile", ROOT / "protos" / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_bytes() == module.compile_descriptors(), (
        "run: python protos/compile.py"
    )


def test_definitions_equal_tritonclients() -> None:
    triton = flatten(descriptor_pb2.FileDescriptorSet.FromString(run_python(_TRITON_FILES)).file)
    ours = flatten(committed_set().file)
    assert {name for name in ours if name not in triton} == set()
    different = {name: (ours[name], triton[name]) for name in ours if ours[name] != triton[name]}
    # Triton's are empty; KServe's clients look for fields in them.
    assert different.keys() == {
        "inference.RepositoryModelLoadResponse",
        "inference.RepositoryModelUnloadResponse",
    }
    # ModelConfig is complete: nothing that it can reach is missing.
    reachable = flatten([committed_set().file[0]])
    assert len(reachable) > 50
    missing = [name for name in triton if name.startswith("inference.Model") and name not in ours]
    assert missing == []


@pytest.mark.parametrize(
    "imports",
    [
        "import gateway.codecs.messages, tritonclient.grpc",
        "import tritonclient.grpc, gateway.codecs.messages",
        "import gateway.codecs.messages; from kserve import InferenceGRPCClient",
        "from kserve import InferenceGRPCClient; import gateway.codecs.messages",
    ],
)
def test_shares_a_process_with_other_clients(imports: str) -> None:
    code = f"{imports}\nfrom gateway.codecs.messages import ModelInferRequest as R\n"
    code += "print(R.FromString(R(model_name='m').SerializeToString()).model_name)"
    assert run_python(code).strip().endswith(b"m")


def test_import_is_light() -> None:
    code = "import sys, json, gateway.codecs.messages; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run_python(code))
    assert [
        name for name in loaded if name.split(".")[0] in {"grpc", "numpy", "tritonclient"}
    ] == []


def test_every_method_has_its_classes() -> None:
    assert set(messages.METHODS) == {
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    }
    for method in messages.METHODS.values():
        assert method.path == f"/{messages.SERVICE}/{method.name}"
        assert (
            method.client_streaming
            == method.server_streaming
            == (method.name == "ModelStreamInfer")
        )
    infer = messages.METHODS["ModelInfer"]
    assert infer.request is messages.ModelInferRequest
    assert infer.response is messages.ModelInferResponse


def test_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        messages.message_class("NoSuchMessage")
