"""Server processes: their entry while they live, and what tells that one has died.

A process has a row, a lock file and, while the database is away, a spool. On its own machine it is dead when its lock can be taken, at
once; from another, where the lock file is not to be seen, when its heartbeat is too old. Who finds a dead one holds its lock until
its work is taken over, so that two processes that start at once do not both empty its spool.

An old heartbeat is no proof: a machine that cannot reach the database answers people all the same, from its spool. A process that starts
believes it soon, because nothing waits longer than what waits for a start; one that runs gives the other more time, and looks twice, for
a database that was away for everybody has nobody's heartbeats.
"""

import logging
import socket
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from msgspec import Struct
from sqlalchemy import Connection, delete, insert, literal_column, select, update

from omni.clock import NS_PER_S, Clock, wall_datetime
from omni.errors import StoreError
from omni.store.database import Database
from omni.store.open_traces import DATABASE_NOW
from omni.store.process_locks import ProcessLocks
from omni.store.schema import UtcDateTime, omni_processes

log = logging.getLogger(__name__)

HEARTBEAT_MAX_AGE_S = 60
"""Seconds without a heartbeat after which a process that starts takes one of another machine for dead; heartbeats come every few."""

SILENT_FOR_S = 300
"""The same for a process that looks again while it runs."""

LOOKS_APART_S = 45.0
"""Two looks further apart than this are not one after the other: looks between them failed, and so may have heartbeats."""

_SPOOL_SUFFIX = ".db"
_SPOOL_SIDE_FILES = ("-wal", "-shm")


