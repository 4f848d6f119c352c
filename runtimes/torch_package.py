"""AOTInductor packages: models that were compiled into a library ahead of time."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from gateway.errors import ModelLoadError, printable
from runtimes.torch_file import Archive
from runtimes.torch_program import Program
from runtimes.torch_signature import Arguments, Results


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
