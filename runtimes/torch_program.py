"""A loaded PyTorch model on one device, whatever kind of file it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import ModelLoadError
from runtimes.onnx_metadata import Node
from runtimes.torch_errors import one_line
from runtimes.torch_options import Plan
from runtimes.torch_signature import Arguments, Results

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


def positional(module: Any, arguments: Arguments) -> Callable[[Sequence[Any]], Any]:
    """A call with the values in the order of `arguments`, by name where one is missing."""

    def call(values: Sequence[Any]) -> Any:
        for value in values:
            if value is MISSING:
                named = zip(arguments.names, values, strict=False)
                return module(**{name: v for name, v in named if v is not MISSING})
        return module(*values)

    return call


def compiled(torch: Any, module: Any, device: str, plan: Plan) -> Any:
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
