"""Requests of load tests: made up, read from files, and encoded as the gateway decodes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.invocations import decode_invocations, parse_invocations
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.codecs.oip_rest import RestCodec
from gateway.codecs.v1_rest import decode_v1
from gateway.config import LimitsConfig
from gateway.tensors import DATATYPES, InferenceRequest, Tensor, TensorSpec
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Sample
from loadtests.payloads.bodies import contract_of
from loadtests.payloads.encode import EMPTY_FINAL, MODEL_HEADER, encode
from loadtests.payloads.sources import open_payloads

LIMITS = LimitsConfig()
NO_JSON = ("FP16", "BF16")


def model(*specs: tuple[str, str, tuple[int, ...]]) -> ModelMetadata:
    inputs = tuple(TensorSpec(name, DATATYPES[kind], shape) for name, kind, shape in specs)
    return ModelMetadata("m", ("1",), "", inputs, ())


def decoded(protocol: Protocol, body: bytes, head: str | None, known: ModelMetadata) -> Any:
    """What the gateway makes of a request."""
    contract = contract_of(known)
    if not protocol.http:
        return GrpcCodec(LIMITS).decode(body)[0]
    if protocol is Protocol.V1:
        return decode_v1("m", "", body, contract, LIMITS)
    if protocol is Protocol.INVOCATIONS:
        payload = parse_invocations(body, "application/json", LIMITS)
        return decode_invocations("m", "", payload, contract)
    length = int(head) if head is not None else None
    return RestCodec(LIMITS).decode("m", "", body, length)[0]


def same(sent: tuple[Tensor, ...], found: InferenceRequest) -> None:
    found.check_data()
    assert [(t.name, t.datatype, t.shape) for t in found.inputs] == [
        (t.name, t.datatype, t.shape) for t in sent
    ]
    for one, other in zip(sent, found.inputs, strict=True):
        assert bytes(one.data) == bytes(other.data)


KINDS = st.sampled_from(sorted(DATATYPES))
INNER = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@settings(deadline=None)
@given(
    protocol=st.sampled_from(list(Protocol)),
    inputs=st.lists(st.tuples(KINDS, INNER), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_made_up_requests_arrive_as_they_were_made(
    protocol: Protocol, inputs: list[tuple[str, tuple[int, ...]]], rows: int, seed: int
) -> None:
    known = model(*((f"x{n}", kind, (-1, *inner)) for n, (kind, inner) in enumerate(inputs)))
    samples, words = open_payloads("", known, rows=rows, count=2, seed=seed)
    assert len(samples) == 2 and f"seed {seed}" in words
    target = Target(model="m", protocol=protocol)
    plain = protocol.http and protocol is not Protocol.BINARY
    for sample in samples:
        if plain and any(kind in NO_JSON for kind, _ in inputs):
            with pytest.raises(BenchError, match=f"which {protocol} cannot say; use grpc or"):
                encode(sample, target)
            continue
        wire = encode(sample, target)
        head = dict(wire.headers).get("inference-header-content-length")
        found = decoded(protocol, wire.body, head, known)
        same(sample.inputs, found)
        contract_of(known).check(found)


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@settings(deadline=None)
@given(
    protocol=st.sampled_from(list(Protocol)),
    numbers=st.lists(FINITE, min_size=1, max_size=5),
    whole=st.integers(-(2**63), 2**63 - 1),
    text=TEXT,
    truth=st.booleans(),
)
def test_any_values_arrive_as_they_are(
    protocol: Protocol, numbers: list[float], whole: int, text: str, truth: bool
) -> None:
    known = model(
        ("f", "FP32", (-1, -1)), ("i", "INT64", (-1,)), ("t", "BYTES", (-1,)), ("b", "BOOL", (-1,))
    )
    words = np.empty(1, object)
    words[0] = text.encode()
    values = (np.array([numbers], "<f4"), np.array([whole]), words, np.array([truth]))
    sample = Sample(
        tuple(
            Tensor(spec.name, spec.datatype, array.shape, array=array)
            for spec, array in zip(known.inputs, values, strict=True)
        )
    )
    wire = encode(sample, Target(model="m", protocol=protocol))
    head = dict(wire.headers).get("inference-header-content-length")
    same(sample.inputs, decoded(protocol, wire.body, head, known))


def test_paths_headers_and_parameters() -> None:
    known = model(("x", "FP32", (-1, 2)))
    inputs = open_payloads("", known)[0][0].inputs
    sample = Sample(inputs, {"top": 3}, (("x-sluice-key", "u"),), 0.5, ("y",))
    target = Target(model="a/b", protocol=Protocol.GRPC, version="2", headers=(("k", "v"),))
    wire = encode(sample, target)
    assert wire.path == "/inference.GRPCInferenceService/ModelInfer" and wire.at_s == 0.5
    assert wire.headers == (("x-sluice-key", "u"), ("k", "v"))
    found = GrpcCodec(LIMITS).decode(wire.body)[0]
    assert (found.model, found.version, found.outputs) == ("a/b", "2", ("y",))
    assert found.parameters == {"top": 3}

    def wired(protocol: Protocol, version: str = "", of: Sample = sample) -> Any:
        return encode(of, Target(model="a/b", protocol=protocol, version=version))

    assert wired(Protocol.JSON, "2").path == "/v2/models/a%2Fb/versions/2/infer"
    stream = GrpcCodec(LIMITS).decode(wired(Protocol.STREAM).body)[0]
    assert stream.parameters == {"top": 3, EMPTY_FINAL: True}
    plain = Sample(inputs, {"top": 3})
    invocations = wired(Protocol.INVOCATIONS, of=plain)
    assert invocations.path == "/invocations" and (MODEL_HEADER, "a/b") in invocations.headers
    assert json.loads(invocations.body)["params"] == {"top": 3}
    assert wired(Protocol.INVOCATIONS, "2", plain).path == "/models/a%2Fb/versions/2/invocations"
    assert wired(Protocol.V1, of=Sample(inputs)).path == "/v1/models/a%2Fb:predict"
    for protocol, version, of, words in (
        (Protocol.V1, "2", plain, "no word for versions"),
        (Protocol.V1, "", plain, "parameter 'top'"),
        (Protocol.V1, "", Sample(inputs, outputs=("y",)), "output 'y'"),
        (Protocol.INVOCATIONS, "", sample, "output 'y'"),
    ):
        with pytest.raises(BenchError, match=words):
            wired(protocol, version, of)


@pytest.mark.parametrize("protocol", [Protocol.JSON, Protocol.V1, Protocol.INVOCATIONS])
def test_what_json_cannot_say_is_refused(protocol: Protocol) -> None:
    target = Target(model="m", protocol=protocol)
    infinite = np.array([np.inf], "<f4")
    raw = np.empty(1, object)
    raw[0] = b"\xff"
    for kind, array, words in (("FP32", infinite, "infinity"), ("BYTES", raw, "not UTF-8")):
        with pytest.raises(BenchError, match=words):
            encode(Sample((Tensor("x", DATATYPES[kind], (1,), array=array),)), target)
    if protocol is not Protocol.JSON:
        empty = Tensor("x", DATATYPES["FP32"], (0,), array=np.empty(0, "<f4"))
        with pytest.raises(BenchError, match="at least one"):
            encode(Sample((empty,)), target)


def test_open_sizes_are_asked_for_by_tensor_and_axis() -> None:
    known = model(("ids", "INT64", (-1, -1)))
    with pytest.raises(BenchError, match=r"input ids INT64 \[-1, -1\] .* axis 1; .* ids=N,N"):
        open_payloads("", known)
    for shape in ((7,), (4, 7)):
        samples, _ = open_payloads("", known, rows=4, shapes={"ids": shape}, ranges={"ids": (5, 6)})
        array = samples[0].inputs[0].array
        assert array.shape == (4, 7) and set(array.ravel().tolist()) <= {5, 6}
    for shapes, words in (({"x": (1,)}, "no such input"), ({"ids": (1, 2, 3)}, "does not fit")):
        with pytest.raises(BenchError, match=words):
            open_payloads("", known, shapes=shapes)  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="give whole numbers"):
        open_payloads("", known, shapes={"ids": (7,)}, ranges={"ids": (0, 1e30)})
    fixed = model(("s", "FP32", (3, 2)))
    assert open_payloads("", fixed, rows=9)[0][0].inputs[0].shape == (3, 2)


def test_small_integers_by_default_and_the_seed_decides() -> None:
    known = model(("x", "UINT8", (-1, 50)))
    first, again, other = (open_payloads("", known, seed=seed)[0] for seed in (1, 1, 2))
    assert first[0].inputs[0].array.max() <= 9
    assert bytes(first[0].inputs[0].data) == bytes(again[0].inputs[0].data)
    assert bytes(first[0].inputs[0].data) != bytes(other[0].inputs[0].data)


# --- files

XY = model(("x", "FP32", (-1, 2)), ("n", "INT64", (-1,)))
OIP = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
        {"name": "n", "shape": [1], "datatype": "INT64", "data": [3]},
    ],
    "parameters": {"p": 1, "binary_data_output": True},
}
V1 = {"instances": [{"x": [1, 2], "n": 3}]}
MLFLOW = {"inputs": {"x": [[1, 2]], "n": [3]}, "params": {"p": 1}}


@pytest.mark.parametrize("body", [OIP, V1, MLFLOW, [OIP, V1]])
def test_bodies_of_every_protocol(tmp_path: Path, body: Any) -> None:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(body))
    samples, words = open_payloads(str(path), XY)
    assert len(samples) == (2 if isinstance(body, list) else 1) and words.startswith("body.json: ")
    for sample in samples:
        x, n = sample.inputs
        assert x.array.tolist() == [[1, 2]] and n.array.tolist() == [3]
    assert samples[0].parameters == ({} if body is V1 else {"p": 1})


def test_bodies_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(OIP))
    assert open_payloads(str(path), None)[0][0].inputs[0].shape == (1, 2)
    path.write_text(json.dumps(V1))
    with pytest.raises(BenchError, match="the model must say"):
        open_payloads(str(path), None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[]", "empty list"),
        ("a.json", b"{}", "none of"),
        ("a.json", b'{"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}',
         "no input 'z'"),
        ("a.json", b'{"instances": [{"x": [1, 2], "n": 0.5}]}', "a.json: input 'n'"),
        ("a.npy", b"junk", "no array file"),
        ("a.npz", b"PK\x03\x04junk", "cannot be read"),
        ("a.csv", b"x,n\n1\n", "line 2"),
        ("a.csv", b"x\n1\n", "missing"),
        ("a.jsonl", b"", "no inference request"),
        ("a.jsonl", b'{"body": {}, "bodi": 1}', "line 1 has an unknown key 'bodi'; known: at_s"),
        ("a.jsonl", b'{"at_s": 1}', "one of 'body'"),
        ("a.jsonl", b'{"at_s": -1, "body": {}}', "'at_s' must be"),
        ("a.jsonl", b'{"body_base64": "!"}', "no base64"),
        ("a.jsonl", b'{"body": {}, "headers": {"Host": "h"}}', "follows from the protocol"),
        ("a.har", b"{}", "no HTTP archive"),
        ("a.har", b'{"log": {"entries": [{}]}}', "entry 0 is not as"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.txt", b"", "no source"),
    ],
)  # fmt: skip
def test_broken_sources_say_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=words) as raised:
        open_payloads(str(tmp_path / name), XY)
    text = str(raised.value)
    assert "\n" not in text and (name == "a.txt" or str(tmp_path) not in text)


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(BenchError, match="no such file"):
        open_payloads("nowhere.json", XY)
    with pytest.raises(BenchError, match="no data set inside scikit-learn; known: sklearn:breast"):
        open_payloads("sklearn:covtype", XY)
    with pytest.raises(BenchError, match="values of its own"):
        open_payloads("nowhere.json", XY, shapes={"x": (1, 2)})
    with pytest.raises(BenchError, match=r"--data FILE\.json"):
        open_payloads("", None)


def test_arrays_are_dealt_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.arange(14.0).reshape(7, 2), n=np.arange(7))
    samples, words = open_payloads(str(path), XY, rows=2)
    assert words == "rows.npz: 3 requests of 2 rows"
    assert [s.inputs[1].array.tolist() for s in samples] == [[0, 1], [2, 3], [4, 5]]
    assert samples[2].inputs[0].array.tolist() == [[8, 9], [10, 11]]
    with pytest.raises(BenchError, match="7 rows, fewer than the 8"):
        open_payloads(str(path), XY, rows=8)
    for arrays, match in (
        ({"x": np.zeros((2, 3)), "n": np.zeros(2, int)}, r"'x': shape \[2, 3\] does not fit"),
        ({"x": np.zeros((2, 2)), "n": np.full(2, 0.5)}, "values that INT64 cannot hold"),
        ({"x": np.zeros((2, 2)), "n": np.zeros(3, int)}, "differ in their number of rows"),
        ({"x": np.zeros((2, 2))}, "no array 'n'"),
        ({"z": np.zeros(2)}, "an array 'z'"),
        ({"x": np.full((2, 2), 1e300), "n": np.zeros(2, int)}, "values that FP32 cannot hold"),
        ({"x": np.zeros((2, 2), bool), "n": np.zeros(2, int)}, "bool does not fit"),
        ({"x": np.array([["a", "b"]]), "n": np.zeros(1, int)}, "does not fit"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(BenchError, match=match):
            open_payloads(str(path), XY)


def test_objects_in_array_files_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BenchError, match="Python objects, which are not read"):
        open_payloads(str(tmp_path / "a.npy"), XY)


def test_tables_of_text_and_parquet(tmp_path: Path) -> None:
    known = model(("a", "FP64", (-1,)), ("t", "BYTES", (-1,)))
    (tmp_path / "t.csv").write_text("a,t,unused\n1.5,x,0\n2,é,0\n3,z,0\n")
    samples, words = open_payloads(str(tmp_path / "t.csv"), known, rows=2)
    assert words == "t.csv: 1 request of 2 rows"
    assert samples[0].inputs[0].array.tolist() == [1.5, 2.0]
    assert samples[0].inputs[1].array.tolist() == [b"x", "é".encode()]
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"a": [1.0, None], "t": ["x", "y"]}).to_parquet(tmp_path / "t.parquet")
    first, second = open_payloads(str(tmp_path / "t.parquet"), known)[0]
    assert first.inputs[0].array.tolist() == [1.0] and np.isnan(second.inputs[0].array[0])


def test_data_sets_go_to_the_inputs_by_width() -> None:
    image = model(("image", "FP32", (-1, 1, 8, 8)))
    samples, words = open_payloads("sklearn:digits", image, rows=4)
    assert words == "sklearn:digits: 449 requests of 4 rows"
    assert samples[0].inputs[0].shape == (4, 1, 8, 8)
    assert samples[0].inputs[0].array.max() > 9
    iris = model(("sepal", "FP32", (-1, 2)), ("petal", "FP32", (-1, 2)))
    first = open_payloads("sklearn:iris", iris)[0][0]
    assert np.allclose(first.inputs[1].array, [[1.4, 0.2]])
    with pytest.raises(BenchError, match=r"shape .150, 4. does not fit image"):
        open_payloads("sklearn:iris", image)


# --- recordings


def test_recorded_lines_keep_their_times_and_headers(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    binary = encode(
        open_payloads("", XY)[0][0], Target(model="m", protocol=Protocol.BINARY, version="")
    )
    length = dict(binary.headers)["inference-header-content-length"]
    lines: list[dict[str, Any]] = [
        {"at_s": 12.5, "model": "m", "body": V1, "headers": {"X-Sluice-Key": "u1"}},
        {"at_s": 12.0, "body": OIP},
        {"at_s": 13.0, "model": "other", "body": {"inputs": []}},
        {
            "at_s": 14.0,
            "body_base64": base64.b64encode(binary.body).decode(),
            "headers": {"Inference-Header-Content-Length": length},
        },
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    samples, words = open_payloads(str(path), XY)
    assert words == "traffic.jsonl: 3 requests, 1 others left out"
    assert [sample.at_s for sample in samples] == [0.0, 0.5, 2.0]
    assert samples[1].headers == (("x-sluice-key", "u1"),) and samples[2].headers == ()
    path.write_text(json.dumps(lines[0]) + "\n" + json.dumps({"body": OIP}))
    with pytest.raises(BenchError, match="1 of 2 requests have an 'at_s'"):
        open_payloads(str(path), XY)
    path.write_text(json.dumps(lines[2]))
    with pytest.raises(BenchError, match=r"no inference request for model 'm'; .* other"):
        open_payloads(str(path), XY)


def test_archives_of_browsers_and_proxies(tmp_path: Path) -> None:
    def entry(path: str, text: str, at: str, **headers: str) -> dict[str, Any]:
        listed = [{"name": name.replace("_", "-"), "value": v} for name, v in headers.items()]
        return {
            "startedDateTime": at,
            "request": {
                "method": "POST",
                "url": f"https://gateway:8443{path}?q=1",
                "headers": listed,
                "postData": {"mimeType": "application/json", "text": text},
            },
        }

    ready = {
        "startedDateTime": "2026-01-01T00:00:00Z",
        "request": {"method": "GET", "url": "https://gateway/v2", "headers": []},
    }
    secret = {"Authorization": "Bearer s", "Cookie": "c", "X_Forwarded_For": "1.2.3.4"}
    at = "2026-01-01T00:00:{:06.3f}+00:00".format
    entries = [
        ready,
        entry("/v2/models/m/infer", json.dumps(OIP), at(2.25), X_Sluice_Key="u", **secret),
        entry("/v1/models/m:predict", json.dumps(V1), at(2.0)),
        entry("/invocations", json.dumps(MLFLOW), at(3.0), X_Sluice_Model="m"),
        entry("/v2/models/other/infer", "{}", at(3.0)),
    ]
    path = tmp_path / "proxy.har"
    path.write_text(json.dumps({"log": {"version": "1.2", "entries": entries}}))
    samples, words = open_payloads(str(path), XY)
    assert words == "proxy.har: 3 requests, 2 others left out"
    assert [sample.at_s for sample in samples] == [0.0, 0.25, 1.0]
    # Tokens, cookies and what proxies add are not sent again.
    assert [sample.headers for sample in samples] == [(), (("x-sluice-key", "u"),), ()]
