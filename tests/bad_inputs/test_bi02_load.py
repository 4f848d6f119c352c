"""BI-02: load requests that name paths of their own, or bring too much."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.codecs.messages import METHODS
from tests.bad_inputs.attack import LIMIT, MIB, Reply, Served, http, refused
from tests.bad_inputs.served import SECRET

BEARER = f"Bearer {SECRET}"
OUTSIDE = (
    "../../x", "1/../../x", "..", ".", "", "/etc/passwd", "1//x", "1/", "/1/x", "1\\x", "C:\\x",
    "1/\0", "1/x\0.onnx", "1/\n", " 1/x", "1/ x", "~/x", "1/.hidden", "1/x.", "1/%2e%2e/x", "1/é",
    "1/" + "d/" * 50 + "x", "1/" + "x" * 5000,
)  # fmt: skip


def parameters(door: str, files: dict[str, bytes], config: str = "{}") -> dict[str, Any]:
    named = {f"file:{name}": content for name, content in files.items()}
    if door == "http":
        coded = {name: base64.b64encode(data).decode() for name, data in named.items()}
        return {"config": config, **coded}
    return {
        "config": {"string_param": config},
        **{name: {"bytes_param": data} for name, data in named.items()},
    }


def load(served: Served, door: str, given: dict[str, Any], model: str = "add") -> Reply:
    """A load over HTTP or gRPC, by somebody who may."""
    if door == "http":
        body = json.dumps({"parameters": given}).encode()
        path = f"/v2/repository/models/{model}/load"
        return http(served, path, body, {"authorization": BEARER})
    method = METHODS["RepositoryModelLoad"]
    message = method.request(model_name=model, parameters=given).SerializeToString()
    return load_bytes(served, message)


def load_bytes(served: Served, message: bytes) -> Reply:
    rpc = served.channel.unary_unary(METHODS["RepositoryModelLoad"].path)
    try:
        rpc(message, timeout=30, metadata=(("authorization", BEARER),))
    except grpc.RpcError as error:
        return Reply(error.code(), error.details() or "")  # type: ignore[attr-defined]
    return Reply(grpc.StatusCode.OK, "")


@pytest.fixture(params=["http", "native", "grpcio"])
def way(request: pytest.FixtureRequest, start: Any, used: list[Served]) -> tuple[Served, str]:
    """Each way in, to a gateway that takes loads with files."""
    served = start("loading-grpcio" if request.param == "grpcio" else "loading")
    used.append(served)
    return served, request.param


def state_of(served: Served) -> Path:
    log = Path(served._log.name)
    return log.with_name(f"state-{log.stem}")


def test_bi02a_names_that_lead_out_of_the_model(way: tuple[Served, str]) -> None:
    served, door = way
    folder = state_of(served)
    before = sorted(folder.parent.rglob("*"))
    for name in OUTSIDE:
        given = parameters(door, {"1/model.test": b"", name: b"evil"})
        refused(load(served, door, given), 400, "is no path inside the model's folder")
    for files, words in (
        ({"1/a": b"", "1/a/b": b""}, "is a file and a folder of others"),
        ({"01/model.test": b""}, "none of the files is of a version"),
        ({"labels.txt": b""}, "none of the files is of a version"),
    ):
        refused(load(served, door, parameters(door, files)), 400, words)
    for model in ("..", ".", "..%2f..%2fx", "%00", "-m") if door == "http" else ("../x", "/", "\0"):
        given = parameters(door, {"1/model.test": b""})
        reply = load(served, door, given, model)
        refused(reply, 404)
    assert sorted(folder.parent.rglob("*")) == before


def test_bi02b_links_are_not_followed_out(way: tuple[Served, str]) -> None:
    """Files are written into a folder that was not there before: no link can be in the way."""
    served, door = way
    folder = state_of(served) / "control" / "files"
    target = folder.parent.parent / "elsewhere"
    target.mkdir(parents=True, exist_ok=True)
    given = parameters(door, {"1/model.test": b"", "1/notes.txt": b"new"})
    assert load(served, door, given).ok
    for load_folder in folder.glob("add-*/*"):
        (load_folder / "1" / "notes.txt").unlink()
        (load_folder / "1" / "notes.txt").symlink_to(target / "stolen.txt")
    assert load(served, door, given).ok
    assert not list(target.iterdir())
    assert load(served, door, {}).ok


def test_bi02c_sizes_that_overflow(way: tuple[Served, str]) -> None:
    served, door = way
    big = {"1/model.test": bytes(LIMIT + MIB)}
    refused(load(served, door, parameters(door, big)), 413)
    many = {f"1/{n}": b"" for n in range(1001)}
    refused(load(served, door, parameters(door, many)), 413, "1000 files at most")
    deep = "[" * 100_000
    refused(load(served, door, parameters(door, {"1/model.test": b""}, deep)), 400, "config:")
    vast = '{"max_batch_size": 99999999999999999999}'
    refused(load(served, door, parameters(door, {"1/model.test": b""}, vast)), 400, "config:")
    if door != "http":
        # A length that goes beyond the message.
        refused(load_bytes(served, b"\x12\x03add\x1a\xff\xff\xff\xff\x0f"), 400)


def test_bi02e_who_may_not_load_writes_nothing(way: tuple[Served, str]) -> None:
    """Neither is a body of theirs read to its end, nor a message of theirs parsed."""
    served, door = way
    if door == "http":
        reply = http(served, "/v2/repository/models/add/load", b"{")
        refused(reply, 403, "<admin.token>")
    else:
        rpc = served.channel.unary_unary(METHODS["RepositoryModelLoad"].path)
        with pytest.raises(grpc.RpcError) as caught:
            rpc(b"\x12\x03add", timeout=30)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
