"""From a file to something that can be called: one function for each kind of file."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from gateway.tensors import DATATYPES
from runtimes.onnx_metadata import Dim, Node
from runtimes.torch_errors import one_line
from runtimes.torch_file import Archive, Kind
from runtimes.torch_options import Plan
from runtimes.torch_safetensors import read_safetensors
from runtimes.torch_signature import OUTPUT, Arguments, Results
from runtimes.torch_tensors import OIP_NAMES

MISSING: Final = object()
"""Stands for an optional argument that was not sent."""


@dataclass
class Program:
    """A loaded model on one device. `call` takes the values in the order of positions."""

    call: Callable[[Sequence[Any]], Any]
    device: str
    arguments: Arguments
    results: Results
    module: Any = None
    """What holds the weights, where Python can reach them."""
    writes_inputs: bool = True
    """Whether it may write into its inputs."""
    stateful: bool = False
    inputs: tuple[Node, ...] | None = None
    outputs: tuple[Node, ...] | None = None

    def release(self) -> None:
        """Gives the weights' memory back, whoever still holds the module."""
        module, self.module, self.call = self.module, None, _closed
        if module is None:
            return
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.new_empty(0)


def _closed(values: Sequence[Any]) -> Any:
    raise RuntimeError("the model is closed")


def load_script(torch: Any, archive: Archive, device: str, plan: Plan) -> Program:
    """A TorchScript module."""
    module = torch.jit.load(str(archive.path), map_location=device).eval()
    if not hasattr(module, "forward"):
        raise ModelLoadError(f"'{archive.path.name}' has no method forward(); script one that has")
    arguments, results = _schema(module.forward.schema)
    if plan.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if plan.optimize != "none":
        module = torch.jit.freeze(module)
    if plan.optimize == "inference":
        module = torch.jit.optimize_for_inference(module)
    graph = module.inlined_graph
    aliases = graph.alias_db()
    return Program(
        _mapping_call(module) if arguments.mapping else _call(module, arguments),
        device,
        arguments,
        results,
        module,
        writes_inputs=any(aliases.has_writers(value) for value in list(graph.inputs())[1:]),
    )


def _mapping_call(module: Any) -> Callable[[Sequence[Any]], Any]:
    return lambda values: module(values[0])


def _call(module: Any, arguments: Arguments) -> Callable[[Sequence[Any]], Any]:
    def call(values: Sequence[Any]) -> Any:
        for value in values:
            if value is MISSING:
                named = zip(arguments.names, values, strict=False)
                return module(**{name: v for name, v in named if v is not MISSING})
        return module(*values)

    return call


def _schema(schema: Any) -> tuple[Arguments, Results]:
    """Raises `ModelLoadError` for arguments that no tensor can be sent for."""
    names: list[str] = []
    texts: set[str] = set()
    optional: set[str] = set()
    arguments = schema.arguments[1:]  # the first is the module itself
    for argument in arguments:
        said = str(argument.type)
        if said == "Dict[str, Tensor]" and len(arguments) == 1:
            return Arguments(known=True, mapping=True), _returns(schema)
        if said not in ("Tensor", "Optional[Tensor]", "List[str]"):
            if argument.has_default_value():
                break  # positions behind it are out of reach, and have defaults as well
            raise ModelLoadError(
                f"forward() takes '{printable(argument.name)}', a {printable(said)}, and only "
                "tensors can be sent; wrap the model in a module that takes tensors alone"
            )
        names.append(argument.name)
        if said == "List[str]":
            texts.add(argument.name)
        if argument.has_default_value():
            optional.add(argument.name)
    known = Arguments(
        tuple(names), known=True, texts=frozenset(texts), optional=frozenset(optional)
    )
    return known, _returns(schema)


def _returns(schema: Any) -> Results:
    kind = schema.returns[0].type
    name = kind.kind()
    if name == "DictType":
        return Results(mapping=True)
    if name == "TupleType":
        return Results(count=len(kind.elements()))
    return Results(count=None if name == "ListType" and str(kind) != "List[str]" else 1)


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
    runs = _compiled(torch, module, device, plan)

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


