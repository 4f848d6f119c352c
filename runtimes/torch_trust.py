"""What in a PyTorch file could do more than compute: found without PyTorch and without running it.

TorchScript runs in an interpreter of its own, which knows tensors, plus two operators that open
files. An exported program is a list of operators; but reading it, PyTorch evaluates the sizes
and guards written in it as Python, and looks up operators by dotted names. So a program that
holds anything else than arithmetic there, or operators that PyTorch does not bring, counts as
code, as does a TorchScript module that uses other operators.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from runtimes.torch_file import Archive, Kind

_SPACES: Final = re.compile(r"\s+")
_FILES: Final = re.compile(r"\.(from_file|save|load)\b")
_OPS: Final = re.compile(r"\bops\b(?!\.(?:aten|prim|prims|quantized|sparse)\.)(?:\.(\w+\.\w+))?")
_TARGET: Final = re.compile(
    r"torch\.ops\.(?:aten|prim|prims|quantized_decomposed|higher_order)\.\w+(?:\.\w+)?"
    r"|torch\.sym_\w+|torch\._sym_\w+|math\.\w+"
    r"|_operator\.(?:getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge"
    r"|and_|or_|xor|not_|invert|lshift|rshift|index)"
)
_FILE_TARGETS: Final = ("torch.ops.aten.from_file", "torch.ops.aten.save")
_ATTRIBUTES: Final = frozenset({"size", "stride", "storage_offset", "dim", "shape", "item"})
_FUNCTIONS: Final = frozenset(
    {
        "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float",
        "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt",
        "Identity", "IntTrueDiv", "Integer", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
        "ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural",
        "PythonMod", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan",
        "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality",
        "Where", "ceiling", "floor", "max", "min",
    }
)  # fmt: skip
_NODES: Final = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.Subscript, ast.Call, ast.keyword, ast.Attribute, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.Tuple,
)  # fmt: skip
_TREES: Final = frozenset(
    {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)


def code_in(archive: Archive) -> str:
    """What of the file counts as code; empty where nothing does.

    Raises `ModelLoadError` for a damaged file.
    """
    name = archive.path.name
    if archive.kind is Kind.PACKAGE:
        return f"{name} (an AOTInductor package: compiled code)"
    if archive.kind is Kind.SCRIPT:
        found = next(_script_suspects(archive), "")
    elif archive.kind is Kind.PROGRAM:
        found = next(_program_suspects(archive), "")
    else:
        return ""
    return f"{name} ({archive.kind.value} with {printable(found)})" if found else ""


def _script_suspects(archive: Archive) -> Iterator[str]:
    for name in archive.names:
        if not (name.startswith("code/") and name.endswith(".py")):
            continue
        # The interpreter allows spaces around a dot.
        text = re.sub(r" ?\. ?", ".", _SPACES.sub(" ", archive.read(name).decode(errors="replace")))
        if found := _FILES.search(text):
            yield f"the operator {found[1]}, which opens files"
        if found := _OPS.search(text):
            yield f"the custom operator {found[1] or 'ops'}"


def _program_suspects(archive: Archive) -> Iterator[str]:
    for name in archive.names:
        if name.startswith("models/"):
            try:
                tree = json.loads(archive.read(name))
            except (ValueError, RecursionError):
                raise ModelLoadError(
                    f"'{archive.path.name}' is damaged: its graph is no JSON; export it again"
                ) from None
            yield from _walk(tree)


def _walk(tree: Any) -> Iterator[str]:
    """Suspects anywhere in a program's graph; PyTorch reads each key in many places."""
    pending = [tree]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending.extend(each)
        if not isinstance(each, dict):
            continue
        for key, value in each.items():
            if isinstance(value, str):
                yield from _text(key, value)
            elif key == "guards_code":
                yield from (f"the guard {text}" for text in value if not is_arithmetic(text))
            else:
                pending.append(value)


def _text(key: str, value: str) -> Iterator[str]:
    if key in ("target", "as_operator"):
        if not _TARGET.fullmatch(value) or value.startswith(_FILE_TARGETS):
            yield f"the custom operator {value}"
    elif key == "expr_str":
        if not is_arithmetic(value):
            yield f"the expression {value}"
    elif key in ("in_spec", "out_spec", "as_tree_spec"):
        yield from (f"arguments of the type {kind}" for kind in _tree_types(value))


def _tree_types(text: str) -> Iterator[str]:
    """Types of an arguments' tree that PyTorch would have to import."""
    try:
        pending = [json.loads(text)] if text else []
    except ValueError:
        yield text
        return
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending.extend(each)
        elif isinstance(each, dict):
            if each.get("type") not in _TREES:
                yield str(each.get("type"))
            pending.append(each.get("children_spec"))


def is_arithmetic(text: object) -> bool:
    """Whether an expression does nothing but compute with sizes."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_harmless(node) for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Call):
        called = node.func
        return isinstance(called, ast.Attribute) or (
            isinstance(called, ast.Name) and called.id in _FUNCTIONS
        )
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # Text where a number belongs would be evaluated in its turn.
        return bool(re.fullmatch(r"\w*", node.value)) and "__" not in node.value
    return isinstance(node, _NODES)
