"""How long after a kill -9 and a restart every open trace is closed, with the text received so far: 200 traces, and 10,000.

The traces are left by a process that is really killed (``support_left_open``), in a database of the default kind. Then `omni serve` is
started on it and the database is asked, from outside, how many are still open. Time counts from the start of the process, imports
and all, because that is what an operator waits for; beside it stands the time from the moment the server answered. At the end
each closed trace is verified, and its text must be all that was stored before the kill.

    python -m benchmarks recovery
"""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

from benchmarks.support_left_open import READY, TEXT
from benchmarks.support_processes import ROOT, omni
from omni.store.database import Database
from omni.store.trace_pages import SqlTracePages
from omni.tracing.verify import check_trace

Row = tuple[str, float, str, float | None]

# The promise is for what a busy server has open; ten thousand is what a queue that had run full would leave.
LEVELS = ((200, 5.0), (10_000, None))
DEADLINE_S = 120.0
POLL_S = 0.02
_OPEN = "SELECT count(*) FROM message_traces WHERE completed_at IS NULL"


def measure() -> list[Row]:
    return [row for level, budget_s in LEVELS for row in _measure_level(level, budget_s)]


def _measure_level(level: int, budget_s: float | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _leave_open(folder, level)
        began_s = perf_counter()
        with omni(folder) as server:
            up_s = perf_counter() - began_s
            took_s = _wait_until_closed(folder, began_s)
            memory_mb = server.memory_mb("VmHWM")
        num_wrong = _num_wrong(folder)
    yield f"{level} open traces: closed after the process was started", took_s, "s", budget_s
    yield f"{level} open traces: the server answered after", up_s, "s", None
    yield f"{level} open traces: closed after the server answered", max(took_s - up_s, 0), "s", None
    yield (
        f"{level} open traces: closed per second once it answered",
        level / max(took_s - up_s, POLL_S),
        "traces/s",
        None,
    )
    yield f"{level} open traces: memory at its highest", memory_mb, "MB", None
    yield f"{level} open traces: not interrupted, not whole or not verified", num_wrong, "traces", 0


def _leave_open(folder: Path, num_traces: int) -> None:
    """Run the process that leaves traces open, and kill it."""
    ours = {"AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH": str(folder / "omni.db"), "AUTOMAGIK_OMNI_LOG_LEVEL": "WARNING"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOMAGIK_OMNI_")}
    arguments = [sys.executable, "-m", "benchmarks.support_left_open", str(num_traces)]
    with subprocess.Popen(arguments, cwd=ROOT, env=inherited | ours, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            told = child.stdout.readline().decode().strip()
        finally:
            child.send_signal(signal.SIGKILL)
    if told != READY:
        raise RuntimeError("the traces to recover were not made; the last words of the process are above")
    num_open = _num_open(folder)
    if num_open != num_traces:
        raise RuntimeError(f"{num_open} of {num_traces} traces were left open")


def _wait_until_closed(folder: Path, began_s: float) -> float:
    """Seconds from ``began_s`` until no trace was open; infinite when it takes longer than anybody waits."""
    while _num_open(folder):
        if perf_counter() - began_s > DEADLINE_S:
            return float("inf")
        sleep(POLL_S)
    return perf_counter() - began_s


def _num_open(folder: Path) -> int:
    connection = sqlite3.connect(f"file:{folder / 'omni.db'}?mode=ro", uri=True)
    try:
        (num_open,) = connection.execute(_OPEN).fetchone()
        return num_open
    finally:
        connection.close()


def _num_wrong(folder: Path) -> int:
    """How many traces do not verify, say anything but that they were interrupted, or have not the text that had been stored."""
    database = Database.open(f"sqlite:///{folder / 'omni.db'}")
    try:
        return sum(
            (row.error_stage, row.agent_response_length) != ("interrupted", len(TEXT))
            or check_trace(row, payloads).disagreements != []
            for page in SqlTracePages(database).walk()
            for row, payloads in page
        )
    finally:
        database.close()
