"""Ends database calls that take too long, even when the server hangs without a word.

A transaction with a limit runs under a ``Deadline``. On PostgreSQL a thread watches the deadlines and shuts down the socket of a
connection that has passed its own, whereupon the blocked call raises as it would for any broken connection. Waking a thread is all it
costs a call that ends in time, and that at most once per limit. It neither retries nor says what the failure means; the database does.
"""

import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from omni.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock


class Deadline:
    """When one transaction has to be over. Belongs to the thread that set it; the watcher sees it under its lock only."""

    __slots__ = ("_clock", "_connection", "_socket", "at_ns", "is_past", "wait_ms")

    def __init__(self, wait_ms: int, *, clock: Clock) -> None:
        self._clock = clock
        self._connection: object = None
        self._socket: socket.socket | None = None
        self.wait_ms = wait_ms
        self.at_ns = clock.mono_ns() + wait_ms * NS_PER_MS
        self.is_past = False

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 when none are."""
        return max(self.at_ns - self._clock.mono_ns(), 0) / NS_PER_S

    @property
    def remaining_ms(self) -> int:
        """Milliseconds left, rounded up, 0 when none are."""
        return math.ceil(self.remaining_s * 1000)

    def hold(self, connection: Any) -> None:
        """Watch this psycopg connection's socket, and no other any more."""
        self.release()
        # A descriptor of our own: the connection may close its one at any moment, and the number may then be anybody's.
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        self._connection = connection

    def is_holding(self, connection: object) -> bool:
        """Whether it is this connection that is watched."""
        return self._connection is connection

    def release(self) -> None:
        """Watch nothing."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._connection = None

    def break_off(self) -> None:
        """Mark it as past and end the connection that is watched, if there is one."""
        self.is_past = True
        if self._socket is not None:
            # Refused when the other side has gone already, which is as good.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class DeadlineWatch:
    """Sets deadlines and breaks off what passes them. Its thread starts with the first deadline and sleeps until the next."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._local = threading.local()
        self._changed = threading.Condition()
        # A dictionary used as an ordered set.
        self._watched: dict[Deadline, None] = {}
        self._next_look_ns: int | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def current(self) -> Deadline | None:
        """The calling thread's innermost deadline."""
        deadline: Deadline | None = getattr(self._local, "deadline", None)
        return deadline

    @contextmanager
    def limit(self, wait_ms: int | None) -> Iterator[Deadline | None]:
        """Set a deadline for the block, in the calling thread. Without ``wait_ms`` there is none, and none outside counts."""
        outer = self.current
        deadline = None if wait_ms is None else Deadline(wait_ms, clock=self._clock)
        self._local.deadline = deadline
        try:
            yield deadline
        finally:
            self._local.deadline = outer
            if deadline is not None:
                with self._changed:
                    self._watched.pop(deadline, None)
                    deadline.release()

    def hold(self, connection: Any) -> None:
        """Break this psycopg connection off when the calling thread's deadline passes. Does nothing without one."""
        deadline = self.current
        if deadline is None:
            return
        with self._changed:
            deadline.hold(connection)
            self._watched[deadline] = None
            if self._next_look_ns is None or deadline.at_ns < self._next_look_ns:
                self._changed.notify()
            if self._thread is None and not self._is_closed:
                self._start()

    def release(self, connection: object) -> None:
        """Leave this connection alone from now on: it goes back to its pool."""
        deadline = self.current
        with self._changed:
            if deadline is not None and deadline.is_holding(connection):
                self._watched.pop(deadline, None)
                deadline.release()

    def close(self) -> None:
        """End the thread; deadlines set afterwards are not enforced. Safe to call twice."""
        with self._changed:
            self._is_closed = True
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="omni-database-deadlines", daemon=True)
        # An interpreter that is ending may start none any more: its last calls take as long as they take.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                now_ns = self._clock.mono_ns()
                for deadline in [deadline for deadline in self._watched if deadline.at_ns <= now_ns]:
                    del self._watched[deadline]
                    deadline.break_off()
                self._next_look_ns = min((deadline.at_ns for deadline in self._watched), default=None)
                self._changed.wait(None if self._next_look_ns is None else (self._next_look_ns - now_ns) / NS_PER_S)
