"""The other servers: one folder each.

A folder holds ``peer.py`` (its `PEER`), ``requirements.txt`` (the pins of its environment),
``NOTES.md`` (what its documentation calls the best configuration, what was chosen and why, what
it cannot do), and what it needs to serve the models (``start.sh``, ``serve.py``, ...).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.compare.peers.base import Peer, Route

FOLDER: Final = Path(__file__).parent
OURS: Final = "sluicegate"
NAMES: Final = (
    OURS,
    "triton",
    "kserve",
    "mlserver",
    "mlflow",
    "litserve",
    "bentoml",
    "ray",
    "torchserve",
)
"""In the order of the tables."""


def find(name: str) -> Peer:
    """The peer of one folder. Raises `BenchError` for a name that is none."""
    if name not in NAMES:
        raise BenchError(f"no server is called {name!r}; there are: {', '.join(NAMES)}")
    found: Peer = importlib.import_module(f"{__name__}.{name}.peer").PEER
    return found


def route(text: str) -> Route:
    """A route by its name: ``grpc``, ``binary``, ``json``, or a server's own, as
    ``PEER:MODEL:NAME``. Raises `BenchError` for one that is not there."""
    from loadtests.compare.peers import oip

    if text in oip.ROUTES:
        return oip.ROUTES[text]
    peer, _, rest = text.partition(":")
    model, _, name = rest.partition(":")
    for each in find(peer).routes_of(model):
        if each.name == name:
            return each
    raise BenchError(f"{peer} has no route {name!r} for {model!r}")
