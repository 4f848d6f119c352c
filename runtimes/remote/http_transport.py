"""Other servers by HTTP. Imported when a model is loaded that needs it: aiohttp is optional."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp.connector import Connection as Socket
from yarl import URL

from gateway.codecs import client_rest as codec
from gateway.codecs.client_grpc import ModelMetadata, ServerMetadata
from gateway.errors import InferenceFailed, SluiceError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import Location
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.remote.failures import (
    AttemptFailed,
    Fate,
    broken,
    http_failure,
    late,
    said,
    unreachable,
)
from runtimes.remote.transport import (
    CONNECT_SECONDS,
    Connection,
    Pairs,
    There,
    Transport,
    authorities,
    texts,
)

KEEP_ALIVE: Final = 3.0
"""Seconds that an idle connection is kept: less than servers do (uvicorn 5), so that a request
is seldom sent into one that is just being closed."""
SILENT_SECONDS: Final = 20
"""How long a connection may be silent before it is tried, and unacknowledged data be so: else a
host that lost its power would hold its requests for ever."""
BINARY: Final = "binary_tensor_data"
TIMEOUT_HEADER: Final = "x-request-timeout-ms"


class Message(NamedTuple):
    body: bytes
    headers: dict[str, str]


class Answer(NamedTuple):
    body: bytes
    header_length: int | None


class Response(aiohttp.ClientResponse):
    """Uses no connection again that has brought a server error: frameworks close it behind one,
    and the next request, of somebody else, would meet that."""

    async def start(self, connection: Socket) -> Response:
        """As the base."""
        if connection.transport is not None:
            keep_alive(connection.transport.get_extra_info("socket"))
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= 500 and protocol is not None:
            if self.connection is None:  # complete, and given back already
                protocol.close()
            else:
                protocol.force_close()
        return self


class HttpTransport(Transport):
    """One aiohttp session for all replicas; made on the event loop that will use it."""

    asks = True

    def __init__(self, there: There, settings: RemoteSettings) -> None:
        super().__init__(there, settings)
        self.binary = False
        self._schedules = False
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE, ssl=authorities(settings.ca_file) or True
        )
        self.session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=Response,
            headers={"user-agent": "sluicegate", "accept-encoding": "identity"},
        )

    def connect(self, location: Location, address: str) -> HttpConnection:
        """As the base says; a connection is as many sockets as it has requests under way."""
        return HttpConnection(self, location, address)

    def learned(self, extensions: frozenset[str]) -> None:
        """Tensors go as bytes where all servers take them."""
        self.binary = any(BINARY in each for each in extensions)
        self._schedules = any("schedule_policy" in each for each in extensions)

    def encode(self, request: InferenceRequest, timeout: float | None) -> Any:
        """Body and headers. The deadline goes as a header, and to servers that schedule by it
        as the protocol's ``timeout`` as well."""
        if timeout is not None and self._schedules:
            microseconds = max(int(timeout * 1e6), 1)
            request = with_parameter(request, "timeout", microseconds)
        return Message(*codec.encode_request(request, binary=self.binary))

    def decode(self, answer: Any, request: InferenceRequest) -> InferenceResponse:
        """As the base says."""
        there = self.there
        return codec.decode_response(
            answer.body, answer.header_length, there.ours, there.our_version
        )

    async def close(self) -> None:
        """Ends the session."""
        await self.session.close()


