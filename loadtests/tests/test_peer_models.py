"""The models of the comparison with other servers: the embedding's graph, and the echo."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from loadtests.compare import embedding, models, wire
from loadtests.compare.peers import environments
from loadtests.compare.session import open_session
from loadtests.errors import BenchError

SMALL = embedding.Sizes(layers=2, heads=2, width=8, tokens=5, epsilon=1e-12)
Array = npt.NDArray[np.float64]


def weights(sizes: embedding.Sizes) -> dict[str, npt.NDArray[np.float32]]:
    """Random ones, with the names of a BERT."""
    random, w = np.random.default_rng(7), sizes.width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, w),
        "embeddings.position_embeddings.weight": (9, w),
        "embeddings.token_type_embeddings.weight": (2, w),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(sizes.layers):
        at = f"encoder.layer.{number}"
        for name, out, inside in (
            *((f"attention.self.{each}", w, w) for each in ("query", "key", "value")),
            ("attention.output.dense", w, w),
            ("intermediate.dense", 4 * w, w),
            ("output.dense", w, 4 * w),
        ):
            shapes |= {f"{at}.{name}.weight": (out, inside), f"{at}.{name}.bias": (out,)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (w,), f"{name}.bias": (w,)}
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def norm(x: Array, scale: Array, bias: Array) -> Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    found: Array = (x - mean) / np.sqrt(var + SMALL.epsilon) * scale + bias
    return found


def one_text(ids: list[int], w: dict[str, Array]) -> Array:
    """BERT written down plainly, for one text without anything behind its end."""

    def linear(x: Array, name: str) -> Array:
        found: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return found

    def normal(x: Array, name: str) -> Array:
        return norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = normal(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    size = SMALL.width // SMALL.heads
    for number in range(SMALL.layers):
        at = f"encoder.layer.{number}"
        q, k, v = (linear(x, f"{at}.attention.self.{each}") for each in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(SMALL.heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            mixed[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
        mixed = linear(mixed, f"{at}.attention.output.dense")
        x = normal(x + mixed, f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = normal(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(0)
    found: Array = mean / np.linalg.norm(mean)
    return found


def test_the_graph_is_a_bert_and_what_is_behind_a_text_changes_nothing() -> None:
    random = weights(SMALL)
    exact = {name: value.astype(np.float64) for name, value in random.items()}
    session = onnxruntime.InferenceSession(embedding.build(random, SMALL).SerializeToString())
    texts = [[3, 4, 5, 6, 7], [9, 2], [11]]
    ids = np.zeros((3, SMALL.tokens), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    together = session.run(["y"], {"x": ids})[0]
    for i, text in enumerate(texts):
        np.testing.assert_allclose(together[i], one_text(text, exact), atol=1e-5)
    nothing = session.run(["y"], {"x": np.zeros((1, SMALL.tokens), np.int64)})[0]
    assert np.isfinite(nothing).all()


def test_weights_that_are_not_a_bert_s_are_refused() -> None:
    some = weights(SMALL)
    del some["encoder.layer.1.output.dense.bias"]
    with pytest.raises(BenchError, match=r"have no encoder\.layer\.1\.output\.dense\.bias"):
        embedding.build(some, SMALL)


def test_safetensors(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    head = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
            "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        }
    ).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8) + values.tobytes())
    found = embedding.read_safetensors(file)
    assert list(found) == ["w"]
    assert np.array_equal(found["w"], values)
    for broken in (b"", b"\xff" * 8, file.read_bytes()[:-4]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
            embedding.read_safetensors(file)


TEXTS = {
    "A man is eating food.": [101, 1037, 2158, 2003, 5983, 2833, 1012, 102],
    "A man is eating a piece of bread.": [
        *(101, 1037, 2158, 2003, 5983, 1037, 3538, 1997, 7852, 1012, 102)
    ],
    "The girl is carrying a baby.": [101, 1996, 2611, 2003, 4755, 1037, 3336, 1012, 102],
    "A cheetah is running behind its prey.": [
        *(101, 1037, 18178, 12928, 2232, 2003, 2770, 2369, 2049, 8336, 1012, 102)
    ],
}


def test_similar_sentences_are_nearer_than_others(tmp_path: Path) -> None:
    package = environments.weights(environments.default_root())
    if package is None:
        pytest.skip("the weights are not installed: loadtests.compare.peers install embedding")
    model = models.make("embedding", tmp_path, package)
    ids = np.zeros((len(TEXTS), embedding.TOKENS), np.int64)
    for row, text in zip(ids, TEXTS.values(), strict=True):
        row[: len(text)] = text
    y = open_session(model.path, 1).run(["y"], {"x": ids})[0]
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)
    near = y @ y.T
    # The trusted implementation (transformers) says 0.755 for the first pair.
    assert near[0, 1] == pytest.approx(0.755, abs=0.002)
    assert near[0, 1] > max(near[0, 2], near[0, 3], near[2, 3]) + 0.5


def test_without_its_weights_the_embedding_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="peers install embedding"):
        models.make("embedding", tmp_path)
    with pytest.raises(BenchError, match="peers install embedding"):
        models.make("embedding", tmp_path, tmp_path)


def test_rows_of_the_embedding_are_texts() -> None:
    model = models.Model("embedding", Path("x"), (32,), (384,), False, datatype="INT64")
    rows = models.random_rows(model, 50)
    assert rows.dtype == np.int64
    assert rows.shape == (50, 32)
    for row in rows:
        length = int((row != 0).sum())
        assert 4 <= length <= 32
        assert (row[0], row[length - 1]) == (models.START, models.END)
        assert not row[length:].any()


def test_the_echo_gives_back_what_it_gets(tmp_path: Path) -> None:
    model = models.make("echo", tmp_path)
    rows, answers = models.samples(model)
    assert rows.nbytes == model.pool << 22
    assert np.array_equal(rows, answers)


def test_token_ids_are_int64_on_every_route() -> None:
    pb = pytest.importorskip("tritonclient.grpc.service_pb2")
    ids = np.array([[1, 2**40, 0]], np.int64)
    sent = pb.ModelInferRequest.FromString(wire.grpc_request("m", ids))
    assert (sent.inputs[0].datatype, sent.raw_input_contents[0]) == ("INT64", ids.tobytes())
    text = json.loads(wire.json_request("m", ids).body)["inputs"][0]
    assert (text["datatype"], text["data"]) == ("INT64", [1, 2**40, 0])
    binary = wire.binary_request("m", ids)
    size = int(binary.headers[wire.JSON_LENGTH_HEADER])
    assert json.loads(binary.body[:size])["inputs"][0]["datatype"] == "INT64"
    assert binary.body[size:] == ids.tobytes()
