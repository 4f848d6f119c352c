"""The ONNX file itself: which one it is, and which other files it wants to read.

An ONNX file may say that its weights lie in other files. A file from a stranger could name
``/etc/passwd`` there, so the names are read and judged before ONNX Runtime sees the file. The
reader below knows just enough of protobuf to skip everything else: weights are never touched,
and the ``onnx`` package is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from gateway.errors import ModelLoadError, printable
from runtimes.interface import Artifact

DEFAULT_FILE: Final = "model.onnx"

BUFFER: Final = 1 << 16
Range = tuple[int, int]

# Message → {field: message in it}; only what leads to a TensorProto.
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse",
    },
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}  # fmt: skip


def model_file(artifact: Artifact) -> Path:
    """The artifact's ONNX file. Raises `ModelLoadError` when there is none, or more than one."""
    path = artifact.file(DEFAULT_FILE)
    name = path.relative_to(artifact.path) if path.is_relative_to(artifact.path) else path
    if path == name or ".." in path.relative_to(artifact.path).parts:
        raise ModelLoadError(f"file '{printable(name)}' is outside the version's folder")
    if path.is_dir():
        inner = path / DEFAULT_FILE
        found = [inner] if inner.is_file() else sorted(path.glob("*.onnx"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ModelLoadError(
                f"folder '{name}' must hold '{DEFAULT_FILE}' or exactly one .onnx file; it has "
                f"{names}"
            )
        path = found[0]
    if not path.is_file():
        raise ModelLoadError(f"file '{printable(name)}' does not exist in the version's folder")
    if path.suffix == ".ort":
        raise ModelLoadError(
            f"'{path.name}' is in ONNX Runtime's own format, which is not supported; "
            "serve the .onnx file it was made from"
        )
    return path


def external_files(file: Path, folder: Path) -> tuple[Path, ...]:
    """The files that hold weights of `file`, each of them inside `folder`.

    Raises `ModelLoadError` for one that is outside (by an absolute path, ``..`` or a symbolic
    link) or missing, and when `file` is not an ONNX file.
    """
    locations = sorted(external_locations(file))
    if not locations:
        return ()
    root = folder.resolve()
    if not file.resolve().is_relative_to(root):
        raise ModelLoadError(
            f"'{file.name}' has external data and is a symbolic link that leaves the version's "
            "folder; put the file and its data there"
        )
    return tuple(_inside(location, file.parent, root) for location in locations)


def _inside(location: str, base: Path, root: Path) -> Path:
    shown = printable(location)
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = location.startswith(("/", "\\")) or PureWindowsPath(location).drive
    if absolute or ".." in parts or "\0" in location:
        raise ModelLoadError(
            f"external data '{shown}' is outside the version's folder; only relative names "
            "without '..' are read"
        )
    path = base / location
    try:
        resolved = path.resolve()
        if not resolved.is_relative_to(root):
            raise ModelLoadError(
                f"external data '{shown}' is a symbolic link that leaves the version's folder; "
                "copy the data into it"
            )
        if not resolved.is_file():
            raise ModelLoadError(
                f"external data '{shown}' is missing; put it beside '{DEFAULT_FILE}'"
            )
    except OSError as error:
        raise ModelLoadError(f"external data '{shown}' cannot be read: {error.strerror}") from None
    return path


class _Window:
    """A large file, looked at through a small buffer.

    Not a memory map: a file that is overwritten in place shrinks under it, and touching what is
    gone ends the process (SIGBUS). Here that is an `IndexError`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start = 0
        self._buffer = b""

    def __len__(self) -> int:
        return os.fstat(self._descriptor).st_size

    def byte(self, position: int) -> int:
        offset = position - self._start
        if not 0 <= offset < len(self._buffer):
            self._buffer = os.pread(self._descriptor, BUFFER, position)
            self._start, offset = position, 0
        return self._buffer[offset]

    def part(self, start: int, stop: int) -> bytes:
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise IndexError("the file has become shorter")
        return data


@contextmanager
def _opened(file: Path) -> Iterator[_Window]:
    try:
        with file.open("rb") as stream:
            yield _Window(stream.fileno())
    except (ValueError, IndexError):  # an empty file, or one that ends in mid-field
        raise ModelLoadError(
            f"'{file.name}' is not an ONNX file, or it is damaged; export or copy it again"
        ) from None
    except OSError as error:
        raise ModelLoadError(f"'{file.name}' cannot be read: {error.strerror}") from None


def external_locations(file: Path) -> frozenset[str]:
    """Every external data location in the ONNX file, as written there.

    Raises `ModelLoadError` when the file is not an ONNX file or cannot be read.
    """
    with _opened(file) as data:
        return frozenset(_walk(data))


def _walk(data: _Window) -> Iterator[str]:
    pending: list[tuple[str, Range]] = [("Model", (0, len(data)))]
    while pending:
        message, where = pending.pop()
        inner = _MESSAGES[message]
        for field, span in _fields(data, where):
            kind = inner.get(field)
            if kind == "Entry":
                entry = {f: data.part(s, e) for f, (s, e) in _fields(data, span)}
                if entry.get(1) == b"location":
                    yield entry.get(2, b"").decode("utf-8", "surrogateescape")
            elif kind is not None:
                pending.append((kind, span))


def _fields(data: _Window, where: Range) -> Iterator[tuple[int, Range]]:
    """Length-delimited fields of one message: number, and where their contents are.

    Raises `ValueError` or `IndexError` when this is no protobuf message.
    """
    position, end = where
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise ValueError("field longer than its message")
            yield tag >> 3, (position, position + length)
            position += length
        elif wire == 0:
            _, position = _varint(data, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            # Groups: ONNX has none, so whatever holds one was not written by an exporter.
            raise ValueError("unknown wire type")
    if position != end:
        raise ValueError("field longer than its message")


def unranked_tensors(file: Path) -> frozenset[str]:
    """Inputs and outputs whose shape the file leaves out altogether, rank and all.

    ONNX Runtime reports them like scalars. Raises `ModelLoadError` as `external_locations`.
    """
    names: set[str] = set()
    with _opened(file) as data:
        for graph in _inner(data, (0, len(data)), 7):
            for field, info in _fields(data, graph):
                if field in (11, 12) and not _has_shape(data, info):
                    names.update(data.part(s, e).decode() for s, e in _inner(data, info, 1))
    return frozenset(names)


def _has_shape(data: _Window, info: Range) -> bool:
    return any(
        field == 2
        for kind in _inner(data, info, 2)
        for tensor in _inner(data, kind, 1)
        for field, _ in _fields(data, tensor)
    )


def _inner(data: _Window, where: Range, wanted: int) -> Iterator[Range]:
    return (span for field, span in _fields(data, where) if field == wanted)


def _varint(data: _Window, position: int) -> tuple[int, int]:
    byte = data.byte(position)
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = data.byte(position)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
