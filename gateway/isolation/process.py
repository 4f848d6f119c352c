"""One child process as the gateway sees it: started, listened to, and surely ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gateway.isolation import messages as m
from gateway.isolation.adoption import reap_session
from gateway.isolation.arena import Arena, SegmentLike
from gateway.isolation.channel import Channel, Message
from gateway.isolation.guard import Guard
from gateway.isolation.launch import Launch, Ties, by_exec
from gateway.isolation.limits import Group, Surroundings, some_cpus
from gateway.isolation.memory import Table
from gateway.isolation.own_metrics import families_of
from gateway.isolation.words import Words, cause_of_death
from gateway.telemetry import custom
from gateway.telemetry.logs import log

if TYPE_CHECKING:
    from gateway.isolation.errands import Errands

CLOSE_SECONDS: Final = 5.0
"""How long a child may take to close its model before it is killed."""
_POLL_MS: Final = 200
_turns = itertools.count(1)


class ChildProcess:
    """A process that runs, ran, or never got far. Made in a thread (by `by_exec`: in one that lives
    as long as the gateway), then owned by the event loop.

    `on_message` gets what is not about memory or life; `on_died` is told the cause once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        around: Surroundings,
        label: str,
        guard: Guard,
        launch: Launch = by_exec,
    ) -> None:
        self.label = label
        self.on_message: Callable[[list[Any]], object] = lambda message: None
        self.on_died: Callable[[str], object] = lambda cause: None
        self.cause = ""
        """Why it is dead; empty while it lives."""
        self.heard = 0.0
        """When it last gave a sign of life, in the loop's seconds."""
        self.nice = 0
        """Of its session, as `Shares` has told the system."""
        self.channel: Channel
        self.errands: Errands | None = None
        self.ended = threading.Event()
        self._loop = loop
        self._killed_for = ""
        self._closing = False
        self._arena: Arena | None = None
        self._guard = guard
        self._words = Words()
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        turn = next(_turns)
        cpus = some_cpus(around.cpus, turn) if around.cpus else []
        self._group = Group.make(f"sluice-{os.getpid()}-{turn}", around.memory, around.cpus)
        try:
            ties = Ties(theirs.fileno(), lifeline, around.memory, cpus)
            self._process = launch(around, ties)
        except BaseException:
            ours.close()
            os.close(self._lifeline)
            if self._group is not None:
                self._group.remove()
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self.pid = self._process.pid
        if self._group is not None:
            self._group.add(self.pid)
        try:
            guard.watch(self.pid)  # it starts nothing before it is told to load
        except OSError as error:
            log.warning(
                "%s: no guard process (%s): if the gateway is killed, what the model's process "
                "has started may stay", label, error.strerror,
            )  # fmt: skip
        self._ours = ours
        self._keeper = threading.Thread(
            target=self._keep, name=f"sluice-child-{self.pid}", daemon=True
        )

    @property
    def said(self) -> str:
        """The last lines that it wrote to its standard error."""
        return "\n".join(self._words.lines)

    def begin(self) -> None:
        """Listens from now on; on the event loop."""
        self.channel = Channel(self._loop, self._ours, self._messages, self._lost)
        self.heard = self._loop.time()
        self._keeper.start()

    @property
    def dead(self) -> bool:
        return bool(self.cause)

    @property
    def killed(self) -> bool:
        """Whether we have ended it."""
        return bool(self._killed_for)

    # --- out

    def send(self, message: Message, fd: int | None = None) -> None:
        """See `Channel.send`."""
        self.channel.send(message, fd)

    def attach(self, arena: Arena, table: Table) -> None:
        """Shows it the memory in which requests come."""
        self._arena = arena
        self.send((m.TABLE,), table.fd)
        for number, segment in arena.segments.items():
            self._show(number, segment)
        arena.on_segment = self._show

    def _show(self, number: int, segment: SegmentLike) -> None:
        self.send((m.SEGMENT, number, segment.size), segment.fd)  # type: ignore[attr-defined]

    # --- in

    def _messages(self, released: list[int], messages: list[list[Any]]) -> None:
        self.heard = self._loop.time()
        try:
            self._take(released, messages)
        except Exception:
            log.exception("%s: a message that makes no sense", self.label)
            raise
        if len(self.channel.incoming) or self.channel.incoming.released:
            self.channel.release_later()

    def _take(self, released: list[int], messages: list[list[Any]]) -> None:
        if released:
            self.on_message([m.RELEASED, released])
        for message in messages:
            kind = message[0]
            if kind == m.SEGMENT:
                self.channel.incoming.add(message[1], self.channel.fds.popleft(), message[2])
            elif kind == m.DROP:
                self.channel.incoming.drop(message[1])
            elif kind == m.METRICS:
                custom.show_of(self, families_of(message[1]))
            elif kind != m.PONG:
                self.on_message(message)

    # --- the end

    def kill(self, why: str) -> None:
        """Ends it at once; `on_died` is called later. Harmless for one that is dead."""
        if not self.ended.is_set():
            self._killed_for = self._killed_for or why
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _lost(self, why: str) -> None:
        """The channel is closed: nothing more can come from it."""
        if why:
            self.kill(f"the model's process wrote nonsense to its control channel ({why})")
        elif not self._closing:
            self._loop.call_later(
                CLOSE_SECONDS, self.kill, "the model's process closed its channel"
            )

    def ask_to_close(self) -> None:
        """Asks it to close its model and end; on the event loop."""
        if not self.dead and not self._closing:
            self._closing = True
            self.on_died = lambda cause: None
            self.send((m.CLOSE,))
            self.channel.flush()

    def wait_closed(self) -> None:
        """Waits for its end, which comes within `CLOSE_SECONDS`; blocking."""
        if not self.ended.wait(CLOSE_SECONDS):
            log.warning("%s: its process did not end in %g s; killed", self.label, CLOSE_SECONDS)
            self.kill("it did not end in time")
            self.ended.wait(CLOSE_SECONDS)

    def _keep(self) -> None:
        """Hears its words and its end; in a thread."""
        process = self._process
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(process.pid)
                poll.register(pidfd, select.POLLIN)
        alive = True
        while alive:
            ready = [each for each, _ in poll.poll(None if pidfd >= 0 else _POLL_MS)]
            if fd in ready and not self._hear(fd):
                poll.unregister(fd)
            if pidfd >= 0:
                alive = pidfd not in ready
            else:
                alive = process.poll() is None
        # What it has started goes with it. (Its number is not given away before it is waited for.)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._guard.forget(process.pid)
        reap_session(process.pid)
        code = process.wait()
        while self._hear(fd):
            pass
        self._log(self._words.end())
        process.stdout.close()
        if pidfd >= 0:
            os.close(pidfd)
        if self._group is not None:
            self._group.remove()
        os.close(self._lifeline)
        self.ended.set()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._gone, code)

    def _hear(self, fd: int) -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        except OSError:
            return False
        self._log(self._words.hear(data))
        return bool(data)

    def _log(self, lines: list[str]) -> None:
        for line in lines:
            log.info("%s [%d] %s", self.label, self.pid, line[:2000])

    def _gone(self, code: int) -> None:
        """On the event loop, once it is reaped and its last words are heard."""
        self.channel.read_rest()
        self.channel.close()
        custom.drop_of(self)
        if self.errands is not None:
            self.errands.close()
        if self._arena is not None and self._arena.on_segment == self._show:
            self._arena.on_segment = None
        self.cause = cause_of_death(code, self._killed_for, self._words)
        self.on_died(self.cause)
