"""The real Agno server of ``tests/support``, and the simulated Hive measured against what it streams today."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from tests.support import agno_script as script

from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.server import Sandbox

SERVER = Path(script.__file__).with_name("agno_server.py")

pytestmark = pytest.mark.slow


@pytest.fixture
async def agno():
    """A started server: (process, what it said when ready)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
        yield process, json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(port, path, *, stream="true"):
    """One run's events and the moments, in seconds, at which reads brought them."""
    form = {"message": "oi", "stream": stream, "session_id": "s-1", "user_id": "u-1"}
    clock = asyncio.get_running_loop().time
    events, moments, rest = [], [], b""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        http.post(f"http://127.0.0.1:{port}{path}", data=form) as answer,
    ):
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        async for part in answer.content.iter_any():
            *blocks, rest = (rest + part).split(b"\n\n")
            for block in blocks:
                name, _, data = block.partition(b"\ndata: ")
                events.append(json.loads(data))
                moments.append(clock())
                assert name.decode() == f"event: {events[-1]['event']}"
    assert rest == b""
    return events, moments


def text_of_root(events, content):
    root = events[0]["run_id"]
    return "".join(event["content"] for event in events if event["event"] == content and event["run_id"] == root)


def forms(events):
    """Event names with their field names, repeats of one event taken once."""
    order = []
    for event in events:
        form = (event["event"], tuple(event))
        if not order or order[-1] != form:
            order.append(form)
    return order


async def test_the_server_streams_real_runs_and_ends_by_its_pid(agno):
    process, ready = agno
    assert (ready["pid"], ready["agno"]) == (process.pid, "3.1.10")

    text, moments = await run(ready["port"], "/agents/text/runs")
    tool, _ = await run(ready["port"], "/agents/tool/runs")
    error, _ = await run(ready["port"], "/agents/error/runs")
    team, _ = await run(ready["port"], "/teams/team/runs")

    assert text_of_root(text, "RunContent") == script.TEXT == text[-1]["content"]
    assert moments[-1] - moments[0] >= 0.03 * (len(script.TEXT_DELTAS) - 1)
    assert text_of_root(tool, "RunContent") == script.TOOL_TEXT
    assert [e["tool"]["result"] for e in tool if e["event"] == "ToolCallCompleted"] == [script.get_stock("SKU-42")]
    assert text_of_root(error, "RunContent") == script.ERROR_TEXT
    assert (error[-1]["event"], error[-1]["content"]) == ("RunError", script.ERROR_MESSAGE)
    assert text_of_root(team, "TeamRunContent") == script.TEAM_TEXT == team[-1]["content"]
    member = [e for e in team if e["event"] == "RunContent"]
    assert "".join(e["content"] for e in member) == script.MEMBER_TEXT
    assert {e["parent_run_id"] for e in member} == {team[0]["run_id"]}

    os.kill(ready["pid"], signal.SIGTERM)
    async with asyncio.timeout(10):
        await process.wait()
    with pytest.raises(aiohttp.ClientConnectorError):
        await run(ready["port"], "/agents/text/runs")


async def test_the_simulated_hive_streams_what_the_real_server_does(agno):
    _, ready = agno
    async with Sandbox(hive_key="", speed=0) as sandbox, serve_on_loopback(sandbox.asgi) as base:
        port = f"{base.rpartition(':')[2]}/hive"
        pairs = [
            ("/agents/text/runs", "/agents/prose/runs"),
            ("/agents/tool/runs", "/agents/tool/runs"),
            ("/agents/error/runs", "/agents/fail/runs"),
            ("/teams/team/runs", "/teams/team/runs"),
        ]
        for real, simulated in pairs:
            real_events, _ = await run(ready["port"], real)
            simulated_events, _ = await run(port, simulated)
            assert forms(simulated_events) == forms(real_events), real
