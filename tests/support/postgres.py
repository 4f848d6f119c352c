"""A real PostgreSQL server on loopback, where the machine has one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.gateway import PATIENCE, wait_until


def program(name: str) -> str | None:
    """Where Debian or the path has a program of PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Postgres:
    """One server with one database; `stop` and `start` make it go away and come back."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self._who: dict[str, Any] = {}
        if os.getuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self._server: subprocess.Popen[bytes] | None = None
        command = ["-D", str(folder / "data"), "-U", "sluice", "-A", "trust", "--no-sync"]
        self._run("initdb", *command, check=True)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://sluice@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = ["-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._folder)]
        self._server = subprocess.Popen(
            [program("postgres") or "", *options],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._who,
        )  # fmt: skip
        ready = ("-h", "127.0.0.1", "-p", str(self.port))
        wait_until(lambda: not self._run("pg_isready", *ready).returncode, "PostgreSQL")

    def stop(self) -> None:
        """At once; connections are cut off."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(PATIENCE)
            self._server = None

    def _run(
        self, name: str, *arguments: str, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        command = [program(name) or "", *arguments]
        return subprocess.run(
            command, cwd=self._folder, capture_output=True, check=check, **self._who
        )


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A server that runs. `folder` must be one that others may enter."""
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
