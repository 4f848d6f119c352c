"""Names, datatypes and shapes of a PyTorch model: declared, or from the exported program.

Declared names stand for positions in one of three ways: ``NAME__0`` and ``NAME__1`` name them
(Triton's way), names equal to those of ``forward()`` mean these, and any other names count in
the order in which they are declared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import BYTES, DATATYPES, TensorSpec
from runtimes.onnx_metadata import Metadata, Node, Reshape, merge, shares_batch_dimension

_INDEX: Final = re.compile(r"^.+__(\d+)$")
OUTPUT: Final = "OUTPUT__"


@dataclass(frozen=True)
class Arguments:
    """What ``forward()`` takes, as far as that is known, one entry for each position."""

    names: tuple[str, ...] = ()
    known: bool = False
    """Whether `names` is all there is; otherwise there may be any number of positions."""
    texts: frozenset[str] = frozenset()
    """Those that take a list of text."""
    optional: frozenset[str] = frozenset()
    """Those that may be left out."""
    mapping: bool = False
    """One dict of tensors, whose keys are the inputs' names."""


@dataclass(frozen=True)
class Results:
    """What ``forward()`` gives, as far as that is known."""

    keys: tuple[str, ...] = ()
    """Of a dict of tensors."""
    mapping: bool = False
    count: int | None = None


@dataclass(frozen=True)
class Signature:
    """What clients see, and where each tensor stands."""

    metadata: Metadata
    inputs: Mapping[str, int]
    """Name → position in the call."""
    outputs: Mapping[str, int | str]
    """Name → position among the results, or key of a dict."""
    texts: frozenset[str] = field(default=frozenset())


def declared_signature(
    settings: ModelSettings, arguments: Arguments, results: Results, what: str
) -> Signature:
    """For files that do not hold shapes. `what` is the file, for messages.

    Raises `ModelLoadError` when the declaration is missing or does not fit ``forward()``.
    """
    if not settings.inputs or not settings.outputs:
        raise ModelLoadError(_please_declare(settings, arguments, results, what))
    inputs = _input_places(settings.inputs, arguments)
    outputs = _output_places(settings.outputs, results)
    texts = _texts(settings.inputs, inputs, arguments)
    batched = bool(settings.max_batch_size)
    ins = [_spec("input", tensor, batched=batched) for tensor in settings.inputs]
    outs = [_spec("output", tensor, batched=batched) for tensor in settings.outputs]
    for tensor in settings.inputs:
        position = inputs[tensor.name]
        known = arguments.known and not arguments.mapping
        if tensor.optional and known and arguments.names[position] not in arguments.optional:
            raise ModelLoadError(
                f"input '{printable(tensor.name)}' is declared optional, but forward() has no "
                f"default for '{arguments.names[position]}'"
            )
    return Signature(
        Metadata(
            inputs=tuple(spec for spec, _ in ins),
            outputs=tuple(spec for spec, _ in outs),
            batch_dimension=batched,
            input_reshapes={s.name: Reshape(r.source, r.target) for s, r in ins if r is not None},
            output_reshapes={s.name: Reshape(r.target, r.source) for s, r in outs if r is not None},
        ),
        inputs,
        outputs,
        texts,
    )


def program_signature(
    settings: ModelSettings, inputs: Sequence[Node], outputs: Sequence[Node], results: Results
) -> Signature:
    """For exported programs, which know their shapes. Nodes are in the order of positions.

    Raises `ModelLoadError` where a declared signature and the program do not agree.
    """
    arguments = Arguments(tuple(node.name for node in inputs), known=True)
    places: dict[str, int] = {node.name: index for index, node in enumerate(inputs)}
    ins = list(inputs)
    if settings.inputs:
        places = _input_places(settings.inputs, arguments)
        ins = [replace(inputs[places[t.name]], name=t.name) for t in settings.inputs]
    out_places: dict[str, int | str] = {node.name: index for index, node in enumerate(outputs)}
    outs = list(outputs)
    if settings.outputs:
        found = _output_places(settings.outputs, Results(tuple(out_places), results.mapping))
        names = tuple(out_places)
        out_places = {n: names.index(p) if isinstance(p, str) else p for n, p in found.items()}
        if beyond := [n for n, p in out_places.items() if int(p) >= len(outputs)]:
            raise ModelLoadError(
                f"output '{printable(beyond[0])}' is declared, but the program gives "
                f"{len(outputs)}: {', '.join(map(str, outputs))}"
            )
        outs = [replace(outputs[int(out_places[t.name])], name=t.name) for t in settings.outputs]
    batched = bool(settings.max_batch_size)
    merged = [merge("input", node, settings.inputs, batched=batched) for node in ins]
    gives = [merge("output", node, settings.outputs, batched=batched) for node in outs]
    return Signature(
        Metadata(
            inputs=tuple(spec for spec, _ in merged),
            outputs=tuple(spec for spec, _ in gives),
            batch_dimension=shares_batch_dimension([*ins, *outs], declared=False),
            input_reshapes={s.name: Reshape(r.source, r.target) for s, r in merged if r},
            output_reshapes={s.name: Reshape(r.target, r.source) for s, r in gives if r},
        ),
        places,
        out_places,
    )


