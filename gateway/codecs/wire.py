"""The few pieces of protobuf's wire format that are worth doing by hand.

https://protobuf.dev/programming-guides/encoding: a field is a key (number << 3 | type) and a
value; type 2 is a length and that many bytes.
"""

from __future__ import annotations

from typing import Final

from gateway.errors import InvalidRequest

RAW_INPUT_CONTENTS: Final = 7
"""Field of a ModelInferRequest."""
RAW_OUTPUT_CONTENTS: Final = 6
"""Field of a ModelInferResponse."""
_TYPE_SIZES: Final = {1: 8, 5: 4}


def varint(value: int) -> bytes:
    """`value` (not negative) as a protobuf varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field; empty ones are left out, as proto3 does."""
    if not payload:
        return b""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _read_varint(data: bytes, at: int, end: int, what: str) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidRequest(f"the message is not {what}: broken varint")


def raw_spans(
    data: bytes,
    most: int = 2**30,
    *,
    number: int = RAW_INPUT_CONTENTS,
    what: str = "a ModelInferRequest",
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the raw contents of a message are (field `number`), and everything else.

    Returns (start, stop) of each payload of that field, and of each stretch of other
    top-level fields. Raises `InvalidRequest` for what is not protobuf, and for more than `most`
    fields: hundreds of megabytes of tiny ones would take minutes.
    """
    raws: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    at = 0
    end = len(data)
    fields = 0
    while at < end:
        start = at
        fields += 1
        if fields > most:
            raise InvalidRequest(
                f"the message has more than {most} fields, more than limits.max_tensors and "
                "limits.max_parameters allow"
            )
        key, at = _read_varint(data, at, end, what)
        kind = key & 7
        if kind == 2:
            length, at = _read_varint(data, at, end, what)
            stop = at + length
            if stop > end:
                raise InvalidRequest(f"the message is not {what}: it is truncated")
            if key >> 3 == number:
                raws.append((at, stop))
                at = stop
                continue
            at = stop
        elif kind == 0:
            _, at = _read_varint(data, at, end, what)
        elif kind in _TYPE_SIZES:
            at += _TYPE_SIZES[kind]
        else:
            raise InvalidRequest(f"the message is not {what}: unknown field type")
        if at > end:
            raise InvalidRequest(f"the message is not {what}: it is truncated")
        if rest and rest[-1][1] == start:
            rest[-1] = (rest[-1][0], at)
        else:
            rest.append((start, at))
    return raws, rest
