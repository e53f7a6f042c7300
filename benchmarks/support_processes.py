"""Omni and the world around it as processes of their own: started, watched from outside, stopped.

What a process used is read from Linux's own books (/proc): CPU per thread in nanoseconds, and how long its threads were ready to run
while the machine was busy with something else, which is nobody's latency but the machine's.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
API_KEY = "benchmark"
INSTANCE = "bench"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Usage:
    """What a process has used so far, in nanoseconds: CPU of its first thread (the event loop's), of the others, and waiting for a core."""

    loop_ns: int
    others_ns: int
    loop_waited_ns: int

    def __sub__(self, earlier: "Usage") -> "Usage":
        return Usage(
            self.loop_ns - earlier.loop_ns,
            self.others_ns - earlier.others_ns,
            self.loop_waited_ns - earlier.loop_waited_ns,
        )


@dataclass(frozen=True)
class Server:
    """A running process and where it listens."""

    url: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def usage(self) -> Usage:
        loop_ns = others_ns = waited_ns = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            ran, waited, _ = (int(field) for field in (task / "schedstat").read_text().split())
            if int(task.name) == self.pid:
                loop_ns, waited_ns = ran, waited
            else:
                others_ns += ran
        return Usage(loop_ns, others_ns, waited_ns)

    def memory_mb(self, field: str = "VmRSS") -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One JSON call; blocks. Raises urllib.error.HTTPError for every refusal."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", "x-api-key": API_KEY},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def world() -> Iterator[Server]:
    """The simulated agent and Evolution (``support_world``)."""
    with _serving("benchmarks.support_world") as server:
        yield server


@contextmanager
def streaming_agent() -> Iterator[Server]:
    """An agent that writes as fast or as evenly as it can (``support_stream``)."""
    with _serving("benchmarks.support_stream") as server:
        yield server


@contextmanager
def omni(folder: Path, **settings: str) -> Iterator[Server]:
    """``omni serve`` on a free port with its data in ``folder``; settings by their variable's name without the prefix, in lower case."""
    named = {"api_key": API_KEY, "sqlite_database_path": str(folder / "omni.db"), "log_level": "WARNING", **settings}
    ours = {f"AUTOMAGIK_OMNI_{name.upper()}": value for name, value in named.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOMAGIK_OMNI_")}
    arguments = [sys.executable, "-m", "omni.cli", "serve", "--port", "0", "--no-sandbox"]
    with _process(arguments, cwd=folder, env=inherited | ours | {"COLUMNS": "200"}) as child:
        assert child.stdout is not None
        greeting = child.stdout.readline().decode()
        found = re.search(r"http://[\w.]+:\d+", greeting)
        if found is None:
            raise RuntimeError("omni serve did not start; its last words are above")
        server = Server(found[0], child.pid)
        _wait_until_up(server)
        yield server


def add_instance(server: Server, around: Server, name: str = INSTANCE) -> None:
    """Configure the instance that is answered for by the simulated agent."""
    server.call(
        "POST",
        "/api/v1/instances",
        {
            "name": name,
            "evolution_url": around.url,
            "evolution_key": "key",
            "agent_instance_type": "hive",
            "agent_api_url": around.url,
            "agent_api_key": "key",
            "agent_id": "bench",
            "agent_stream_mode": True,
        },
    )


@contextmanager
def _serving(module: str) -> Iterator[Server]:
    """A module that prints the port it serves on."""
    with _process([sys.executable, "-m", module], cwd=ROOT, env=dict(os.environ)) as child:
        assert child.stdout is not None
        port = json.loads(child.stdout.readline())["port"]
        yield Server(f"http://127.0.0.1:{port}", child.pid)


@contextmanager
def _process(arguments: list[str], *, cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(arguments, cwd=cwd, env=env, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _wait_until_up(server: Server) -> None:
    deadline_s = perf_counter() + START_DEADLINE_S
    while True:
        try:
            server.call("GET", "/health")
        except OSError:
            if perf_counter() > deadline_s:
                raise
            sleep(0.05)
        else:
            return
