"""From a file to something that can be called: TorchScript, and weights with a factory."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from runtimes.torch_errors import one_line
from runtimes.torch_export import load_program
from runtimes.torch_file import Archive, Kind
from runtimes.torch_options import Plan
from runtimes.torch_program import Program, compiled, positional
from runtimes.torch_safetensors import read_safetensors
from runtimes.torch_signature import Arguments, Results


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
        _mapping_call(module) if arguments.mapping else positional(module, arguments),
        device,
        arguments,
        results,
        module,
        writes_inputs=any(aliases.has_writers(value) for value in list(graph.inputs())[1:]),
    )


def _mapping_call(module: Any) -> Callable[[Sequence[Any]], Any]:
    return lambda values: module(values[0])


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
    runs = compiled(torch, module, device, plan)
    return Program(positional(runs, arguments), device, arguments, Results(), module)


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
