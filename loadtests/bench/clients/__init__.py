"""Clients that can be driven at a rate, one per protocol: `open_client`."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.clients.base import Client, Done
from loadtests.bench.plan import Protocol, Target
from loadtests.payloads.base import Wire


def make_client(
    target: Target, payloads: Sequence[Wire], *, connections: int, most: int, done: Done
) -> Client:
    """The client for the target's protocol; not connected yet.

    `connections` are opened by `Client.open`; up to `most` (of ``stream``: streams) where more are
    needed. Raises
    `BenchError` for an address or a certificate that cannot be used.
    """
    if target.protocol.http:
        from loadtests.bench.clients.http1 import Http1Client

        return Http1Client(target, payloads, connections=connections, most=most, done=done)
    if target.protocol is Protocol.STREAM:
        from loadtests.bench.clients.streams import StreamClient

        return StreamClient(target, payloads, connections=connections, most=most, done=done)
    from loadtests.bench.clients.http2 import Http2Client

    return Http2Client(target, payloads, connections=connections, done=done)
