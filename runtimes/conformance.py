"""A test suite for runtimes: anything that passes it can be served.

    from runtimes.conformance import RuntimeConformance

    class TestMyRuntime(RuntimeConformance):
        runtime = MyRuntime()

        def artifact(self, folder):
            (folder / "model.mine").write_bytes(...)
            return Artifact("mine", "1", folder, ModelSettings())

That is a pytest class, run by ``pytest test_mine.py``. `inputs`, `bad_inputs` and `broken` are
there to be overridden where made-up values will not do; `library`, `deterministic` and the
other class attributes say what cannot be found out. Models that answer later (`AsyncModel`) get
an event loop. Nothing here needs pytest itself.
"""

from __future__ import annotations

from runtimes.conformance_answers import AnswerChecks
from runtimes.conformance_base import require
from runtimes.conformance_forwarding import ForwardingChecks
from runtimes.conformance_loading import LoadingChecks
from runtimes.conformance_streams import StreamChecks

__all__ = ["RuntimeConformance", "require"]


class RuntimeConformance(LoadingChecks, AnswerChecks, StreamChecks, ForwardingChecks):
    """Derive from it, set `runtime`, and write `artifact`."""
