"""Bytes of a request: latency, MB/s and peak memory from a few numbers to a large tensor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import orjson
from onnx import helper

from loadtests.compare import load
from loadtests.compare.processes import Server, resident_bytes
from loadtests.compare.wire import Floats
from loadtests.scale.beside import longest_wait
from loadtests.scale.drive import LONGEST_RUN_S, READINGS, Bench, drive, note_run
from loadtests.scale.processes import peak_bytes, reset_peak, settled_bytes
from loadtests.scale.study import Study

SIZES: Final = tuple(4**power for power in range(2, 14))
"""Bytes of the tensor: 16 to 64 Mi."""
QUICK: Final = (16, 4096, 2**20)
MOST_JSON: Final = 2**24
"""Largest tensor sent as JSON; as text it is 2.6 times as long."""
BUDGET_S: Final = 100.0
CUTS: Final = (4096.0, float(2**20))
FROM: Final = 2**20
"""Smallest size whose memory stands out from what a request takes anyway."""
WAYS: Final = (("binary", "HTTP binary"), ("grpc", "gRPC"), ("json", "HTTP JSON"))
LIMITS: Final = "--set limits.max_message_bytes=536870912"
"""JSON of large tensors, and gRPC's own limit, need more room than the default of 256 MiB."""


def make_echo(path: Path) -> None:
    """``y = x + 0``, any number of columns: as many bytes go out as come in."""
    f32 = onnx.TensorProto.FLOAT
    zero = helper.make_tensor("zero", f32, [1], [0.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "zero"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", f32, ["N", "M"])],
        [helper.make_tensor_value_info("y", f32, ["N", "M"])],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def target(protocol: str, server: Server, row: Floats, file: Path) -> load.Target:
    """The request on disk. JSON is written here faster than the comparison's small one."""
    if protocol != "json":
        return load.target(protocol, (server.http, server.grpc), "echo", row, file)
    head = load.target("json", (server.http, server.grpc), "echo", row[:, :1], file)
    tensor = {"name": "x", "shape": row.shape, "datatype": "FP32", "data": row[0]}
    file.write_bytes(orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY))
    return head


def measure(bench: Bench) -> list[Study]:
    """The study."""
    study = Study("payload", "Bytes of a request, and as many of its answer", "bytes")
    folder = bench.work / "payload"
    make_echo(folder / "models" / "echo" / "1" / "model.onnx")
    random = np.random.default_rng(1)
    text = 0.0
    for protocol, name in WAYS:
        latency = study.measure(f"mean latency, one caller, {name}", "µs", cuts=CUTS)
        cpu = study.measure(f"processor time a request, {name}", "µs", cuts=CUTS)
        speed = study.measure(f"MB/s each way, {name}", "MB/s", judged=False)
        peak = study.measure(f"peak memory above idle, {name}", "MiB")
        stall = study.measure(f"longest wait of others, {name}", "ms")
        with bench.serve(folder / "models", ["echo"], LIMITS) as server:
            pid = server.process.pid
            sizes = [
                size
                for size in (QUICK if bench.quick else SIZES)
                if protocol != "json" or size <= MOST_JSON
            ]
            for size in bench.within(study, sizes, f"{name}, bytes"):
                row = random.standard_normal((1, size // 4)).astype(np.float32)
                what = target(protocol, server, row, folder / "body")
                if protocol == "json":
                    text = what.file.stat().st_size / size
                before = settled_bytes(pid, 1.0) if size >= FROM else resident_bytes(pid)
                reset_peak(pid)
                driven = drive(
                    server,
                    what,
                    load.Shape(1),
                    bench.seconds / 2,
                    log=folder / "requests.log",
                )
                if size >= FROM:
                    one = partial(load.run, what, load.Shape(1), 2, timeout_s=LONGEST_RUN_S)
                    for _ in range(READINGS):
                        stall.add(size, longest_wait(server, one))
                        peak.add(size, max(peak_bytes(pid) - before, 0) / 2**20)
                        reset_peak(pid)
                note_run(study, f"{name}, {size:,} B", driven)
                for each in driven:
                    latency.add(size, each.mean_us)
                    cpu.add(size, each.cpu_us)
                    speed.add(size, size / each.mean_us)
        if peak.points:
            largest, most = max(peak.points)
            each_byte = most * 2**20 / largest
            study.note(f"{name}: {each_byte:.1f} bytes of memory for each byte of the tensor.")
    study.note(
        "The size is that of the tensor, which comes back as large; as JSON its text is "
        f"{text:.1f} times as long, and the largest is {MOST_JSON // 2**20} MiB. One caller. "
        f"`{LIMITS}`: the default refuses messages above 256 MiB."
    )
    return [study]
