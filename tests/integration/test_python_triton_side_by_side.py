"""The same files for Triton's Python backend, in a real tritonserver and here."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from tests.support.gateway import PATIENCE, GatewayProcess
from tests.support.triton import TritonProcess
from tests.support.triton_files import FILES, write_repository

Answer = dict[str, Any] | str
KINDS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
DTYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES",
    **{kind.lower(): kind for kind in KINDS},
}  # fmt: skip


def floats(*values: Any) -> Any:
    return np.array(values, np.float32)


def ints(*values: Any) -> Any:
    return np.array(values, np.int32)


def texts(*values: Any) -> Any:
    return np.array(values, object)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonProcess, Any]]:
    """A tritonserver and a gateway over the same folder of files."""
    folder = tmp_path_factory.mktemp("side")
    repository = write_repository(folder / "repository")
    with TritonProcess(folder, (), wait=False) as theirs:
        ours = GatewayProcess(folder, [repository])
        try:
            theirs.wait_ready()
            yield theirs, ours
        finally:
            assert ours.stop() == 0


def tensors(module: Any, inputs: dict[str, Any]) -> list[Any]:
    made = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), DTYPES[array.dtype.name])
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def by_grpc(address: str, model: str, inputs: dict[str, Any], **more: Any) -> Answer:
    """The outputs, or the status code of the error."""
    outputs = [grpc_client.InferRequestedOutput(name) for name in more.pop("outputs", ())]
    with grpc_client.InferenceServerClient(address) as client:
        try:
            given = client.infer(
                model,
                tensors(grpc_client, inputs),
                outputs=outputs or None,
                client_timeout=PATIENCE,
                **more,
            )
        except InferenceServerException as error:
            return str(error.status())
        return plain(given, [output.name for output in given.get_response().outputs])


def by_http(address: str, model: str, inputs: dict[str, Any], **more: Any) -> Answer:
    """The same by HTTP."""
    outputs = [http_client.InferRequestedOutput(name) for name in more.pop("outputs", ())]
    client = http_client.InferenceServerClient(address, network_timeout=PATIENCE)
    try:
        given = client.infer(model, tensors(http_client, inputs), outputs=outputs or None, **more)
    except InferenceServerException as error:
        return str(error.status())
    finally:
        client.close()
    return plain(given, [output["name"] for output in given.get_response()["outputs"]])


def plain(given: Any, names: list[str]) -> dict[str, Any]:
    arrays = {name: given.as_numpy(name) for name in names}
    return {name: (a.dtype.name, a.shape, a.tolist()) for name, a in arrays.items()}


def every_kind() -> dict[str, Any]:
    made = {kind: np.array([0, 1, 100], kind.lower()) for kind in KINDS}
    made["BOOL"] = np.array([True, False, True])
    made |= {f"FP{bits}": np.array([0, -1.5, 3], f"float{bits}") for bits in (16, 32, 64)}
    return made


SAID = {"parameters": {"a": 1, "b": "x", "c": True}, "request_id": "id-1", "timeout": 60_000_000}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("plain", {"a": floats(1, 2, 3, 4), "b": floats(4, 3, 2, 1)}, {}),
    ("plain", {"a": floats(1, 2, 3), "b": floats(4, 3, 2, 1)}, {}),
    ("plain", {"a": floats(1, 2, 3, 4)}, {}),
    ("text", {"text": texts([b"ab", b"c"], [b"", b"\xc3\xa9z"])}, {}),
    ("completed", {"x": floats([1, 2], [3, 4], [5, 6])}, {}),
    ("parameters", {"x": floats(1)}, SAID),
    ("parameters", {"x": floats(1)}, {}),
    ("bls", {"x": floats(1, 2, 3, 4)}, {}),
    ("async_bls", {"x": floats(1, 2, 3, 4)}, {}),
    ("dlpack", {"x": floats(1, 2, 3)}, {}),
    ("wanted", {"x": floats(1)}, {}),
    ("wanted", {"x": floats(1)}, {"outputs": ["names", "z"]}),
    ("logs", {"x": floats(1, 2)}, {}),
    ("kinds", every_kind(), {}),
    ("senders", {"x": floats([1, 2])}, {}),
    ("repeat", {"count": ints(1)}, {}),
    ("nobody", {"x": floats(1)}, {}),
    *[("wrong", {"x": ints(kind)}, {}) for kind in (1, 2, 3)],
    # Codes 0 and 6 (unknown, already exists) have no counterpart here.
    *[("errors", {"x": ints([kind])}, {}) for kind in (-1, 1, 2, 3, 4, 5, 7, 100, 101, 102)],
]


@pytest.mark.parametrize(
    ("model", "inputs", "more"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)]
)
def test_the_same_file_gives_the_same_answer(
    both: tuple[TritonProcess, GatewayProcess],
    model: str,
    inputs: dict[str, Any],
    more: dict[str, Any],
) -> None:
    theirs, ours = both
    expected = by_grpc(theirs.grpc, model, dict(inputs), **more)
    assert by_grpc(ours.grpc, model, dict(inputs), **more) == expected
    if not isinstance(expected, str):
        assert by_http(theirs.http, model, dict(inputs), **more) == expected
        assert by_http(ours.http_address, model, dict(inputs), **more) == expected


def note(answers: queue.Queue[Any], number: int, result: Any, error: Any) -> None:
    """Keeps an answer's value, or the status code of the error."""
    answers.put((number, error.status() if error else int(result.as_numpy("y")[0, 0])))