def _spec(kind: str, tensor: TensorSettings, *, batched: bool) -> tuple[TensorSpec, Reshape | None]:
    batch = (-1,) if batched else ()
    inner = tensor.dims if tensor.reshape is None else tensor.reshape
    node = Node(tensor.name, DATATYPES[tensor.datatype], (*batch, *inner), tensor.optional)
    return merge(kind, node, (tensor,), batched=batched)


def _input_places(declared: Sequence[TensorSettings], arguments: Arguments) -> dict[str, int]:
    names = [tensor.name for tensor in declared]
    if arguments.mapping:
        return {name: index for index, name in enumerate(names)}
    places = _places("input", names, arguments.names)
    takes = f"forward() takes: {printable(', '.join(arguments.names) or 'nothing', 300)}"
    if arguments.known:
        if beyond := [name for name, place in places.items() if place >= len(arguments.names)]:
            raise ModelLoadError(f"input '{printable(beyond[0])}' is declared, but {takes}")
        given = set(places.values())
        for index, name in enumerate(arguments.names):
            if index not in given and name not in arguments.optional:
                raise ModelLoadError(f"'{printable(name)}' is not declared as input, but {takes}")
    elif sorted(places.values()) != list(range(len(places))):
        raise ModelLoadError(f"inputs {', '.join(names)} must be numbered from 0 without gaps")
    return places


def _output_places(declared: Sequence[TensorSettings], results: Results) -> dict[str, int | str]:
    names = [tensor.name for tensor in declared]
    if results.mapping:
        missing = [name for name in names if results.keys and name not in results.keys]
        if not missing:
            return {name: name for name in names}
        if not all(map(_INDEX.match, names)):
            raise ModelLoadError(
                f"output '{printable(missing[0])}' is declared, but the model gives a dict with: "
                f"{printable(', '.join(results.keys), 300)}"
            )
    places = dict(_places("output", names, results.keys))
    if results.count is not None and max(places.values()) >= results.count:
        raise ModelLoadError(
            f"outputs {printable(', '.join(names), 200)} are declared, but forward() gives "
            f"{results.count}"
        )
    return {**places}


def _places(kind: str, names: Sequence[str], own: Sequence[str]) -> dict[str, int]:
    """The position that each declared name stands for."""
    if own and all(name in own for name in names):
        return {name: own.index(name) for name in names}
    indices = [_INDEX.match(name) for name in names]
    if all(indices):
        places = {name: int(found[1]) for name, found in zip(names, indices, strict=True) if found}
        if len(set(places.values())) < len(places):
            raise ModelLoadError(f"two {kind}s have the same number: {', '.join(names)}")
        return places
    if any(indices):
        raise ModelLoadError(
            f"{kind}s {printable(', '.join(names), 200)}: number all of them (NAME__0, NAME__1, "
            "...) or none"
        )
    return {name: index for index, name in enumerate(names)}


def _texts(
    declared: Sequence[TensorSettings], places: Mapping[str, int], arguments: Arguments
) -> frozenset[str]:
    texts: set[str] = set()
    for tensor in declared:
        takes_text = (
            not arguments.mapping
            and arguments.known
            and arguments.names[places[tensor.name]] in arguments.texts
        )
        is_text = tensor.datatype == BYTES.name
        if is_text and not takes_text:
            raise ModelLoadError(
                f"input '{printable(tensor.name)}' is declared BYTES, but PyTorch's tensors hold "
                "no text; send numbers, or let forward() take a List[str] (TorchScript)"
            )
        if takes_text and not is_text:
            raise ModelLoadError(
                f"input '{printable(tensor.name)}' is a list of text in forward(); declare it BYTES"
            )
        if is_text:
            texts.add(tensor.name)
    return frozenset(texts)


def _please_declare(
    settings: ModelSettings, arguments: Arguments, results: Results, what: str
) -> str:
    """The text to write, in YAML's one-line form, with what is known."""

    def tensors(declared: Sequence[TensorSettings], names: Sequence[str]) -> str:
        have = [
            f"{{name: {t.name}, datatype: {t.datatype}, dims: {list(t.dims)}}}" for t in declared
        ]
        return ", ".join(
            have
            or [
                f"{{name: {name}, datatype: {'BYTES' if name in arguments.texts else 'FP32'}, "
                "dims: [-1]}"
                for name in names
            ]
        )

    ins = arguments.names if arguments.known and not arguments.mapping else ()
    count = results.count or 1
    outs = results.keys or tuple(f"{OUTPUT}{index}" for index in range(count))
    missing = " and ".join(
        word
        for word, have in (("inputs", settings.inputs), ("outputs", settings.outputs))
        if not have
    )
    return (
        f"{what} does not hold its {missing}; write them into model.yaml with the right datatypes "
        "and dims (those without the batch dimension): {max_batch_size: 32, inputs: "
        f"[{tensors(settings.inputs, ins or ('INPUT__0',))}], outputs: "
        f"[{tensors(settings.outputs, outs)}]}}"
    )
