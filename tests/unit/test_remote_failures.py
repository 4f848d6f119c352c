"""What another server's statuses mean: for the caller, and for trying again."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.statuses import grpc_status, http_status, retry_after
from gateway.errors import SluiceError
from runtimes.remote.failures import (
    AttemptFailed,
    Fate,
    broken,
    grpc_failure,
    http_failure,
    seconds,
)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode if code.value[0]}


MAY_HAVE_RUN = str(broken("gone").error)


def of_grpc(code: int, text: str = "", **marks: bool) -> AttemptFailed:
    marks = {"connected": True, "trailers": False, "limited": False, **marks}
    return grpc_failure(code, text, **marks)


@pytest.mark.parametrize(
    ("text", "connected", "trailers", "fate"),
    [
        # as grpcio 1.85 says it
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
         "connect to remote host: Connection refused", False, False, Fate.UNSENT),
        ("Stream removed (Socket closed)", False, False, Fate.UNKNOWN),
        ("Stream removed (sendmsg: Broken pipe (32))", True, False, Fate.UNKNOWN),
        ("recvmsg:Connection reset by peer", True, False, Fate.UNKNOWN),
        ("GOAWAY received; Error code: 0; Debug Text: ", True, False, Fate.UNKNOWN),
        ("keepalive watchdog timeout", False, False, Fate.UNKNOWN),
        # a server that stops, with calls that run
        ("Cancelling all calls", True, False, Fate.UNKNOWN),
        # Envoy, when the server behind it goes away
        ("upstream connect error or disconnect/reset before headers", True, False, Fate.UNKNOWN),
        # words that nobody knows: believed where the connection is still there
        ("the model is loading", True, False, Fate.REFUSED),
        ("the model is loading", False, False, Fate.UNKNOWN),
        ("the model is loading", False, True, Fate.REFUSED),
        ("", True, False, Fate.REFUSED),
        # Envoy's own replies have metadata, which say nothing about who was at work
        ("upstream connect error or disconnect/reset before headers. reset reason: connection "
         "termination", True, True, Fate.UNKNOWN),
        ("failed to connect to all addresses; Connection refused", True, True, Fate.UNKNOWN),
        # another gateway, whose own server went away
        (MAY_HAVE_RUN, True, True, Fate.UNKNOWN),
        ("the model's server cannot be reached; try again later", True, True, Fate.REFUSED),
    ],
)  # fmt: skip
def test_unavailable(text: str, connected: bool, trailers: bool, fate: Fate) -> None:
    failure = of_grpc(14, text, connected=connected, trailers=trailers)
    assert failure.fate is fate
    assert failure.retryable == (fate in (Fate.UNSENT, Fate.REFUSED))
    assert failure.retryable_if_idempotent
    assert failure.blames_server
    assert grpc_status(failure.error) == 14


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (3, 3), (11, 3), (4, 4), (5, 14), (7, 7), (16, 7), (8, 8), (12, 12), (13, 13), (2, 13),
        (1, 13), (6, 13), (9, 13), (10, 13), (15, 13),
    ],
)  # fmt: skip
def test_grpc_codes(there: int, here: int) -> None:
    failure = of_grpc(there, "because")
    assert grpc_status(failure.error) == here
    assert failure.retryable == failure.elsewhere == (there in (5, 8))


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (400, 400), (401, 403), (403, 403), (404, 503), (408, 504), (413, 400), (415, 501),
        (422, 400), (429, 429), (500, 500), (501, 501), (502, 503), (503, 503), (504, 504),
        (302, 500), (418, 500), (204, 500),
    ],
)  # fmt: skip
def test_http_statuses(there: int, here: int) -> None:
    failure = http_failure(there, "because")
    assert http_status(failure.error) == here
    assert failure.retryable == (there in (404, 429, 503))
    assert failure.retryable_if_idempotent == (there in (404, 429, 502, 503))
    assert failure.elsewhere == (there in (404, 429))


@given(st.sampled_from(sorted(GRPC_CODES)), st.text(max_size=1000), st.booleans(), st.booleans())
def test_any_text_becomes_one_printable_line(
    code: int, text: str, connected: bool, trailers: bool
) -> None:
    for failure in (
        of_grpc(code, text, connected=connected, trailers=trailers),
        http_failure(400 + code, text),
    ):
        assert isinstance(failure.error, SluiceError)
        for shown in (str(failure.error), str(failure)):
            assert shown.isprintable()
            assert len(shown) < 700


@pytest.mark.parametrize(
    ("text", "fate"),
    [
        (MAY_HAVE_RUN, Fate.UNKNOWN),
        ("upstream connect error or disconnect/reset before headers", Fate.UNKNOWN),
        ("the model is loading", Fate.REFUSED),
        ("", Fate.REFUSED),
    ],
)
def test_503(text: str, fate: Fate) -> None:
    assert http_failure(503, text).fate is fate


def test_what_may_have_been_executed_invites_nobody_to_try_again() -> None:
    assert retry_after(broken("gone").error) is None
    assert retry_after(http_failure(503, MAY_HAVE_RUN, retry_after="1").error) is None


@pytest.mark.parametrize(
    ("text", "large"),
    [
        ("Received message larger than max (5000000 vs. 4194304)", True),
        ("grpc: trying to send message larger than max (10 vs. 5)", True),
        ("gRPC message exceeds maximum size 4194304: 5000000", True),
        ("the queue of m/1 is full (100 requests)", False),
        ("quota exceeded", False),
    ],
)
def test_a_message_that_is_too_large_is_no_better_elsewhere(text: str, large: bool) -> None:
    failure = of_grpc(8, text)
    assert failure.retryable != large
    assert grpc_status(failure.error) == 8
    assert not failure.blames_server


def test_a_timeout_of_our_own_speaks_against_the_server() -> None:
    assert of_grpc(4, limited=True).blames_server
    assert "timeout_ms" in str(of_grpc(4, limited=True).error)
    assert not of_grpc(4).blames_server
    assert not of_grpc(4, limited=True).retryable_if_idempotent


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, 1.0), ("7", 7.0), ("Wed, 21 Oct 2015", 1.0), ("9" * 30, 1.0), ("86400", 3600.0)],
)
def test_retry_after(header: str | None, expected: float) -> None:
    assert seconds(header) == expected
    assert http_failure(503, "", retry_after=header).error.retry_after == expected  # type: ignore[attr-defined]