class ProcessRegistry:
    """The entry of this process, and the look at all others. Methods block and raise StoreError; call them from one thread at a time.

    ``heartbeat`` may be called from a second thread meanwhile. ``wait_ms`` limits each call to the database.
    """

    def __init__(self, database: Database, *, folder: Path, clock: Clock, wait_ms: int | None = None) -> None:
        self._database = database
        self._folder = folder
        self._clock = clock
        self._wait_ms = wait_ms
        self._locks = ProcessLocks(folder)
        self._now = literal_column(DATABASE_NOW[database.dialect], UtcDateTime())
        self._process_id: str | None = None
        self._last_look: _Look | None = None

    @property
    def process_id(self) -> str:
        """The id ``register`` gave this process."""
        if self._process_id is None:
            raise StoreError("This process is not registered.")
        return self._process_id

    def spool_path(self, process_id: str) -> Path:
        """Where a process keeps what the database does not take."""
        return self._folder / f"{process_id}{_SPOOL_SUFFIX}"

    def register(self) -> str:
        """Enter this process under a new id, which is returned: its lock first, then its row."""
        process_id = str(uuid4())
        self._locks.create(process_id)
        try:
            with self._database.writing("registering the process", wait_ms=self._wait_ms) as connection:
                self._enter(connection, process_id)
        except StoreError:
            self._locks.remove(process_id)
            raise
        self._process_id = process_id
        return process_id

    def heartbeat(self) -> None:
        """Say that this process lives. One that was taken for dead meanwhile is entered again."""
        ours = update(omni_processes).where(omni_processes.c.process_id == self.process_id)
        with self._database.writing("writing the heartbeat", wait_ms=self._wait_ms) as connection:
            alive = ours.where(omni_processes.c.stopped_at.is_(None)).values(heartbeat_at=self._now)
            if connection.execute(alive).rowcount == 1:
                return
            log.warning("process_was_taken_for_dead")
            if connection.execute(ours.values(heartbeat_at=self._now, stopped_at=None)).rowcount == 0:
                self._enter(connection, self.process_id)

    def find_dead(self) -> list[str]:
        """The processes that ended without saying so, and those that left a spool. Their locks are ours until ``forget``.

        May be called again and again; from the second time on, heartbeats of other machines are judged with more patience.
        """
        in_folder = self._locks.list_ids() | self._spool_ids()
        in_folder.discard(self.process_id)
        dead = [process_id for process_id in sorted(in_folder) if self._locks.claim(process_id)]
        return dead + self._silent(elsewhere_than=in_folder)

    def forget(self, process_id: str) -> None:
        """Remove a dead process whose work has been taken over: its row, its spool, its lock.

        One of another machine is marked as stopped instead. Its spool may be there still, and the row says how much of that was stored.
        """
        theirs = omni_processes.c.process_id == process_id
        with self._database.writing("removing a process", wait_ms=self._wait_ms) as connection:
            if self._locks.is_held(process_id):
                connection.execute(delete(omni_processes).where(theirs))
            else:
                connection.execute(update(omni_processes).where(theirs).values(stopped_at=self._now))
        if self._locks.is_held(process_id):
            self._remove_spool(process_id)
            self._locks.remove(process_id)

    def stop(self) -> None:
        """Say that this process ended in order, and give all locks back. What it left is found all the same. Safe to call twice.

        The last thing a server does with its store: from now on others may empty its spool. Raises StoreError when the database does not take it; the locks are given back even then.
        """
        process_id, self._process_id = self._process_id, None
        if process_id is None:
            return
        ours = update(omni_processes).where(omni_processes.c.process_id == process_id)
        try:
            with self._database.writing("stopping the process", wait_ms=self._wait_ms) as connection:
                connection.execute(ours.values(stopped_at=self._now))
        finally:
            self._locks.remove(process_id)
            self._locks.let_go_of_all()

    def _enter(self, connection: Connection, process_id: str) -> None:
        connection.execute(
            insert(omni_processes).values(
                process_id=process_id,
                host=socket.gethostname(),
                started_at=wall_datetime(self._clock.wall_ns()),
                heartbeat_at=self._now,
                last_batch=0,
            )
        )

    def _remove_spool(self, process_id: str) -> None:
        spool = self.spool_path(process_id)
        try:
            for path in (spool, *(spool.with_name(spool.name + suffix) for suffix in _SPOOL_SIDE_FILES)):
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise StoreError(f"The spool {spool} cannot be removed ({exc.strerror}).") from exc

    def _spool_ids(self) -> set[str]:
        return {path.name.removesuffix(_SPOOL_SUFFIX) for path in self._folder.glob(f"*{_SPOOL_SUFFIX}")}

    def _silent(self, *, elsewhere_than: Collection[str]) -> list[str]:
        """Processes without a file here whose heartbeat is too old, by the database's clock."""
        processes = omni_processes.c
        wanted = select(processes.process_id, processes.heartbeat_at, self._now.label("now")).where(
            processes.stopped_at.is_(None), processes.process_id != self.process_id
        )
        with self._database.reading("looking for dead processes", wait_ms=self._wait_ms) as connection:
            rows = connection.execute(wanted.order_by(processes.process_id)).all()
        before, self._last_look = (
            self._last_look,
            _Look(self._clock.mono_ns(), {process_id: heartbeat_at for process_id, heartbeat_at, _ in rows}),
        )
        max_age = timedelta(seconds=HEARTBEAT_MAX_AGE_S if before is None else SILENT_FOR_S)
        return [
            process_id
            for process_id, heartbeat_at, now in rows
            if process_id not in elsewhere_than
            and now - heartbeat_at > max_age
            and (before is None or self._was_so(before, process_id, heartbeat_at))
        ]

    def _was_so(self, before: "_Look", process_id: str, heartbeat_at: datetime) -> bool:
        """Whether the look just before this one saw the same heartbeat."""
        is_just_before = self._clock.mono_ns() - before.at_ns <= LOOKS_APART_S * NS_PER_S
        return is_just_before and before.heartbeats.get(process_id) == heartbeat_at


class _Look(Struct, frozen=True):
    """What one look at the others' heartbeats saw, and when (monotonic)."""

    at_ns: int
    heartbeats: Mapping[str, datetime]
