"""What the tests of this folder attack with: raw sockets, gRPC from bytes, HTTP/2 frames."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from gateway.codecs.messages import ModelInferRequest, ModelInferResponse
from tests.bad_inputs.served import SECRET, write_models

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
LIMIT = 8 * MIB
"""``limits.max_message_bytes`` of the gateways under attack."""
PATIENCE = 30.0

GRPC = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What gRPC says where HTTP says the number."""

_LEAKS = re.compile(
    r"Traceback|File \"|\bline \d+, in\b|\.py\b|site-packages|0x[0-9a-f]{6,}"
    r"|/(?:tmp|home|root|usr|proc)/"
    rf"|{re.escape(str(ROOT))}|{re.escape(SECRET)}"
)
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ +\S.*")
_COMPLAINTS = re.compile(r"Traceback|unexpected|exception|never retrieved|never awaited", re.I)


class Served:
    """One gateway process under attack."""

    def __init__(self, folder: Path, name: str, **settings: Any) -> None:
        models = folder / "models"
        if not models.exists():
            write_models(models)
        self._log = (folder / f"{name}.log").open("w+b")
        wanted = {
            "http.address": "127.0.0.1:0",
            "grpc.address": "127.0.0.1:0",
            "limits.max_message_bytes": LIMIT,
            "drain.grace": 0,
            "registry.watch": False,
            "admin.token": SECRET,
        } | settings
        script = Path(__file__).with_name("served.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(models), json.dumps(wanted)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder,
        )  # fmt: skip
        said = self._line()
        host, _, port = said["http"].rpartition(":")
        self.http = (host, int(port))
        host, _, port = said["grpc"].rpartition(":")
        self.grpc = (host, int(port))
        self.channel = grpc.insecure_channel(
            said["grpc"],
            [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self._log_seen = len(self.log())

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the gateway ended:\n{self.log()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, question: str = "state") -> dict[str, Any]:
        """What the gateway has inside; ``reset`` sets the mark of most memory back as well."""
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._line()

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="backslashreplace")

    def quiet(self) -> dict[str, Any]:
        """Waits until nothing is in flight any more."""
        end = time.monotonic() + PATIENCE
        while True:
            state = self.ask()
            busy = ("in_flight", "pending", "waiting", "calls", "body_bytes")
            if not any(state[each] for each in busy):
                return state
            assert time.monotonic() < end, f"still in flight: {state}"
            time.sleep(0.02)

    def check_unharmed(self) -> None:
        """It answers, has nothing in flight and did not complain in its log."""
        assert self.process.poll() is None, f"the gateway ended:\n{self.log()}"
        assert good_http(self) == 200
        reply = call(self, good_message())
        assert reply.ok, reply
        self.quiet()
        new = self.log()[self._log_seen :]
        self._log_seen += len(new)
        assert not _COMPLAINTS.search(new), new
        for line in new.splitlines():
            assert _LOG_LINE.fullmatch(line), f"not a line of ours in the log: {line!r}"

    def stop(self) -> int:
        self.channel.close()
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)
        self._log.close()
        return self.process.returncode


class Reply:
    """An answer of either protocol. `status` is HTTP's number or gRPC's code."""

    def __init__(
        self, status: Any, message: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.message = message
        self.body = body
        self.headers = dict(headers or {})

    @property
    def ok(self) -> bool:
        return self.status in (200, grpc.StatusCode.OK)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.message[:300]!r})"


def refused(reply: Reply, status: int = 400, says: str = "") -> None:
    """The reply is a clear refusal: the right status, our shape, one short line, no secrets."""
    if isinstance(reply.status, grpc.StatusCode):
        assert reply.status == GRPC[status], reply
    else:
        assert reply.status == status, reply
        assert reply.headers["content-type"] == "application/json"
        assert list(reply.json) == ["error"]
    assert reply.message
    assert len(reply.message) < 1200, len(reply.message)
    assert reply.message.isprintable(), reply.message
    assert not _LEAKS.search(reply.message), reply.message
    assert says in reply.message, reply.message


# --- HTTP


@contextmanager
def connected(served: Served, timeout: float = PATIENCE) -> Iterator[socket.socket]:
    with socket.create_connection(served.http, timeout) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


class Answers:
    """Reads HTTP answers off a socket, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""

    def next(self) -> Reply | None:
        """The next answer; `None` at the end of the connection. An interim one is passed over."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        if status == 100:
            return self.next()
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        else:
            body = self._exactly(int(headers["content-length"]))
        message = ""
        if status >= 400:
            message = json.loads(body)["error"]
        return Reply(status, message, body, headers)

    def all(self) -> list[Reply]:
        """Every answer until the connection is closed."""
        replies = []
        while (reply := self.next()) is not None:
            replies.append(reply)
        return replies

    def _more(self) -> bool:
        try:
            data = self._sock.recv(1 << 18)
        except ConnectionResetError:
            return False
        self._rest += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._rest:
            if not self._more():
                assert not self._rest, f"cut off: {self._rest[:200]!r}"
                return None
        head, _, self._rest = self._rest.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        parts, missing = [self._rest], size - len(self._rest)
        while missing > 0:
            data = self._sock.recv(1 << 18)
            assert data, "cut off in a body"
            parts.append(data)
            missing -= len(data)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]

    def _chunks(self) -> bytes:
        body = b""
        while True:
            line = self._until(b"\r\n")
            assert line is not None
            data = self._exactly(int(line, 16))
            self._exactly(2)
            if not data:
                return body
            body += data


Headers = Mapping[str, str] | Sequence[tuple[str, str]]


