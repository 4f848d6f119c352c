"""Runs a real gateway for a test: as the process that a user starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tests.support import warm

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds within which a gateway starts or stops, on a machine that is busy."""

_LISTENING = re.compile(r"listening: HTTP (\S+), gRPC (\S+?);")


class GatewayProcess:
    """``python -m gateway serve`` on free ports of the loopback interface (see `warm`).

    `sources` are model directories, `settings` configuration keys. With `ready`, the
    constructor waits until the gateway is. It is stopped with Ctrl-C's signal.
    """

    def __init__(
        self,
        folder: Path,
        sources: Iterable[Path | str],
        *,
        grpc_server: str = "native",
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> None:
        self.grpc_server = grpc_server
        self.log_path = folder / f"gateway-{time.monotonic_ns()}.log"
        arguments = [
            "serve", *map(str, sources),
            "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--grpc-server", grpc_server,
        ]  # fmt: skip
        for key, value in (settings or {}).items():
            arguments += ["--set", f"{key}={value}"]
        usual = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "PYTEST_"))}
        usual |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with self.log_path.open("wb") as log:
            self.process = warm.start(arguments, folder, log.fileno(), usual, environment or {})
        try:
            match = self.wait_for(_LISTENING)
            self.http, self.grpc = match.groups()
            if ready:
                self.wait_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def http_address(self) -> str:
        """``HOST:PORT``, as tritonclient takes it."""
        return self.http.removeprefix("http://")

    def log(self) -> str:
        """Everything that the gateway has written so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first match in the log, which may take a while to come."""
        end = time.monotonic() + PATIENCE
        while True:
            match = pattern.search(self.log())
            if match is not None:
                return match
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no {pattern.pattern!r} in the gateway's log:\n{self.log()}")
            time.sleep(0.02)

    def get(self, path: str) -> Any:
        """The JSON answer to a GET, or the text of one that is no JSON. Raises for an error."""
        with urllib.request.urlopen(self.http + path, timeout=PATIENCE) as answer:
            body = answer.read()
        return (
            json.loads(body)
            if answer.headers["content-type"] == "application/json"
            else body.decode()
        )

    def wait_ready(self) -> None:
        """Until the gateway says that it is ready."""
        wait_until(lambda: self._is_ready(), "the gateway to be ready")

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log()}")
        try:
            return bool(self.get("/v2/health/ready")["ready"])
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not stop:\n{self.log()}") from None

    def stop_cleanly(self) -> None:
        """Stops it; it must not have complained, and the exit code must be 0."""
        code = self.stop()
        log = self.log()
        assert code == 0, f"exit code {code}:\n{log}"
        for word in ("Traceback", " ERROR ", "unexpected error", "never retrieved", "Warning:"):
            assert word not in log, f"{word!r} is in the gateway's log:\n{log}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.stop_cleanly()
        else:
            self.stop()


def wait_until(condition: Any, what: str, seconds: float = PATIENCE) -> None:
    """Asks again and again until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)
