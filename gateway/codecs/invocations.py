"""MLflow's scoring protocol, on the way in: ``/invocations``.

A body is JSON with exactly one of ``dataframe_split``, ``dataframe_records``, ``instances`` and
``inputs`` (and ``params`` beside), or CSV. Reading it and making tensors of it are two steps:
only the version that will answer can say what the values are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from gateway.codecs.invocations_csv import read_csv
from gateway.codecs.invocations_frame import Frame, frame_of_records, frame_of_split
from gateway.codecs.invocations_values import MADE_UP, tensor_of
from gateway.codecs.json_data import check_depth, parse_json
from gateway.config import LimitsConfig
from gateway.contract import FOR_THE_GATEWAY, Contract
from gateway.errors import InvalidRequest, printable
from gateway.tensors import Buffer, InferenceRequest, Parameter, Tensor, TensorSpec

SPLIT: Final = "dataframe_split"
RECORDS: Final = "dataframe_records"
INSTANCES: Final = "instances"
INPUTS: Final = "inputs"
PARAMS: Final = "params"
FORMATS: Final = (SPLIT, RECORDS, INSTANCES, INPUTS)

_NO_JSON: Final = re.compile(rb"NaN|Infinity")
_SHOWN: Final = 20
"""Most names that an error lists."""


class Payload:
    """What a body holds. Exactly one of `frame`, `named` and `value` says the data.

    `frame` has rows and columns, `named` one (nested) list for each input, and `value` is the
    only input's.
    """

    __slots__ = ("frame", "named", "parameters", "value")

    def __init__(
        self,
        *,
        frame: Frame | None = None,
        named: dict[str, Any] | None = None,
        value: Any = None,
        parameters: dict[str, Parameter] | None = None,
    ) -> None:
        self.frame = frame
        self.named = named
        self.value = value
        self.parameters = parameters


def parse_invocations(body: Buffer, media_type: str, limits: LimitsConfig) -> Payload:
    """The data in a body of the type ``application/json`` or ``text/csv``.

    Raises `InvalidRequest`.
    """
    if media_type == "text/csv":
        return Payload(frame=read_csv(body))
    tree = _json(body, limits)
    kind = _kind_of_data(tree)
    data = tree[kind]
    parameters = _parameters(tree[PARAMS], limits) if PARAMS in tree else None
    if kind == SPLIT:
        return Payload(frame=frame_of_split(data), parameters=parameters)
    if kind == RECORDS:
        return Payload(frame=frame_of_records(RECORDS, data), parameters=parameters)
    if type(data) is list and data and type(data[0]) is dict:
        return Payload(frame=frame_of_records(kind, data), parameters=parameters)
    if kind == INPUTS and type(data) is dict:
        return Payload(named=_one_row(data), parameters=parameters)
    if type(data) is dict or data is None:
        raise InvalidRequest(f"'{kind}' must be a list of rows, not {_kind(data)}")
    return Payload(value=data, parameters=parameters)


def _kind_of_data(tree: dict[str, Any]) -> str:
    """Which of the forms the body has. Raises `InvalidRequest` for none and for several."""
    if len(tree) == 1:
        (kind,) = tree
        if kind in FORMATS:
            return kind
    found = [name for name in FORMATS if name in tree]
    if len(found) != 1:
        raise InvalidRequest(
            f"the body must have exactly one of {', '.join(map(repr, FORMATS))}; it has: "
            f"{_names(tree) or 'nothing'}"
        )
    kind = found[0]
    extra = [name for name in tree if name not in (kind, PARAMS)]
    if extra:
        raise InvalidRequest(
            f"the body has '{printable(extra[0])}' beside '{kind}'; parameters of the model "
            f"belong into '{PARAMS}'"
        )
    return kind


def decode_invocations(
    model: str, version: str, payload: Payload, contract: Contract
) -> InferenceRequest:
    """The request for a model that takes what `contract` says. Raises `InvalidRequest`."""
    if payload.frame is not None:
        inputs = _of_frame(model, payload.frame, contract)
    elif payload.named is not None:
        inputs = _by_name(model, payload.named, contract, "input")
    else:
        inputs = [_only(model, payload.value, contract)]
    return InferenceRequest(model, version, tuple(inputs), parameters=payload.parameters)


# --- from bytes to values


def _json(body: Buffer, limits: LimitsConfig) -> dict[str, Any]:
    try:
        return parse_json(body, limits.max_json_depth)
    except InvalidRequest:
        # What Python's json writes for numbers that JSON has no word for; pandas is full of them.
        if not _NO_JSON.search(body):
            raise
    try:
        tree = json.loads(bytes(body), object_pairs_hook=_unique)
    except RecursionError:
        raise InvalidRequest(
            f"the JSON is nested deeper than limits.max_json_depth = {limits.max_json_depth} levels"
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {printable(error)}") from None
    if type(tree) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(tree)}")
    check_depth(tree, limits.max_json_depth)
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise InvalidRequest("the JSON has an object with the same key twice")
    return tree


def _parameters(given: object, limits: LimitsConfig) -> dict[str, Parameter] | None:
    """``params`` as a request carries them: lists and objects as JSON."""
    if given is None:
        return None
    if type(given) is not dict:
        raise InvalidRequest(f"'{PARAMS}' must be an object, not {_kind(given)}")
    if len(given) > limits.max_parameters:
        raise InvalidRequest(
            f"the request has {len(given)} parameters, more than limits.max_parameters = "
            f"{limits.max_parameters}"
        )
    found: dict[str, Parameter] = {}
    for name, value in given.items():
        if name in FOR_THE_GATEWAY or name.startswith("triton_"):
            raise InvalidRequest(
                f"'{PARAMS}': '{printable(name)}' is a word of the gateway's own, which models do "
                "not see; for a deadline use the header x-request-timeout-ms"
            )
        if type(value) in (list, dict):
            found[name] = orjson.dumps(value).decode()
        elif value is not None:  # as if it were not there: the model's default
            found[name] = value
    return found or None


def _one_row(data: dict[str, Any]) -> dict[str, Any]:
    """Values that are no lists are a single row, as MLflow has it."""
    if data and not any(type(value) is list for value in data.values()):
        return {name: [value] for name, value in data.items()}
    return data


# --- from values to tensors


def _of_frame(model: str, frame: Frame, contract: Contract) -> list[Tensor]:
    if not frame.count:
        raise InvalidRequest("the frame has 0 rows; send at least one")
    specs = contract.inputs
    text = frame.text
    required, unnamed = _names_of(specs)
    places = {name: place for place, name in enumerate(frame.names or ())}
    if places.keys() >= required:
        named = [
            tensor_of(spec, frame.nth(places[spec.name]), "column", text=text)
            for spec in specs
            if spec.name in places
        ]
        if named:
            return named
    if len(specs) == 1 and (unnamed or not specs[0].content):
        if frame.width == 1 and (specs[0].content or type(frame.rows[0][0]) is list):
            return [tensor_of(specs[0], frame.nth(0), "column", text=text)]
        return [tensor_of(specs[0], frame.rows, "input", text=text)]
    if unnamed and frame.width == len(specs):
        return [tensor_of(s, frame.nth(n), "column", text=text) for n, s in enumerate(specs)]
    raise _missing(model, frame.names or (), contract, "column")


@lru_cache(1024)
def _names_of(specs: tuple[TensorSpec, ...]) -> tuple[frozenset[str], bool]:
    """The names of the inputs that must be there, and whether no input has a name of its own."""
    required = frozenset(spec.name for spec in specs if not spec.optional)
    return required, all(MADE_UP.fullmatch(spec.name) for spec in specs)


def _by_name(model: str, named: Mapping[str, Any], contract: Contract, what: str) -> list[Tensor]:
    """Those of the values that the model takes; others do no harm, as in MLflow."""
    if any(spec.name not in named and not spec.optional for spec in contract.inputs):
        raise _missing(model, named, contract, what)
    return [
        tensor_of(spec, named[spec.name], what) for spec in contract.inputs if spec.name in named
    ]


def _only(model: str, value: object, contract: Contract) -> Tensor:
    specs = contract.inputs
    if len(specs) != 1:
        raise InvalidRequest(
            f"model '{model}' has several inputs ({_names([s.name for s in specs])}): name them, "
            f'as in {{"{INPUTS}": {{"{specs[0].name if specs else "x"}": [...], ...}}}}'
        )
    return tensor_of(specs[0], value if type(value) is list else [value], "input")


def _missing(
    model: str, given: Mapping[str, Any] | tuple[str, ...], contract: Contract, what: str
) -> InvalidRequest:
    names = frozenset(given)
    absent = [s.name for s in contract.inputs if s.name not in names and not s.optional]
    are = f"{what} is" if len(absent) == 1 else f"{what}s are"
    return InvalidRequest(
        f"{are} missing: {_names([repr(printable(n)) for n in absent])}; model '{model}' takes: "
        f"{_names([repr(spec) for spec in contract.inputs])}; the request has: "
        f"{_names(given) or f'no {what} names'}"
    )


def _names(names: Any) -> str:
    listed = [printable(name) for name in names]
    more = f", and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", type(None): "null", str: "a string"}.get(
        type(value), type(value).__name__
    )