def streamed(address: str, count: int) -> list[Any]:
    """What a decoupled model gives; an error's text where it gives one."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "repeat",
            tensors(grpc_client, {"count": ints(count)}),
            enable_empty_final_response=True,
        )
        seen: list[Any] = []
        while True:
            result, error = answers.get(timeout=PATIENCE)
            if error is not None:
                return [*seen, error.message()]
            parameters = result.get_response().parameters
            if result.get_response().outputs:
                seen.append(result.as_numpy("index").tolist())
            if parameters["triton_final_response"].bool_param:
                return seen


@pytest.mark.parametrize("count", [0, 1, 7, -3])
def test_decoupled_answers_are_the_same(
    both: tuple[TritonProcess, GatewayProcess], count: int
) -> None:
    theirs, ours = both
    expected = streamed(theirs.grpc, count)
    assert len(expected) == (count if count >= 0 else 4)
    assert streamed(ours.grpc, count) == expected


def test_an_error_ends_one_request_and_not_its_batch(
    both: tuple[TritonProcess, GatewayProcess],
) -> None:
    """Requests that were batched together: each gets its own answer or its own error."""
    for server in both:
        waiting: queue.Queue[tuple[int, Any]] = queue.Queue()
        with grpc_client.InferenceServerClient(server.grpc) as client:
            for number in range(16):
                value = -number if number % 2 else 3
                client.async_infer(
                    "errors",
                    tensors(grpc_client, {"x": ints([value])}),
                    partial(note, waiting, number),
                )
            seen = dict(waiting.get(timeout=PATIENCE) for _ in range(16))
        for number, answer in seen.items():
            expected = -number if number % 2 else "StatusCode.INVALID_ARGUMENT"
            assert answer == expected


def test_log_lines_go_to_the_log_under_the_models_name(
    both: tuple[TritonProcess, GatewayProcess],
) -> None:
    _, ours = both
    by_grpc(ours.grpc, "logs", {"x": floats(1)})
    log = ours.log()
    for line in ("INFO    logs: an info line", "WARNING logs: a warning line",
                 "ERROR   logs: an error line", "WARNING logs: a line by level"):  # fmt: skip
        assert line in log
    assert "a verbose line" not in log


def test_the_configuration_that_clients_see(both: tuple[TritonProcess, GatewayProcess]) -> None:
    theirs, ours = both
    for model in FILES:
        seen = []
        for server in (theirs.grpc, ours.grpc):
            with grpc_client.InferenceServerClient(server) as client:
                config = client.get_model_config(model, as_json=True)["config"]
                metadata = client.get_model_metadata(model, as_json=True)
            seen.append(
                (
                    config["backend"],
                    config.get("max_batch_size", 0),
                    config["input"],
                    config["output"],
                    config.get("model_transaction_policy"),
                    metadata["inputs"],
                    metadata["outputs"],
                )
            )
        assert seen[0] == seen[1], model


def test_the_files_stay_as_they_were(both: tuple[TritonProcess, Any], tmp_path: Path) -> None:
    theirs, _ = both
    fresh = write_repository(tmp_path / "fresh")
    for name in FILES:
        for file in ("config.pbtxt", "1/model.py"):
            served = theirs.folder / "repository" / name / file
            assert served.read_bytes() == (fresh / name / file).read_bytes()
