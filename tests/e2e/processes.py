"""Real processes for the end-to-end tests: Omni as a person starts it, and a real Agno server.

A process is ready when it prints its address, and not before; it is stopped by SIGTERM and has to leave with exit code 0. What it
wrote to standard error stands in a file beside its data and is shown when something is wrong. Nothing here waits for time to pass.
"""

import asyncio
import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AGNO_SERVER = ROOT / "tests" / "support" / "agno_gateway_server.py"
AGNO_KEY = "agno-key-of-these-tests"

BYTECODE = ROOT / ".pytest_cache" / "bytecode"
"""What Python compiles is kept here: where it keeps none of it by itself, each process would compile everything for a second anew."""

START_S = 45.0
"""Longest a server may take until it prints its address; on a busy machine imports alone take seconds."""
STOP_S = 20.0
"""Longest a server may take to stop; its own deadline for running answers is far shorter."""
COMMAND_S = 60.0
"""Longest a command may take."""


@dataclass(frozen=True, kw_only=True)
class OmniServer:
    """``omni serve`` that is up: where, with which key, on which database, and the settings commands share with it."""

    base_url: str
    api_key: str
    folder: Path
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AgnoServer:
    """A real Agno server that is up."""

    base_url: str
    api_key: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


@contextmanager
def omni_serve(folder: Path, **settings: str) -> Iterator[OmniServer]:
    """Start Omni on a free port in a folder of its own; ``settings`` are variables without their prefix."""
    given = omni_settings(**settings)
    argv = [sys.executable, "-W", "error", "-m", "omni.cli", "serve", "--port", "0", "--no-sandbox"]
    with _running(argv, folder=folder, env=given, ready=rb"listens on (http://\S+)[\s\S]*API key:") as found:
        key = (folder / "data" / "api-key").read_text(encoding="utf-8")
        yield OmniServer(base_url=found.decode(), api_key=key, folder=folder, settings=given)


@contextmanager
def agno_serve(folder: Path) -> Iterator[AgnoServer]:
    """Start the Agno server on a free port."""
    argv = [sys.executable, str(AGNO_SERVER), "--key", AGNO_KEY]
    with _running(argv, folder=folder, env={}, ready=rb"(\{.*\})\n") as found:
        yield AgnoServer(base_url=f"http://127.0.0.1:{json.loads(found)['port']}", api_key=AGNO_KEY)


def omni_settings(**settings: str) -> dict[str, str]:
    """Environment variables from settings without their prefix: ``api_port="0"``."""
    return {f"AUTOMAGIK_OMNI_{name.upper()}": value for name, value in settings.items()}


async def run_omni(*arguments: str, folder: Path, settings: Mapping[str, str] | None = None) -> Finished:
    """Run one command of the command line in a process of its own and wait for its end."""
    return await run_python("-m", "omni.cli", *arguments, folder=folder, settings=settings)


async def run_omni_in_turn(*commands: Sequence[str], folder: Path) -> list[Finished]:
    """Run several commands one after the other, in one process because loading Omni is most of a short command's time.

    A command that begins with ``NAME=value`` words has those variables.
    """
    ended = await run_python("-c", _IN_TURN, json.dumps(commands), folder=folder)
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stderr
    return [Finished(**each) for each in json.loads(ended.stdout)]


_IN_TURN = """
import contextlib, io, json, os, sys
from omni.cli import main
ended = []
for words in json.loads(sys.argv[1]):
    variables = dict(word.split("=", 1) for word in words if word.startswith("AUTOMAGIK_OMNI_"))
    os.environ.update(variables)
    sys.argv = ["omni", *words[len(variables):]]
    stdout, stderr, exit_code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as exc:
            exit_code = exc.code or 0
    for name in variables:
        del os.environ[name]
    ended.append({"exit_code": exit_code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()})
print(json.dumps(ended))
"""


async def run_python(*arguments: str, folder: Path, settings: Mapping[str, str] | None = None) -> Finished:
    """Run Python with warnings as errors and wait for its end; the test's own servers go on meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        *arguments,
        cwd=folder,
        env=_environment(settings or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(exit_code=process.returncode, stdout=stdout.decode(), stderr=stderr.decode())


@contextmanager
def _running(argv: Sequence[str], *, folder: Path, env: Mapping[str, str], ready: bytes) -> Iterator[bytes]:
    """Run a server while the block runs; yields what the first group of ``ready`` found in its standard output."""
    complaints = folder / "stderr.log"
    with (
        complaints.open("wb") as stderr,
        subprocess.Popen(
            argv,
            cwd=folder,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        try:
            found = _await_output(process, ready)
            if found is None:
                raise AssertionError(f"the server did not start: {complaints.read_text()}")
            yield found
        finally:
            process.terminate()
            try:
                exit_code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert exit_code == 0, complaints.read_text()


def _await_output(process: "subprocess.Popen[bytes]", ready: bytes) -> bytes | None:
    """The first group of ``ready`` once the process has printed it; None when it ended or took too long."""
    assert process.stdout is not None
    printed = b""
    deadline_s = time.monotonic() + START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(deadline_s - time.monotonic(), 0)):
            piece = os.read(process.stdout.fileno(), 65_536)
            if not piece:
                return None
            printed += piece
            if (found := re.search(ready, printed)) is not None:
                return found[1]
    return None


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without any settings of Omni's, and the given ones.

    ENVIRONMENT=test opened the predecessor's API (F38); here it is set throughout and must mean nothing.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AUTOMAGIK_OMNI_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(BYTECODE),
        "ENVIRONMENT": "test",
        "NO_COLOR": "1",
        "COLUMNS": "120",
        **given,
    }
