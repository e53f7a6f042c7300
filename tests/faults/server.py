"""``omni serve`` as a process that may be killed, stopped and started again on the same data.

It is started as a person starts it. Only the process started here is ever signalled, by its id.
"""

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns

from tests.e2e.processes import OmniServer, _await_output, _environment, omni_settings

API_KEY = "api-key-of-these-tests"

STOP_S = 30.0
"""Longest a stop may take; the server's own deadline is far shorter."""

FAULT_SETTINGS = {
    "api_key": API_KEY,
    "send_retry_ms": "50",
    "send_retry_max_ms": "400",
    "send_timeout_ms": "1500",
    "reconcile_wait_ms": "500",
    "stop_deadline_ms": "3000",
}
"""Shorter waits than in operation; everything else is as it is shipped, what decides about keeping above all."""


class OmniProcess:
    """One Omni on one data folder, process after process. ``database_url`` empty is the SQLite file it makes by itself."""

    def __init__(self, folder: Path, *, database_url: str = "", **settings: str) -> None:
        self.folder = folder
        self.settings: Mapping[str, str] = omni_settings(**{**FAULT_SETTINGS, "database_url": database_url, **settings})
        self.base_url = ""
        self.spawned_ns = 0
        self.num_starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether a process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def address(self) -> OmniServer:
        """What the end-to-end tests' tools want to know of a server."""
        return OmniServer(base_url=self.base_url, api_key=API_KEY, folder=self.folder, settings=self.settings)

    @property
    def log(self) -> str:
        """What all its processes have written to standard error."""
        return (self.folder / "stderr.log").read_text(encoding="utf-8", errors="replace")

    def spawn(self) -> None:
        """Start a process and do not wait for it."""
        assert not self.is_running
        argv = [sys.executable, "-W", "error", "-m", "omni.cli", "serve", "--port", "0", "--no-sandbox"]
        with (self.folder / "stderr.log").open("ab") as stderr:
            self.spawned_ns = perf_counter_ns()
            self._process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env=_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.num_starts += 1

    async def until_listening(self) -> None:
        """Wait until the process has printed its address."""
        assert self._process is not None
        found = await asyncio.to_thread(_await_output, self._process, rb"listens on (http://\S+)[\s\S]*API key:")
        assert found is not None, f"the server did not start: {self.log[-4000:]}"
        self.base_url = found.decode()

    async def start(self) -> None:
        """Start a process and wait for its address."""
        self.spawn()
        await self.until_listening()

    def kill(self) -> int:
        """``kill -9``; the moment it was sent, on the monotonic clock in nanoseconds."""
        assert self._process is not None
        killed_ns = perf_counter_ns()
        os.kill(self._process.pid, signal.SIGKILL)
        self._close()
        return killed_ns

    def ask_to_stop(self) -> int:
        """Send SIGTERM; the moment, as ``kill`` tells it."""
        asked_ns = perf_counter_ns()
        os.kill(self.pid, signal.SIGTERM)
        return asked_ns

    async def until_ended(self) -> int:
        """The exit code, once the process has ended."""
        assert self._process is not None
        exit_code = await asyncio.to_thread(self._process.wait, STOP_S)
        self._close()
        return exit_code

    async def stop(self) -> int:
        """Stop in order; the exit code."""
        self.ask_to_stop()
        return await self.until_ended()

    def memory_mb(self, field: str) -> float:
        """What the process holds (``VmRSS``) or has ever held (``VmHWM``), in megabytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def limit_file_size(self, size_bytes: int | None) -> None:
        """Let the process write no file beyond this size, as a used-up quota does; None lifts the limit."""
        limit = resource.RLIM_INFINITY if size_bytes is None else size_bytes
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def end(self) -> None:
        """Whatever happened in the test, leave no process behind. Safe to call at any time."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._close()

    def _close(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
