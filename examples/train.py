"""Train the example models and write everything made from them.

Run from the repository's root: ``python -m examples.train``. Needs NumPy, scikit-learn, onnx,
onnxruntime and Pillow, no deep learning framework; takes under a minute on one core. Seeds,
splits and the number of threads are fixed, so a second run on the same machine and library
versions writes the same bytes.

Written: ``models/<model>/<version>/model.onnx``, the model cards (``README.md`` and
``card.json``) with accuracies measured on the written files, ``images/`` and ``requests/``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from examples import convnet
from examples.datasets import MODELS, SPECIES, Array, ModelName, Rows, held_out, split

HERE = Path(__file__).parent
BATCH_ROWS = 32
"""Rows per batch when measuring; the accuracy does not depend on it."""

VOCABULARY = 400
CODE_SIGNS = (
    r".*[\w\])]\(.*",  # a call or a definition: no blank before the parenthesis
    r".*\(\).*",
    r".*\).*",
    r".*[\w\])]\[.*",
    r".*\].*",
    r".*[{}].*",
    r".*\w\.\w.*",
    r".*\w_\w.*",
    r".*__\w.*",
    r".*[^=!<>]=[^=].*",
    r".*(==|!=|<=|>=|->|[-+*/|&]=).*",
    r".*[<>+*/%&|^~@].*",
    r".*['\"].*",
    r".*\\.*",
    r".*:",
    r".*,",
    r".*[)\]}]",
    r".*[.!?]",
    r".*[a-z]\. .*",
    r".*[a-z], [a-z].*",
    r"[A-Z][a-z]+ .*",
    r"[a-z]+( [a-z]+){3,}.*",
    r".* [a-z]+ [a-z]+ [a-z]+.*",
    r"(def|class|if|elif|for|while|with|return|import|from|try|except|raise|assert|del)\b.*",
    r"\S+",
    r"\s*\S{1,12}\s*",
)
"""Shapes of a line (RE2 and whole-line matches), each one feature that is 0 or 1."""


class Graph:
    """An ONNX graph under construction; every tensor's first dimension is the rows, N."""

    def __init__(self, name: str, opset: int = 17, ir_version: int = 8) -> None:
        """Opset 17 is what onnxruntime 1.17 and newer all know; strings need 20 (and IR 9)."""
        self.name = name
        self.opset = opset
        self.ir_version = ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, datatype: int, *dims: int) -> str:
        """Declare an input of shape [N, *dims]."""
        self.inputs.append(helper.make_tensor_value_info(name, datatype, ["N", *dims]))
        return name

    def output(self, name: str, datatype: int, *dims: int) -> None:
        """Declare the tensor ``name`` an output of shape [N, *dims]."""
        self.outputs.append(helper.make_tensor_value_info(name, datatype, ["N", *dims]))

    def constant(self, name: str, values: Any) -> str:
        """A tensor that is part of the model; str becomes an ONNX string."""
        array = np.asarray(values)
        if array.dtype.kind in "US":
            array = array.astype(object)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node with one result, which is returned."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def dense(self, x: str, weights: Array, bias: Array, output: str) -> str:
        """[N,I] by weights [I,O] plus bias [O] → [N,O]."""
        w = self.constant(f"{output}_weights", weights.astype(np.float32))
        b = self.constant(f"{output}_bias", bias.astype(np.float32))
        return self.add("Gemm", [x, w, b], output)

    def probabilities(self, logits: str, classes: int) -> str:
        """Output ``probabilities`` FP32 [N,classes]."""
        self.output("probabilities", TensorProto.FLOAT, classes)
        return self.add("Softmax", [logits], "probabilities", axis=1)

    def named_class(self, logits: str, output: str, names: Sequence[str]) -> None:
        """Output the most likely class of each row by its name: ``output`` BYTES [N]."""
        best = self.add("ArgMax", [logits], "best", axis=1, keepdims=0)
        self.add("Gather", [self.constant("names", list(names)), best], output)
        self.output(output, TensorProto.STRING)

    def model(self) -> onnx.ModelProto:
        """The checked model."""
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, initializer=self.constants
        )
        model = helper.make_model(
            graph,
            producer_name="sluicegate-examples",
            ir_version=self.ir_version,
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def digits_linear(train: Rows) -> onnx.ModelProto:
    """Logistic regression on the 64 pixels."""
    pixels = train.inputs["image"].reshape(-1, 64) / 16
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(pixels, train.expected)
    graph = Graph("digits_linear")
    flat = graph.add("Flatten", [_scaled_image(graph)], "flat", axis=1)
    _digit_outputs(graph, graph.dense(flat, fitted.coef_.T, fitted.intercept_, "logits"))
    return graph.model()


def digits_convnet(train: Rows) -> onnx.ModelProto:
    """The network of ``convnet``."""
    images = (train.inputs["image"] / 16).astype(np.float32)
    w = convnet.train(images, train.expected)
    graph = Graph("digits_convnet")
    x = _scaled_image(graph)
    for name in ("conv1", "conv2"):
        kernel = graph.constant(f"{name}_weights", w[name])
        bias = graph.constant(f"{name}_bias", w[f"{name}_bias"])
        x = graph.add("Conv", [x, kernel, bias], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = graph.add("Relu", [x], f"{name}_relu")
    x = graph.add("MaxPool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Flatten", [x], "flat", axis=1)
    x = graph.dense(x, w["dense1"], w["dense1_bias"], "dense1")
    x = graph.add("Relu", [x], "dense1_relu")
    _digit_outputs(graph, graph.dense(x, w["dense2"], w["dense2_bias"], "logits"))
    return graph.model()


def _scaled_image(graph: Graph) -> str:
    image = graph.input("image", TensorProto.FLOAT, 1, 8, 8)
    return graph.add("Mul", [image, graph.constant("scale", np.float32(1 / 16))], "scaled")


def _digit_outputs(graph: Graph, logits: str) -> None:
    graph.probabilities(logits, 10)
    graph.add("ArgMax", [logits], "label", axis=1, keepdims=0)
    graph.output("label", TensorProto.INT64)


def iris(train: Rows) -> onnx.ModelProto:
    """Logistic regression on the four measures, given as two tensors."""
    measures = np.concatenate([train.inputs["sepal"], train.inputs["petal"]], axis=1)
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(measures, train.expected)
    assert tuple(fitted.classes_) == SPECIES
    graph = Graph("iris")
    parts = [graph.input(name, TensorProto.FLOAT, 2) for name in ("sepal", "petal")]
    joined = graph.add("Concat", parts, "measures", axis=1)
    logits = graph.dense(joined, fitted.coef_.T, fitted.intercept_, "logits")
    graph.named_class(logits, "species", SPECIES)
    graph.probabilities(logits, len(SPECIES))
    return graph.model()


def text(train: Rows) -> onnx.ModelProto:
    """Logistic regression on counts of frequent words and on the shapes of ``CODE_SIGNS``."""
    lines = train.inputs["text"]
    counts = Counter(word for line in lines for word in set(line.split()))
    words = sorted(sorted(counts, key=lambda word: (-counts[word], word))[:VOCABULARY])
    # The features come from the very graph that is exported, so training cannot differ from it.
    graph = Graph("text_features", opset=20, ir_version=9)
    features = _text_features(graph, words)
    graph.output(features, TensorProto.FLOAT, len(words) + len(CODE_SIGNS))
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(
        session(graph.model()).run([features], {"text": lines})[0], train.expected
    )
    graph = Graph("text", opset=20, ir_version=9)
    features = _text_features(graph, words)
    # Two classes have one row of weights, the second class's; the first one's are zero.
    weights = np.concatenate([np.zeros_like(fitted.coef_), fitted.coef_]).T
    logits = graph.dense(features, weights, np.append(0.0, fitted.intercept_), "logits")
    graph.named_class(logits, "kind", list(fitted.classes_))
    graph.probabilities(logits, 2)
    return graph.model()


def _text_features(graph: Graph, words: list[str]) -> str:
    """``text`` BYTES [N] → FP32 [N, len(words) + len(CODE_SIGNS)]."""
    line = graph.input("text", TensorProto.STRING)
    # Words end in a blank and a sign outside the vocabulary: even a batch of empty lines has
    # a word then, which TfIdfVectorizer insists on.
    ending = graph.constant("ending", [" \u2404"])
    ended = graph.add("StringConcat", [line, ending], "ended")
    graph.nodes.append(helper.make_node("StringSplit", [ended], ["words", "word_counts"]))
    parts = [
        graph.add(
            "TfIdfVectorizer",
            ["words"],
            "vocabulary",
            mode="TF",
            min_gram_length=1,
            max_gram_length=1,
            max_skip_count=0,
            ngram_counts=[0],
            ngram_indexes=list(range(len(words))),
            pool_strings=words,
        )
    ]
    for number, pattern in enumerate(CODE_SIGNS):
        found = graph.add("RegexFullMatch", [line], f"sign{number}", pattern=pattern)
        number_found = graph.add("Cast", [found], f"sign{number}_number", to=TensorProto.FLOAT)
        column = graph.constant(f"sign{number}_axis", np.array([1], np.int64))
        parts.append(graph.add("Unsqueeze", [number_found, column], f"sign{number}_column"))
    return graph.add("Concat", parts, "features", axis=1)


def session(model: onnx.ModelProto | Path) -> Any:
    """A single-threaded onnxruntime session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def answers(model: Path, rows: Rows) -> NDArray[Any]:
    """[N] what the model file answers to ``rows``, asked in batches."""
    loaded = session(model)
    parts = [
        loaded.run(
            [rows.output],
            {name: values[start : start + BATCH_ROWS] for name, values in rows.inputs.items()},
        )[0]
        for start in range(0, len(rows), BATCH_ROWS)
    ]
    return np.concatenate(parts)


def model_file(model: ModelName, version: str) -> Path:
    """Where a version's file lies."""
    return HERE / "models" / model / version / "model.onnx"


def write_models() -> None:
    """Train and write every version of every model."""
    built: dict[tuple[ModelName, str], Callable[[Rows], onnx.ModelProto]] = {
        ("digits", "1"): digits_linear,
        ("digits", "2"): digits_convnet,
        ("iris", "1"): iris,
        ("text", "1"): text,
    }
    with threadpool_limits(limits=1):
        for (name, version), build in built.items():
            path = model_file(name, version)
            path.parent.mkdir(parents=True, exist_ok=True)
            model = build(split(name).train)
            path.write_bytes(model.SerializeToString(deterministic=True))


def write_cards() -> None:
    """Measure every written version and write it into its model's cards."""
    for name in MODELS:
        rows = held_out(name)
        folder = HERE / "models" / name
        accuracy: dict[str, float] = {}
        table = ["| Version | What it is | Right | Accuracy |", "|---|---|---|---|"]
        for version, what in KINDS[name].items():
            right = int((answers(model_file(name, version), rows) == rows.expected).sum())
            accuracy[version] = round(right / len(rows), 4)
            share = f"{right / len(rows):.2%}"
            table.append(f"| {version} | {what} | {right} of {len(rows)} | {share} |")
        card = {"held_out": len(rows), "accuracy": accuracy}
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        body = CARDS[name].format(table="\n".join(table), train=len(split(name).train))
        (folder / "README.md").write_text(body, encoding="utf-8")


def write_images() -> None:
    """Held-out digits as pictures, white on black, each pixel ten by ten.

    Of each digit the first that version 2 reads correctly, and the first two digits that only
    version 2 reads correctly. Named ``digit-<digit>-<row in the held-out set>.png``.
    """
    rows = held_out("digits")
    first = answers(model_file("digits", "1"), rows) == rows.expected
    second = answers(model_file("digits", "2"), rows) == rows.expected
    chosen = [int(np.flatnonzero(second & (rows.expected == digit))[0]) for digit in range(10)]
    chosen += [int(row) for row in np.flatnonzero(second & ~first)[:2]]
    folder = HERE / "images"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("digit-*.png"):
        old.unlink()
    for row in sorted(set(chosen)):
        pixels = np.rint(rows.inputs["image"][row, 0] * (255 / 16)).astype(np.uint8)
        enlarged = np.kron(pixels, np.ones((10, 10), np.uint8))
        Image.fromarray(enlarged).save(folder / f"digit-{rows.expected[row]}-{row}.png")


def write_requests() -> None:
    """Inference request bodies (Open Inference Protocol, REST) with held-out rows."""
    folder = HERE / "requests"
    folder.mkdir(exist_ok=True)
    datatypes = {"f": "FP32", "O": "BYTES"}
    for name in MODELS:
        rows = held_out(name)
        # The first row of each answer; of the digits two rows are enough to read.
        chosen = [int(np.flatnonzero(rows.expected == x)[0]) for x in np.unique(rows.expected)]
        chosen = chosen[:2] if name == "digits" else chosen
        tensors = [
            {
                "name": tensor,
                "shape": list(values[chosen].shape),
                "datatype": datatypes[values.dtype.kind],
                # By way of str, which gives the shortest text that is still this float32.
                "data": [x if isinstance(x, str) else float(str(x)) for x in values[chosen].flat],
            }
            for tensor, values in rows.inputs.items()
        ]
        body = json.dumps({"inputs": tensors}, ensure_ascii=False)
        (folder / f"{name}.json").write_text(body + "\n", encoding="utf-8")


KINDS: dict[ModelName, dict[str, str]] = {
    "digits": {
        "1": "logistic regression on the 64 pixels",
        "2": "convolutional network, two 3x3 layers and two dense ones",
    },
    "iris": {"1": "logistic regression on the four measures"},
    "text": {"1": "logistic regression on words and on the shape of the line"},
}
"""Model → version → what it is."""

CARDS: dict[ModelName, str] = {
    "digits": """\
# digits

Reads one handwritten digit. Two versions, so that a better one can be rolled out over a worse.

{table}

Measured with onnxruntime on the files in this folder, over rows no version was trained on.

- **In:** `image` FP32 [N,1,8,8], ink from 0 (none) to 16. The graph scales it itself.
- **Out:** `label` INT64 [N], the digit; `probabilities` FP32 [N,10].
- **Data:** the handwritten digits that scikit-learn ships (`load_digits`: the test part of UCI's
  Optical Recognition of Handwritten Digits, 13 people, 1797 pictures).
- **Split:** {train} rows for training and 360 held out, drawn at random with a fixed seed. The
  same people wrote in both parts, so expect less on another person's hand.
- **Version 1:** multinomial logistic regression.
- **Version 2:** 3x3 convolutions with 16 and 32 channels, 2x2 max pooling, 64 hidden units;
  trained with NumPy on pictures moved by up to a pixel, with dropout.

`model.yaml` says how a picture becomes `image`; `traffic.yaml` sends a tenth of the requests to
version 2. Both are written by hand, the rest by `python -m examples.train`.
""",
    "iris": """\
# iris

Names the species of an iris from four lengths: a model of several inputs, and of text as output.

{table}

Measured with onnxruntime on the file in this folder, over rows it was not trained on.

- **In:** `sepal` FP32 [N,2] and `petal` FP32 [N,2], each length and width in centimetres.
- **Out:** `species` BYTES [N], one of `setosa`, `versicolor`, `virginica`; `probabilities`
  FP32 [N,3] in that order.
- **Data:** Fisher's iris measures as scikit-learn ships them (`load_iris`, 150 flowers).
- **Split:** {train} rows for training and 50 held out, drawn at random with a fixed seed. With
  50 rows one flower is two points of accuracy.
- **Version 1:** multinomial logistic regression; the graph joins the two inputs.

Written by `python -m examples.train`.
""",
    "text": """\
# text

Tells a line of Python from a line of English: a model whose input is text.

{table}

Measured with onnxruntime on the file in this folder, over lines it was not trained on.

- **In:** `text` BYTES [N], one line each, UTF-8. N is 1 or more: onnxruntime's TfIdfVectorizer
  refuses a batch of no rows.
- **Out:** `kind` BYTES [N], `code` or `prose`; `probabilities` FP32 [N,2] in that order.
- **Data:** lines of Python 3.11's standard library, half of them code and half doc-strings
  (`examples/data/text_lines.tsv`, collected by `examples/extract_text.py`; Copyright Python
  Software Foundation, PSF License Version 2). Nobody labelled them: code is what the tokenizer
  calls code, prose is a doc-string line of at least four words outside listings. A few of the
  latter are signatures and tables.
- **Split:** by module, so that no file is in both parts: {train} lines from 49 modules for
  training, 800 from 22 others held out.
- **Version 1:** logistic regression on 400 frequent words and 26 yes-or-no features of the line's
  shape, each a regular expression. All of it is in the graph, with the string operators of ONNX
  opset 20 (onnxruntime 1.17 or newer).

It knows Python and the English of programmers, nothing else.

Written by `python -m examples.train`.
""",
}
"""Model → its card, with room for the measured table and the number of training rows."""


def main() -> None:
    """Write everything."""
    write_models()
    write_cards()
    write_images()
    write_requests()


if __name__ == "__main__":
    main()
