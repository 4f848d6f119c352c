"""The REST client over answers of every kind."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from gateway.errors import RegistryError
from gateway.registries.mlflow import client as module
from gateway.registries.mlflow.auth import bearer
from gateway.registries.mlflow.client import RestClient
from gateway.registries.mlflow.uri import Place


def client(answer: Callable[[httpx.Request], httpx.Response]) -> RestClient:
    made = RestClient(Place("http", "http://h:5000/ml"), {})
    made._http = httpx.Client(transport=httpx.MockTransport(answer))
    return made


def test_pages_are_read_to_the_last() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        token = "" if "page_token" in asked[-1] else ', "next_page_token": "a\\u0062="'
        return httpx.Response(200, text=f'{{"registered_models": []{token}}}')

    assert len(client(answer).pages()) == 2
    first, second = asked
    assert first == "http://h:5000/ml/api/2.0/mlflow/registered-models/search?max_results=1000"
    assert second == f"{first}&page_token=ab%3D"


def test_pages_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAGES", 3)
    endless = client(lambda request: httpx.Response(200, text='{"next_page_token": "a"}'))
    with pytest.raises(RegistryError, match="more than 3 pages of models"):
        endless.pages()
    with pytest.raises(RegistryError, match="more than 3 pages of versions"):
        list(endless.versions("m"))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (httpx.Response(401), "refuses access .401.; set MLFLOW_TRACKING_USERNAME"),
        (httpx.Response(403, text="<html>"), "refuses access .403.;"),
        (httpx.Response(500, json={"message": "it\nbroke"}), "answered 500: it[?]broke"),
        (httpx.Response(502, text="<html>"), "answered 502$"),
        (httpx.Response(302, headers={"location": "http://x"}), "redirects to http://x"),
        (httpx.Response(404, json={"error_code": "ENDPOINT_NOT_FOUND"}), "answered 404$"),
        (httpx.Response(200, text="<html>"), "something else than was asked"),
        (httpx.Response(200, json={"registered_model": {}}), "something else than was asked"),
        (httpx.Response(200, json={"status": "maintenance"}), "something else than was asked"),
    ],
)
def test_answers_that_are_none(answer: httpx.Response, problem: str) -> None:
    with pytest.raises(RegistryError, match=problem) as error:
        client(lambda request: answer).registered("m")
    assert "\n" not in str(error.value)


def test_what_is_not_there() -> None:
    gone = httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
    assert client(lambda request: gone).registered("m") is None


def test_an_answer_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    large = client(lambda request: httpx.Response(200, content=b" " * (3 << 20)))
    with pytest.raises(RegistryError, match="more than 1 MiB"):
        large.pages()


def test_an_error_that_is_too_large() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b" " * 1000

    wrong = client(lambda request: httpx.Response(500, content=endless()))
    for ask in (
        wrong.pages,
        lambda: list(wrong.content("x", 0)),
        lambda: wrong.set_tag("m", "a", "b"),
    ):
        read = 0
        with pytest.raises(RegistryError, match=r"answered 500$"):
            ask()
        assert read < 70_000


@pytest.mark.parametrize("token", [b'"\\q"', b'"\xff"', b'"a\x01"'])
def test_a_token_that_is_none(token: bytes) -> None:
    page = b'{"registered_models": [], "next_page_token": ' + token + b"}"
    with pytest.raises(RegistryError, match="something else than was asked"):
        client(lambda request: httpx.Response(200, content=page)).pages()


def test_pages_of_versions_that_are_none() -> None:
    other = client(lambda request: httpx.Response(200, json={"status": "maintenance"}))
    with pytest.raises(RegistryError, match="something else than was asked"):
        list(other.versions("m"))
    assert list(client(lambda request: httpx.Response(200, text="{}")).versions("m")) == []


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n{}"])
def test_a_server_that_sends_a_byte_now_and_then(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.3)
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:
            connection.recv(1000)
            connection.sendall(head)
            while not ended.wait(0.02):
                connection.sendall(b" " if head else b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        own = RestClient(Place("http", f"http://127.0.0.1:{listener.getsockname()[1]}"), {})
        try:
            with pytest.raises(RegistryError, match="does not answer in time"):
                own.pages()
        finally:
            ended.set()
            thread.join()


def test_a_file_from_its_middle() -> None:
    def ranged(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path.endswith(b"/mlflow-artifacts/artifacts/a%20b/c%23")
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        if start >= 10:
            return httpx.Response(416)
        headers = {"content-range": f"bytes {start}-9/10"} if start else {}
        content = b"0123456789"[start:]
        return httpx.Response(206 if start else 200, headers=headers, content=content)

    assert b"".join(client(ranged).content("a b/c#", 4)) == b"456789"
    assert b"".join(client(ranged).content("a b/c#", 0)) == b"0123456789"
    assert b"".join(client(ranged).content("a b/c#", 10)) == b""
    # A server that knows no ranges sends all of it.
    plain = client(lambda request: httpx.Response(200, content=b"0123456789"))
    assert b"".join(plain.content("x", 4)) == b"456789"


def test_a_user_wins_over_a_token() -> None:
    token = {"MLFLOW_TRACKING_TOKEN": "t"}
    assert bearer(token) == {"authorization": "Bearer t"}
    user = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "p"}
    assert bearer({**token, **user}) == {}
