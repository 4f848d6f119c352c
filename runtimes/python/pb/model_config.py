"""The model's configuration in Triton's JSON form: built from our settings, completed by
``auto_complete_config``, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import DATATYPES, TensorSpec
from runtimes.interface import Artifact
from runtimes.onnx_metadata import Reshape
from runtimes.python.signature import Signature

Config = dict[str, Any]
KINDS: Final = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def config_of(artifact: Artifact, file: str, device: str) -> Config:
    """As Triton would give it to `initialize`. Only what the gateway honours can differ from
    the defaults; everything else was refused when the settings were read."""
    settings = artifact.settings
    config: Config = {
        "name": artifact.model,
        "platform": "",
        "backend": "python",
        "runtime": "",
        "version_policy": _versions(settings),
        "max_batch_size": settings.max_batch_size or 0,
        "input": [_input(tensor) for tensor in settings.inputs],
        "output": [_output(tensor) for tensor in settings.outputs],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [
            {
                "name": f"{artifact.model}_0",
                "kind": KINDS[device],
                "count": settings.instances or 1,
                "gpus": list(settings.gpus) if device == "gpu" else [],
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": file,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {
            name: {"string_value": value if isinstance(value, str) else json.dumps(value)}
            for name, value in sorted(settings.options.items())
        },
        "model_warmup": [],
    }
    if settings.batching.enabled and settings.max_batch_size:
        config["dynamic_batching"] = {
            "preferred_batch_size": list(settings.batching.preferred_sizes),
            "max_queue_delay_microseconds": settings.batching.max_delay_us,
            "preserve_ordering": settings.batching.preserve_ordering,
            "priority_levels": settings.batching.priority_levels,
            "default_priority_level": settings.batching.default_priority,
            "priority_queue_policy": {},
        }
    if settings.decoupled:
        config["model_transaction_policy"] = {"decoupled": True}
    return config


def _versions(settings: ModelSettings) -> Config:
    if settings.versions.specific:
        return {"specific": {"versions": list(settings.versions.specific)}}
    if settings.versions.all:
        return {"all": {}}
    return {"latest": {"num_versions": settings.versions.latest or 1}}


def _type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _tensor(tensor: TensorSettings) -> Config:
    config: Config = {
        "name": tensor.name,
        "data_type": _type(tensor.datatype),
        "dims": list(tensor.dims),
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }
    if tensor.reshape is not None:
        config["reshape"] = {"shape": list(tensor.reshape)}
    return config


def _input(tensor: TensorSettings) -> Config:
    extra = {"format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": tensor.optional}
    return {**_tensor(tensor), **extra}


def _output(tensor: TensorSettings) -> Config:
    return {**_tensor(tensor), "label_filename": tensor.labels or ""}


class ModelConfig:
    """Given to ``auto_complete_config``, which adds to it and returns it.

    Its methods raise `ValueError` for what contradicts the configuration.
    """

    def __init__(self, model_config: str) -> None:
        self._model_config: Config = json.loads(model_config)

    def as_dict(self) -> Config:
        """All of it."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Not below what the configuration has."""
        if self._model_config["max_batch_size"] > max_batch_size:
            raise ValueError(
                f"the configuration says max_batch_size "
                f"{self._model_config['max_batch_size']}, auto_complete_config {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Has requests put together."""
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """``{"decoupled": ...}``, the same as in the configuration if that says it."""
        for key in transaction_policy_dict:
            if key != "decoupled":
                raise ValueError(f"model_transaction_policy has no property '{key}'")
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            wanted = transaction_policy_dict["decoupled"]
            if policy.get("decoupled", wanted) != wanted:
                raise ValueError(f"'decoupled' is {policy['decoupled']} in the configuration")
            policy["decoupled"] = wanted

    def add_input(self, input: Mapping[str, Any]) -> None:
        """``{"name": ..., "data_type": ..., "dims": ...}``, perhaps with ``optional``."""
        self._add("input", input, ("optional",))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """``{"name": ..., "data_type": ..., "dims": ...}``."""
        self._add("output", output, ())

    def _add(self, kind: str, said: Mapping[str, Any], optional: Sequence[str]) -> None:
        needed = ("name", "data_type", "dims")
        name = said.get("name", "")
        for key in said:
            if key not in (*needed, *optional):
                raise ValueError(f"{kind} '{name}' has no property '{key}' in auto_complete_config")
        for key in needed:
            if key not in said:
                raise ValueError(f"{kind} '{name}' is missing '{key}' in auto_complete_config")
        for tensor in self._model_config[kind]:
            if tensor["name"] == name:
                self._merge(kind, tensor, said)
                return
        self._model_config[kind].append(dict(said))

    def _merge(self, kind: str, tensor: Config, said: Mapping[str, Any]) -> None:
        for key, unset in (("data_type", "TYPE_INVALID"), ("dims", []), ("optional", None)):
            if key not in said:
                continue
            value = list(said[key]) if key == "dims" else said[key]
            has = tensor.get(key, unset)
            if has not in (unset, value):
                raise ValueError(
                    f"{kind} '{tensor['name']}': the configuration says {key} {has}, "
                    f"auto_complete_config {value}"
                )
            tensor[key] = value


@dataclass(frozen=True)
class Completed:
    """What the final configuration means for the gateway."""

    config: Config
    signature: Signature
    max_batch_size: int
    joined: bool
    decoupled: bool


def read_config(config: Config, file: str) -> Completed:
    """Raises `ModelLoadError` for what is missing or wrong."""
    most = config.get("max_batch_size", 0)
    if type(most) is not int or most < 0:
        raise ModelLoadError(f"{file}: max_batch_size is {printable(repr(most))}")
    rows = most > 0
    ins = [_spec("input", each, file, rows=rows) for each in config["input"]]
    outs = [_spec("output", each, file, rows=rows) for each in config["output"]]
    for kind, specs in (("input", ins), ("output", outs)):
        if not specs:
            raise ModelLoadError(
                f"the model has no {kind}s: declare them in config.pbtxt, or with "
                f"add_{kind} in auto_complete_config"
            )
    signature = Signature(
        tuple(spec for spec, _ in ins),
        tuple(spec for spec, _ in outs),
        {s.name: Reshape(s.shape, inner) for s, inner in ins if inner is not None},
        {s.name: Reshape(inner, s.shape) for s, inner in outs if inner is not None},
    )
    decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
    return Completed(config, signature, most, "dynamic_batching" in config, decoupled)


def _spec(
    kind: str, said: Mapping[str, Any], file: str, *, rows: bool
) -> tuple[TensorSpec, tuple[int, ...] | None]:
    name = said.get("name")
    where = f"{file}: {kind} '{printable(name)}'"
    text = str(said.get("data_type"))
    datatype = DATATYPES.get(text.removeprefix("TYPE_").replace("STRING", "BYTES"))
    if not isinstance(name, str) or not name:
        raise ModelLoadError(f"{file}: an {kind} has no name")
    if not text.startswith("TYPE_") or datatype is None:
        raise ModelLoadError(f"{where} has data_type {printable(text)}; use one like TYPE_FP32")
    dims = said.get("dims")
    if not isinstance(dims, Sequence) or any(type(d) is not int or d < -1 for d in dims):
        raise ModelLoadError(f"{where} has dims {printable(repr(dims))}; use sizes, -1 for any")
    batch = (-1,) if rows else ()
    reshape = said.get("reshape")
    inner = None if reshape is None else (*batch, *reshape["shape"])
    spec = TensorSpec(name, datatype, (*batch, *dims), optional=bool(said.get("optional", False)))
    return spec, inner
