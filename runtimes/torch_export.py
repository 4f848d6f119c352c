"""Programs of `torch.export`: their signature is in the file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from gateway.errors import ModelLoadError, printable
from gateway.tensors import DATATYPES
from runtimes.onnx_metadata import Dim, Node
from runtimes.torch_file import Archive
from runtimes.torch_options import Plan
from runtimes.torch_program import Program, compiled
from runtimes.torch_signature import OUTPUT, Arguments, Results
from runtimes.torch_tensors import OIP_NAMES


def load_program(torch: Any, archive: Archive, device: str, plan: Plan) -> Program:
    """A program of `torch.export`."""
    _refuse_pickles(torch, archive)
    with archive.path.open("rb") as stream:
        exported = torch.export.load(stream)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, device)
    inputs, constants = _user_inputs(exported)
    outputs, results = _user_outputs(exported)
    module = exported.module()
    if plan.channels_last:
        module = module.to(memory_format=torch.channels_last)
    signature = exported.graph_signature
    written = _written_to(torch, exported)
    unflatten = torch.utils._pytree.tree_unflatten
    tree = exported.call_spec.in_spec
    runs = compiled(torch, module, device, plan)

    def call(values: Sequence[Any]) -> Any:
        flat = list(values)
        for position, value in constants:
            flat.insert(position, value)
        args, kwargs = unflatten(flat, tree)
        return runs(*args, **kwargs)

    return Program(
        call,
        device,
        Arguments(tuple(node.name for node in inputs), known=True),
        results,
        module,
        writes_inputs=bool(signature.user_inputs_to_mutate or written & set(signature.user_inputs)),
        stateful=bool(signature.buffers_to_mutate or written & set(signature.inputs_to_buffers)),
        inputs=inputs,
        outputs=outputs,
    )


def _written_to(torch: Any, exported: Any) -> set[str]:
    """Placeholders that operators of the program write into, themselves or through a view.

    The signature names them only where the program was decomposed.
    """
    origins: dict[Any, set[str]] = {}
    written: set[str] = set()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            origins[node] = {node.name}
            continue
        sources = set().union(*(origins.get(each, ()) for each in node.all_input_nodes))
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            origins[node] = sources  # such as taking one of several results
            continue
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = node.args[position : position + 1] or [node.kwargs.get(argument.name)]
                for each in torch.utils._pytree.tree_leaves(given):
                    written |= origins.get(each, set())
        shares = any(result.alias_info is not None for result in schema.returns)
        origins[node] = sources if shares else set()
    return written


def _refuse_pickles(torch: Any, archive: Archive) -> None:
    """PyTorch would unpickle these, whatever they hold."""
    name = archive.path.name
    for entry in archive.names:
        if entry.startswith(("data/weights/", "data/constants/")) and entry.endswith("config.json"):
            config = json.loads(archive.read(entry)).get("config", {})
            pickled = [
                key for key, payload in config.items() if payload.get("use_pickle") is not False
            ]
            if pickled:
                raise ModelLoadError(
                    f"'{name}' holds '{printable(pickled[0])}' as a pickled object, and unpickling "
                    "executes whatever code it names; export the model with plain tensors only"
                )
        elif entry.startswith("data/") and entry.endswith(".pt"):
            data = archive.read(entry)
            try:
                _ = data and torch.load(io.BytesIO(data), weights_only=True)
            except Exception:
                raise ModelLoadError(
                    f"'{name}' holds pickled objects beside tensors ({printable(entry)}), and "
                    "unpickling executes whatever code they name; export it again with tensors as "
                    "example inputs"
                ) from None


def _user_inputs(exported: Any) -> tuple[tuple[Node, ...], list[tuple[int, Any]]]:
    """Tensors that callers send, and constants with their positions among the arguments."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    nodes: list[Node] = []
    constants: list[tuple[int, Any]] = []
    specs = [s for s in exported.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    for position, spec in enumerate(specs):
        kind = type(spec.arg).__name__
        if kind == "ConstantArgument":
            constants.append((position, spec.arg.value))
        elif kind == "TensorArgument":
            nodes.append(_node("input", spec.arg.name, values[spec.arg.name]))
        else:
            raise ModelLoadError(
                f"the program takes '{printable(spec.arg.name)}', which is no tensor "
                f"({kind}), and only tensors can be sent; export it with tensors"
            )
    return tuple(nodes), constants


def _user_outputs(exported: Any) -> tuple[tuple[Node, ...], Results]:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    specs = [s for s in exported.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    tree = exported.call_spec.out_spec
    keys = tuple(map(str, tree.context)) if tree.type is dict else ()
    mapping = len(keys) == len(specs)
    nodes = []
    for position, spec in enumerate(specs):
        name = keys[position] if mapping else f"{OUTPUT}{position}"
        if type(spec.arg).__name__ != "TensorArgument":
            raise ModelLoadError(
                f"output {position} of the program is no tensor; export a model that gives tensors"
            )
        nodes.append(_node("output", name, values[spec.arg.name]))
    return tuple(nodes), Results(keys if mapping else (), mapping=mapping, count=len(nodes))


def _node(kind: str, name: str, value: Any) -> Node:
    found = str(value.dtype).removeprefix("torch.")
    if found not in OIP_NAMES:
        raise ModelLoadError(
            f"{kind} '{printable(name)}' is of the type {found}, which the inference protocol has "
            "no datatype for; convert it inside the model"
        )
    dims: list[Dim] = [d if type(d) is int else str(d) for d in value.shape]
    return Node(name, DATATYPES[OIP_NAMES[found]], tuple(dims))