def load_package(
    torch: Any, archive: Archive, device: str, runners: int, *, batched: bool
) -> Program:
    """An AOTInductor package: a library that is linked into the process."""
    path = archive.path
    if path.suffix != ".pt2":
        raise ModelLoadError(f"'{path.name}' is {archive.kind.value}; rename it to model.pt2")
    models = sorted({n.split("/")[2] for n in archive.names if n.startswith("data/aotinductor/")})
    if len(models) != 1:
        raise ModelLoadError(
            f"'{path.name}' holds {len(models)} models ({printable(', '.join(models))}); package "
            "one for each version"
        )
    # Without it, tensors of other shapes than were compiled for are read beyond their end.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    # The public aoti_load_package() is this with one runner: instances would wait for each other.
    package = importlib.import_module("torch._inductor.package")
    index = int(device.partition(":")[2] or -1)
    compiled = package.load_package(str(path), models[0], num_runners=runners, device_index=index)
    made_for = compiled.loader.get_metadata().get("AOTI_DEVICE_KEY", "cpu")
    if made_for != device.partition(":")[0]:
        raise ModelLoadError(
            f"'{path.name}' was compiled for the device '{made_for}', and the model is placed on "
            f"'{device}'; set device: {'cpu' if made_for == 'cpu' else 'gpu'}"
        )
    trees = torch.utils._pytree
    tree = trees.treespec_loads(compiled.loader.get_call_spec()[0])
    needs_two = False

    def run(values: Sequence[Any]) -> Any:
        args, kwargs = trees.tree_unflatten(list(values), tree)
        return compiled(*args, **kwargs)

    def call(values: Sequence[Any]) -> Any:
        nonlocal needs_two
        single = batched and bool(values) and values[0].shape[:1] == (1,)
        if not (single and needs_two):
            try:
                return run(values)
            except RuntimeError as error:
                if not (single and "too small at 0" in str(error)):
                    raise
                needs_two = True
        # Code for any number of rows is compiled for two or more: the row is there twice.
        result = run([torch.cat((value, value)) for value in values])
        return trees.tree_map(lambda each: each[:1], result)

    positions = tuple(f"INPUT__{index}" for index in range(tree.num_leaves))
    return Program(call, device, Arguments(positions, known=True), Results())


def load_weights(torch: Any, archive: Archive, device: str, plan: Plan) -> Program:
    """A state dict, into the module that the factory makes."""
    module = make_module(torch, plan.factory)
    if archive.path.suffix == ".safetensors":
        state = read_safetensors(torch, archive.path)
    else:
        state = torch.load(str(archive.path), map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict):
        raise ModelLoadError(f"'{archive.path.name}' holds no state dict (save model.state_dict())")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ModelLoadError(
            f"the weights in '{archive.path.name}' do not fit the module of '{plan.factory}': "
            f"{printable(lines, 300)}"
        ) from None
    memory = {"memory_format": torch.channels_last} if plan.channels_last else {}
    module = module.to(device, **memory).eval()
    arguments = _python_arguments(module.forward)
    runs = _compiled(torch, module, device, plan)
    return Program(_call(runs, arguments), device, arguments, Results(), module)


def make_module(torch: Any, factory: str) -> Any:
    """The module that ``package.module:function`` gives. Raises `ModelLoadError`."""
    name, _, path = factory.partition(":")
    try:
        function = importlib.import_module(name)
        for part in path.split("."):
            function = getattr(function, part)
        module = function()  # type: ignore[operator]
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"factory '{factory}': there is no module '{error.name}' in the gateway's "
            "environment; install the package that brings it"
        ) from None
    except Exception as error:
        raise ModelLoadError(
            f"factory '{factory}' failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(
            f"factory '{factory}' gives a {type(module).__name__}; it must give a torch.nn.Module"
        )
    return module


def _python_arguments(forward: Callable[..., Any]) -> Arguments:
    names: list[str] = []
    optional: set[str] = set()
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return Arguments(tuple(names))
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        names.append(parameter.name)
        if parameter.default is not parameter.empty:
            optional.add(parameter.name)
    return Arguments(tuple(names), known=True, optional=frozenset(optional))


def _compiled(torch: Any, module: Any, device: str, plan: Plan) -> Any:
    """`module` behind `torch.compile`, where the options say so."""
    if plan.compile == "off":
        return module
    try:
        # Compiles something small first: here a missing compiler can be told.
        probe = torch.compile(lambda x: x * 2 + 1)
        probe(torch.zeros(3, device=device))
    except Exception as error:
        raise ModelLoadError(
            f"option 'compile': torch.compile does not work here: {one_line(error)}; install a C++ "
            "compiler (g++), or remove the option"
        ) from error
    return torch.compile(module, mode=None if plan.compile == "default" else plan.compile)


def load_libraries(torch: Any, folder: Path, names: Sequence[str]) -> None:
    """Shared libraries with custom operators, for the whole process. Raises `ModelLoadError`."""
    for name in names:
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            raise ModelLoadError(
                f"option 'libraries': '{printable(name)}' is not a file in the version's folder"
            )
        try:
            torch.ops.load_library(str(path))
        except Exception as error:
            raise ModelLoadError(
                f"option 'libraries': '{printable(name)}' cannot be loaded: {one_line(error)}"
            ) from error


KINDS: Final = {
    Kind.SCRIPT: load_script,
    Kind.PROGRAM: load_program,
    Kind.WEIGHTS: load_weights,
}
