"""Small PyTorch models in every format, made on the spot. Importing it needs PyTorch."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gateway.model_settings import TensorSettings


class Mlp(nn.Module):
    """``x[N,4]`` to scores ``[N,3]`` and a label ``[N]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.layers(x)
        return scores, scores.argmax(1)


class Cnn(nn.Module):
    """``image[N,3,8,8]`` to scores ``[N,5]``; normalised, with in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(inplace=True),  # writes into what it is given
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 5),
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.body(image)
        return result


def make_mlp() -> Mlp:
    """Always with the same weights."""
    torch.manual_seed(0)
    return Mlp().eval()


def make_cnn() -> Cnn:
    """Always with the same weights."""
    torch.manual_seed(1)
    return Cnn().eval()


class ThreadCount(nn.Module):
    """How many threads PyTorch computes with, for each element."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + torch.get_num_threads()


def not_a_module() -> str:
    return "text"


def fails() -> nn.Module:
    raise ValueError("no such width")


@contextmanager
def quiet() -> Iterator[None]:
    """TorchScript is deprecated in favour of torch.export, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_script(module: nn.Module, path: Path) -> Path:
    """A scripted module."""
    with quiet():
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def save_traced(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Path:
    """A traced module."""
    with quiet():
        torch.jit.save(torch.jit.trace(module, inputs), str(path))
    return path


def exported(module: nn.Module, inputs: tuple[Any, ...], *, batch: bool = True) -> Any:
    """An exported program, its first dimension of any size with `batch`."""
    rows = torch.export.Dim("rows")
    shapes = tuple({0: rows} for _ in inputs) if batch else None
    with quiet():
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def save_program(
    module: nn.Module, inputs: tuple[Any, ...], path: Path, *, batch: bool = True
) -> Path:
    """An exported program, saved."""
    with quiet():
        torch.export.save(exported(module, inputs, batch=batch), str(path))
    return path


def no_compiler() -> str:
    """Why AOTInductor and torch.compile cannot work here; empty if they can."""
    return "" if shutil.which("g++") else "no C++ compiler (g++) here"


@functools.cache
def _package() -> bytes:
    """Compiling takes half a minute: once for all tests, then kept beside the environments."""
    from tests.support.environments import FOLDER

    key = hashlib.sha256(Path(__file__).read_bytes())
    key.update(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode())
    FOLDER.mkdir(exist_ok=True)
    kept = FOLDER / f"mlp-{key.hexdigest()[:16]}.pt2"
    with (FOLDER / "mlp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            for old in FOLDER.glob("mlp-*.pt2"):
                old.unlink()
            made = kept.with_suffix(".new")  # who is killed meanwhile leaves no half of it
            made.write_bytes(_compiled())
            made.replace(kept)
        return kept.read_bytes()


def _compiled() -> bytes:
    program = exported(make_mlp(), (torch.rand(2, 4),))
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = f"{folder}/model.pt2"
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)
        return Path(path).read_bytes()


def save_package(path: Path) -> Path:
    """`make_mlp` as an AOTInductor package."""
    path.write_bytes(_package())
    return path


def tensor(name: str, datatype: str, *dims: int, **more: Any) -> TensorSettings:
    """A declared tensor."""
    return TensorSettings(name=name, datatype=datatype, dims=dims, **more)


MLP_SIGNATURE: dict[str, Any] = {
    "max_batch_size": 8,
    "inputs": (tensor("x", "FP32", 4),),
    "outputs": (tensor("scores", "FP32", 3), tensor("label", "INT64", 1, reshape=())),
}
CNN_SIGNATURE: dict[str, Any] = {
    "max_batch_size": 8,
    "inputs": (tensor("image", "FP32", 3, 8, 8),),
    "outputs": (tensor("scores", "FP32", 5),),
}


def rewrite(path: Path, changed: dict[str, bytes]) -> Path:
    """The archive with other contents in some entries (named without the outer folder)."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= {f"{root}/{name}": data for name, data in changed.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def entry(path: Path, name: str) -> bytes:
    """One entry of an archive, named without the outer folder."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{archive.namelist()[0].partition('/')[0]}/{name}")


class Buggy(nn.Module):
    """A bug of its own for each number of rows up to five; then PyTorch refuses the input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            raise ValueError("size of mine")
        if x.shape[0] == 2:
            assert x.dim() == 9, "shape of mine"
        if x.shape[0] == 3:
            raise RuntimeError("dimension of mine")
        if x.shape[0] == 4:
            numbers = [1, 2]
            return x + numbers[x.shape[0]]
        if x.shape[0] == 5:
            raise IndexError("index out of range in self")
        return x @ torch.zeros(3, 3)
