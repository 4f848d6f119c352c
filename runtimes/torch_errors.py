"""PyTorch's messages, cut down to the line that says what was wrong."""

from __future__ import annotations

import dis
import re
from pathlib import Path
from typing import Any, Final

from gateway.errors import InferenceFailed, InvalidInput, without_folders

_STACK: Final = re.compile(r"\nException raised from |\nframe #|\nC\+\+ CapturedTraceback")
_RAISED: Final = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)): (.+)$", re.M)
_PREFIX: Final = re.compile(r"^\[enforce fail at [^\]]*\] ?(?:data\. )?")
_MINIZ: Final = re.compile(r"\. ?This is an internal miniz error.*$", re.S)
_INPUTS_FAULT: Final = re.compile(
    r"out of (?:range|bounds)|shape|sizes? |\bsize\b|dimension|\bndim\b|\bdims?\b|"
    r"Guard failed|must match|unmatched|out of int|number of channels|expected .* elements|"
    r"input\.size|inconsistent",
    re.I,
)
_INDEX: Final = re.compile(r"index .*out of range in self|out of bounds for dimension")
"""PyTorch's words, beside Python's such as ``list index out of range``."""
_LIST: Final = re.compile(r"^(?:RuntimeError: )?(?:list|string) index out of range", re.M)
"""TorchScript's own, as RuntimeError."""
_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def one_line(error: BaseException, folder: Path | None = None, limit: int = 400) -> str:
    """The useful line of an error's text, without C++ frames and the folders of this machine."""
    text = str(error)
    if folder is not None:
        text = text.replace(f"{folder}/", "")
    text = _MINIZ.sub("", _STACK.split(text)[0])
    if "TorchScript" in text and (raised := _RAISED.findall(text)):
        # The interpreter shows its own stack first, the cause last.
        text = raised[-1][1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = _PREFIX.sub("", lines[0]) if lines else ""
    if len(lines) > 1 and text.endswith(":"):
        text = f"{text} {' '.join(lines[1:3])}"
    text = without_folders(" ".join(text.split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def inference_error(torch: Any, error: Exception) -> InferenceFailed:
    """What the caller is told; a GPU that ran out of memory is swept out."""
    if isinstance(error, InferenceFailed):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return InferenceFailed(
            "the GPU has not enough memory for this batch; lower max_batch_size, or load less on it"
        )
    text = one_line(error)
    if "DefaultCPUAllocator" in text or isinstance(error, MemoryError):
        return InferenceFailed(f"not enough memory for this batch: {text}")
    if _of_the_dispatcher(torch, error) and _INPUTS_FAULT.search(text):
        return InvalidInput(text)
    kind = type(error)
    own = kind.__module__ == "builtins" and kind is not RuntimeError
    return InferenceFailed(f"the model failed: {kind.__name__}: {text}" if own else text)


def _of_the_dispatcher(torch: Any, error: Exception) -> bool:
    """Whether PyTorch refused what it was called with; else the model's own code failed."""
    text = str(error)
    if isinstance(error, AssertionError):
        return text.startswith("Guard failed")  # of an exported program
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    # What PyTorch generates, such as the guards of an exported program, is in no file.
    file = Path(innermost.tb_frame.f_code.co_filename if innermost is not None else "<unknown>")
    generated = str(file).startswith("<")
    if innermost is not None and not generated and Path(torch.__file__).parent not in file.parents:
        raised = innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == _RAISE
        if raised:
            return False
    if isinstance(error, IndexError):
        return generated or _INDEX.search(text) is not None
    # What TorchScript's ``raise`` and ``assert`` bring up is no RuntimeError.
    return isinstance(error, RuntimeError) and _LIST.search(text) is None
