"""Compile the protocol definitions to ``gateway/codecs/descriptors.binpb``.

Run ``python protos/compile.py`` after every change and commit the result.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("model_config.proto", "inference.proto")
"""Dependencies first: the gateway adds the files to its pool in this order."""
TARGET = HERE.parent / "gateway" / "codecs" / "descriptors.binpb"


def compile_descriptors() -> bytes:
    """Return the serialized ``FileDescriptorSet``, the same bytes for the same sources.

    Raises ``RuntimeError`` when protoc refuses a file (its message is on stderr).
    """
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        code = protoc.main(
            ["protoc", f"-I{HERE}", "--include_imports", f"--descriptor_set_out={out}", *SOURCES]
        )
        if code:
            raise RuntimeError(f"protoc failed with exit code {code}")
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in found.file:
        file.ClearField("source_code_info")
    return bytes(found.SerializeToString(deterministic=True))


if __name__ == "__main__":
    TARGET.write_bytes(compile_descriptors())
    sys.stdout.write(f"wrote {TARGET}\n")