class HttpConnection(Connection):
    """The way to one address."""

    def __init__(self, transport: HttpTransport, location: Location, address: str) -> None:
        self._session = transport.session
        host = f"[{address}]" if ":" in address else address
        secure = location.secure
        scheme = "https" if secure else "http"
        self._base = f"{scheme}://{host}:{location.port}{location.prefix}/v2"
        there = transport.there
        self._model = f"{self._base}/models/{quote(there.name, safe='')}"
        if there.version:
            self._model += f"/versions/{quote(there.version, safe='')}"
        self._host = location.authority
        self._fixed = transport.fixed
        self._options: dict[str, Any] = {"allow_redirects": False}
        if secure:
            self._options["server_hostname"] = location.host
        self._limited = transport.settings.timeout_ms / 1e3

    async def infer(self, message: Any, timeout: float | None, headers: Pairs) -> Any:
        """As the base says."""
        sent = [*headers, *message.headers.items()]
        if timeout is not None:
            sent.append((TIMEOUT_HEADER, f"{max(timeout * 1e3, 0.001):.3f}"))
        return await self._call("POST", f"{self._model}/infer", message.body, sent, timeout)

    async def _call(
        self, method: str, url: str, body: bytes | None, headers: Pairs, timeout: float | None
    ) -> Answer:
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method,
                URL(url, encoded=True),
                data=body,
                headers=[("host", self._host), *headers],
                timeout=limits,
                **self._options,
            ) as response:
                answer = await response.read()
                status = response.status
                length = response.headers.get(codec.HEADER_LENGTH)
                retry_after = response.headers.get("retry-after")
        except aiohttp.ClientConnectorError as error:
            raise unreachable(said(error)) from None
        except aiohttp.ConnectionTimeoutError:
            raise unreachable(f"no connection within {CONNECT_SECONDS:g} s") from None
        except TimeoutError:
            raise late(limited=timeout is not None and timeout == self._limited) from None
        except aiohttp.InvalidURL:
            raise AttemptFailed(Fate.ANSWERED, InferenceFailed("the url is invalid")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise broken(said(error, type(error).__name__)) from None
        if status != 200:
            raise http_failure(status, reason(answer), retry_after=retry_after)
        return Answer(answer, int(length) if length and length.isdigit() else None)

    # --- control

    async def ready(self, timeout: float) -> str:
        """As the base says; a server that does not know the question is ready."""
        for url, what in ((f"{self._base}/health/ready", "it"), (f"{self._model}/ready", "model")):
            try:
                answer = await self._call("GET", url, None, self._fixed, timeout)
            except AttemptFailed as failure:
                if failure.fate in (Fate.UNSENT, Fate.UNKNOWN, Fate.LATE, Fate.EXPIRED):
                    raise
                if what == "it" and failure.fate in (Fate.ANSWERED, Fate.ABSENT):
                    continue
                return str(failure)
            if b'"ready":false' in answer.body.replace(b" ", b""):
                return "the server says that it is not ready"
        return ""

    async def model(self, timeout: float) -> ModelMetadata:
        """As the base says."""
        answer = await self._call("GET", self._model, None, self._fixed, timeout)
        try:
            return codec.parse_metadata(answer.body)
        except SluiceError as error:
            raise AttemptFailed(Fate.ANSWERED, error) from None

    async def server(self, timeout: float) -> ServerMetadata:
        """As the base says."""
        answer = await self._call("GET", self._base, None, self._fixed, timeout)
        try:
            tree = msgspec.json.decode(answer.body)
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise AttemptFailed(Fate.ANSWERED, InferenceFailed("its metadata is no JSON object"))
        extensions = tree.get("extensions")
        return ServerMetadata(
            str(tree.get("name", "")),
            str(tree.get("version", "")),
            texts(extensions) if isinstance(extensions, list) else (),
        )

    async def close(self) -> None:
        """Sockets belong to the session."""


def keep_alive(end: Any) -> None:
    """Has the system notice that the other host is gone; `end` is a socket or `None`."""
    if end is None or end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return
    options = {
        "TCP_KEEPIDLE": SILENT_SECONDS,
        "TCP_KEEPINTVL": SILENT_SECONDS // 4,
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000,
    }
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):  # systems differ
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def reason(body: bytes) -> str:
    """What an error's body says: servers differ in the key."""
    try:
        tree = msgspec.json.decode(body)
    except ValueError:
        text = body[:2000].decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else text
    if isinstance(tree, dict):
        for key in ("error", "detail", "message"):
            if tree.get(key):
                return str(tree[key])
    return str(tree)


def with_parameter(request: InferenceRequest, name: str, value: int) -> InferenceRequest:
    return InferenceRequest(
        request.model,
        request.version,
        request.inputs,
        id=request.id,
        outputs=request.outputs,
        parameters={**(request.parameters or {}), name: value},
        signature=request.signature,
    )