def http_bytes(
    target: str | bytes, body: bytes = b"", headers: Headers = (), *, method: str = "POST",
    length: bool = True,
) -> bytes:  # fmt: skip
    """A request as it goes over the wire; says its length itself unless told not to."""
    target = target if isinstance(target, bytes) else target.encode("latin-1")
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"host: gateway"]
    items = headers.items() if isinstance(headers, Mapping) else headers
    lines += [f"{name}: {value}".encode("latin-1") for name, value in items]
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def send(sock: socket.socket, data: bytes) -> None:
    """Sends what the other side takes: it may close before it has all."""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def raw(served: Served, data: bytes) -> list[Reply]:
    """Sends bytes and reads what comes back until the gateway closes or falls silent."""
    with connected(served) as sock:
        send(sock, data)
        answers = Answers(sock)
        first = answers.next()
        if first is None:
            return []
        if "close" in first.headers.get("connection", ""):
            return [first, *answers.all()]
        return [first]


def http(
    served: Served, target: str | bytes, body: bytes = b"", headers: Headers = (),
    *, method: str = "POST",
) -> Reply:  # fmt: skip
    """One request on a connection of its own."""
    with connected(served) as sock:
        send(sock, http_bytes(target, body, headers, method=method))
        reply = Answers(sock).next()
        assert reply is not None
        return reply


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


INFER = "/v2/models/{}/infer"
ADD = INFER.format("add")


def infer_json(served: Served, body: Any, model: str = "add", headers: Headers = ()) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http(served, INFER.format(model), data, headers)


def tensor(
    data: Any = None, shape: Any = None, datatype: Any = "FP32", name: Any = "x", **more: Any
) -> dict[str, Any]:
    """An input as in JSON; four zeros of `add` unless told otherwise."""
    if data is None and "parameters" not in more:
        data = [0.0] * 4
    made = {"name": name, "datatype": datatype, "shape": [1, 4] if shape is None else shape, **more}
    return made if data is None else {**made, "data": data}


def good_http(served: Served) -> int:
    reply = infer_json(served, {"inputs": [tensor([1, 2, 3, 4])]})
    if reply.ok:
        assert reply.json["outputs"][0]["data"] == [2, 3, 4, 5]
    return int(reply.status)


# --- gRPC

SERVICE = "/inference.GRPCInferenceService/"


def good_message(model: str = "add") -> bytes:
    """A ModelInferRequest that is right."""
    return message([raw_input(struct.pack("<4f", 1, 2, 3, 4))], model=model)


def raw_input(
    data: bytes, shape: Sequence[int] = (1, 4), datatype: str = "FP32", name: str = "x"
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "raw": data}


def message(
    inputs: Sequence[Mapping[str, Any]],
    *,
    model: str = "add",
    version: str = "",
    parameters: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    change: Callable[[Any], object] | None = None,
) -> bytes:
    """A serialized ModelInferRequest. Inputs have `raw` bytes or `contents` (field → values)."""
    made = ModelInferRequest(model_name=model, model_version=version)
    for each in inputs:
        added = made.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        if "raw" in each:
            made.raw_input_contents.append(each["raw"])
        for field, values in each.get("contents", {}).items():
            getattr(added.contents, field).extend(values)
    for name in outputs:
        made.outputs.add(name=name)
    put_parameters(made.parameters, parameters or {})
    if change is not None:
        change(made)
    encoded: bytes = made.SerializeToString()
    return encoded


def put_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(target[name], kind[type(value)], value)


def call(served: Served, payload: bytes, method: str = "ModelInfer", **options: Any) -> Reply:
    """One unary gRPC call of bytes."""
    rpc = served.channel.unary_unary(SERVICE + method)
    try:
        body, _ = rpc.with_call(payload, timeout=options.pop("timeout", PATIENCE), **options)
    except grpc.RpcError as error:
        return Reply(error.code(), error.details() or "")
    return Reply(grpc.StatusCode.OK, "", body)


def response(reply: Reply) -> Any:
    """The ModelInferResponse of a good reply."""
    assert reply.ok, reply
    return ModelInferResponse.FromString(reply.body)


# --- one way in for what concerns both protocols

_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class Door:
    """A protocol to knock with: ``http``, ``native`` or ``grpcio``."""

    def __init__(self, name: str, served: Served) -> None:
        self.name = name
        self.served = served

    @property
    def is_http(self) -> bool:
        return self.name == "http"

    def infer(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        model: str = "add",
        version: str = "",
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
    ) -> Reply:
        """An inference; inputs have `data` (a flat list) or `raw` (bytes)."""
        if self.is_http:
            return self._http(inputs, model, version, parameters, outputs)
        made = []
        for each in inputs:
            new = dict(each)
            if "data" in new:
                values = new.pop("data")
                if new["datatype"] == "BYTES":
                    values = [v.encode() if isinstance(v, str) else v for v in values]
                new["contents"] = {_CONTENTS[new["datatype"]]: values}
            made.append(new)
        return call(
            self.served,
            message(made, model=model, version=version, parameters=parameters, outputs=outputs),
        )

    def _http(self, inputs: Any, model: str, version: str, parameters: Any, outputs: Any) -> Reply:
        from urllib.parse import quote

        target = f"/v2/models/{quote(model, safe='')}"
        if version:
            target += f"/versions/{quote(version, safe='')}"
        rest = b""
        made = []
        for each in inputs:
            new = dict(each)
            if "raw" in new:
                data = new.pop("raw")
                rest += data
                new["parameters"] = {"binary_data_size": len(data)}
            made.append(new)
        tree: dict[str, Any] = {"inputs": made}
        if parameters:
            tree["parameters"] = parameters
        if outputs:
            tree["outputs"] = [{"name": name} for name in outputs]
        head = json.dumps(tree).encode()
        headers = {"inference-header-content-length": str(len(head))} if rest else {}
        return http(self.served, target + "/infer", head + rest, headers)
