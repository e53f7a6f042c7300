"""HiveClient against a real HTTP server on loopback: recorded answers replayed, and everything that goes wrong on a wire."""

import asyncio
import base64
import json
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from omni.agents.frames import MAX_EVENT_BYTES
from omni.agents.hive import HiveClient
from omni.clock import SystemClock
from omni.errors import (
    AgentFailed,
    AgentProtocolError,
    AgentRejected,
    AgentTimeout,
    AgentUnreachable,
)
from omni.model import AgentRequest, FirstByte, RequestWritten, RunEnded, RunStarted, TextDelta, ToolCall
from omni.settings import Settings

CAPTURES = Path(__file__).parents[1] / "captures" / "hive"
INDEX = {c["name"]: c for c in json.loads((CAPTURES / "index.json").read_text(encoding="utf-8"))["captures"]}
GUARD_S = 20  # how long a test waits for something that must happen
RUN_ID = "f8e38acc"


def read_pieces(name):
    lines = (CAPTURES / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    return [base64.b64decode(json.loads(line)["b64"]) for line in lines]


def event(name, **fields):
    return b"data: " + json.dumps({"event": name, "run_id": RUN_ID} | fields).encode() + b"\n\n"


class Server:
    """A web server whose ``answer`` is called for every request; ``seen`` keeps path, headers and form of each."""

    def __init__(self):
        self.seen = []
        self.answer = None
        self.release = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.base_url = ""

    async def handle(self, request):
        form = dict(await request.post())
        self.seen.append((request.path, dict(request.headers), form))
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.hung_up.set()
            raise

    async def stream(self, request, pieces, *, status=200):
        response = web.StreamResponse(status=status, headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    def streams(self, *pieces, then="end"):
        """Answer with these pieces; then end well, hang, or drop the connection without an end."""

        async def answer(request):
            response = await self.stream(request, pieces)
            if then == "hang":
                await self.release.wait()
            elif then == "drop":
                request.transport.close()
            return response

        self.answer = answer

    def replies(self, status, body, content_type="application/json"):
        async def answer(request):
            return web.Response(status=status, body=body, content_type=content_type)

        self.answer = answer


@pytest.fixture
async def server():
    server = Server()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    server.release.set()
    await runner.cleanup()


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield HiveClient(lambda: session, clock=SystemClock(), settings=Settings(_env_file=None))


def ask(server, **changes):
    fields = {
        "base_url": server.base_url,
        "api_key": None,
        "agent_kind": "agent",
        "agent_id": "wire",
        "message": "oi",
        "session_id": "s-1",
        "user_id": "5511999990000",
        "timeout_s": GUARD_S,
    }
    return AgentRequest(**(fields | changes))


async def collect(client, request):
    """All events of a run, and the error it ended in."""
    events = []
    try:
        async for one in client.run(request):
            events.append(one)
    except (AgentUnreachable, AgentRejected, AgentFailed, AgentTimeout, AgentProtocolError) as exc:
        return events, exc
    return events, None


def kinds(events):
    return [type(one).__name__ for one in events]


def text_of(events):
    return "".join(one.text for one in events if isinstance(one, TextDelta))


REPLAYED = [
    "agno1_agent_text",
    "agno1_team_member",
    "agno1_agent_error_midstream",
    "agno20_agent_nasty",
    "agno3_agent_nasty",
    "agno3_agent_big",
    "agno3_agent_paused",
    "agno3_team_cancel",
    "agno3_workflow",
    "agno1_server_killed",
    "agno3_agent_empty",
]


@pytest.mark.parametrize("name", REPLAYED)
async def test_recorded_stream_comes_through_whole(server, client, name):
    capture = INDEX[name]
    server.streams(*read_pieces(name), then="drop" if "tcp-eof" in capture["end"] else "end")
    events, error = await collect(client, ask(server))
    assert error is None
    assert kinds(events)[:3] == ["RequestWritten", "FirstByte", "RunStarted"]
    if capture["expected"]["text"] is not None:
        assert text_of(events) == capture["expected"]["text"]
    else:
        assert text_of(events) == "início " + "Açúcar 🍬 e café ☕. " * 8000 + " fim"
    assert [one.ending for one in events if isinstance(one, RunEnded)] == [capture["expected"]["outcome"].split(":")[0]]
    assert isinstance(events[-1], RunEnded)
    times = [one.mono_ns for one in events]
    assert times == sorted(times)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["agno1_agent_nostream_tool", "agno3_agent_nostream_tool"])
async def test_a_document_is_read_whether_or_not_a_stream_was_asked_for(server, client, name, stream):
    server.replies(200, b"".join(read_pieces(name)))
    events, error = await collect(client, ask(server, stream=stream))
    assert error is None
    assert kinds(events) == [
        "RequestWritten",
        "FirstByte",
        "RunStarted",
        "ToolCall",
        "ToolCall",
        "TextDelta",
        "RunEnded",
    ]
    assert text_of(events) == INDEX[name]["expected"]["text"]
    assert events[-1].ending == "completed"


async def test_a_stream_is_read_where_a_document_was_asked_for(server, client):
    server.streams(*read_pieces("agno3_agent_tool"))
    events, error = await collect(client, ask(server, stream=False))
    assert (error, text_of(events)) == (None, INDEX["agno3_agent_tool"]["expected"]["text"])
    assert [one.phase for one in events if isinstance(one, ToolCall)] == ["started", "completed"]


async def test_a_document_may_be_larger_than_an_event(server, client):
    big = "x" * (MAX_EVENT_BYTES + 1)
    server.replies(200, json.dumps({"run_id": RUN_ID, "content": big}).encode())
    events, error = await collect(client, ask(server, stream=False))
    assert (error, text_of(events) == big) == (None, True)
    events, error = await collect(client, ask(server, stream=True))
    assert isinstance(error, AgentProtocolError)


async def test_the_form_holds_message_session_and_user(server, client):
    """Sent without them, every message would start a new conversation."""
    server.streams(event("RunCompleted"))
    await collect(client, ask(server, message="olá & tudo=bem? 👋", agent_kind="team", agent_id="a b"))
    await collect(client, ask(server, stream=False, user_id=""))
    (path, headers, form), (_, _, plain) = server.seen
    assert path == "/teams/a b/runs"
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in headers
    assert "x-api-key" not in headers
    assert form == {"message": "olá & tudo=bem? 👋", "stream": "true", "session_id": "s-1", "user_id": "5511999990000"}
    assert plain == {"message": "oi", "stream": "false", "session_id": "s-1"}


def reachable_at(server, prefix, *, accepts, key="k"):
    """Answer as a server that serves runs below one prefix and reads its key in its own way."""

    async def answer(request):
        if not request.path.startswith(f"{prefix}/agents/"):
            return web.json_response({"detail": "Not Found"}, status=404)
        if not accepts(request.headers, key):
            return web.json_response({"detail": "Invalid or missing key"}, status=401)
        if "/nobody/" in request.path:
            return web.json_response({"detail": "Agent not found"}, status=404)
        if request.path.endswith("/cancel"):
            return web.json_response({})
        return await server.stream(request, [event("RunContent", content="a"), event("RunCompleted", content="a")])

    server.answer = answer


def by_header(headers, key):
    return headers.get("x-api-key") == key


def by_bearer(headers, key):
    return headers.get("Authorization") == f"Bearer {key}"


def only_by_header(headers, key):
    return by_header(headers, key) and "Authorization" not in headers


def only_by_bearer(headers, key):
    return by_bearer(headers, key) and "x-api-key" not in headers


@pytest.mark.parametrize("suffix", ["", "/", "/playground", "/playground/"])
@pytest.mark.parametrize("prefix", ["", "/playground"])
@pytest.mark.parametrize(
    ("accepts", "num_keys_tried"), [(by_header, 1), (by_bearer, 1), (only_by_header, 2), (only_by_bearer, 3)]
)
async def test_path_and_key_are_found_once_and_remembered(server, client, suffix, prefix, accepts, num_keys_tried):
    reachable_at(server, prefix, accepts=accepts)
    asked = ask(server, base_url=server.base_url + suffix, api_key="k")
    is_first_guess = suffix.startswith(prefix) if prefix else not suffix.startswith("/playground")
    for num_expected in (num_keys_tried + (not is_first_guess), 1, 1):
        server.seen.clear()
        events, error = await collect(client, asked)
        assert (error, text_of(events)) == (None, "a")
        assert len(server.seen) == num_expected
        assert kinds(events).count("RequestWritten") == 1


async def test_a_missing_agent_is_final(server, client):
    reachable_at(server, "", accepts=by_bearer)
    events, error = await collect(client, ask(server, api_key="k", agent_id="nobody"))
    assert kinds(events) == ["RequestWritten"]
    assert isinstance(error, AgentRejected)
    assert (error.status_code, error.detail, error.retryable) == (404, "Agent not found", False)
    assert len(server.seen) == 1


async def test_a_wrong_address_is_tried_below_both_paths_only(server, client):
    reachable_at(server, "/elsewhere", accepts=by_bearer)
    for _ in range(2):
        server.seen.clear()
        _, error = await collect(client, ask(server, api_key="k"))
        assert (type(error), error.status_code, error.detail) == (AgentRejected, 404, "Not Found")
        assert [path for path, _, _ in server.seen] == ["/agents/wire/runs", "/playground/agents/wire/runs"]


async def test_a_wrong_key_is_rejected_after_each_header_was_tried(server, client):
    reachable_at(server, "", accepts=by_bearer, key="other")
    _, error = await collect(client, ask(server, api_key="k"))
    assert (type(error), error.status_code, len(server.seen)) == (AgentRejected, 401, 3)
    server.seen.clear()
    _, error = await collect(client, ask(server))
    assert (type(error), error.status_code, len(server.seen)) == (AgentRejected, 401, 1)


LIST_DETAIL = {
    "detail": [
        {"type": "missing", "loc": ["body", "message"], "msg": "Field required", "input": "what the user wrote"},
        {"type": "x", "msg": "second\nline"},
        {"odd": 1},
    ]
}


@pytest.mark.parametrize(
    ("status", "body", "kind", "is_retryable", "detail"),
    [
        (400, {"detail": "Unsupported file type"}, AgentRejected, False, "Unsupported file type"),
        (403, {"message": "no"}, AgentRejected, False, "no"),
        (404, {"detail": "Agent not found"}, AgentRejected, False, "Agent not found"),
        (405, {"detail": "Method Not Allowed"}, AgentRejected, False, "Method Not Allowed"),
        (422, LIST_DETAIL, AgentRejected, False, 'body.message: Field required; second line; {"odd":1}'),
        (429, {"detail": None}, AgentFailed, True, "null"),
        (500, "Internal Server Error", AgentFailed, True, "Internal Server Error"),
        (502, "", AgentFailed, True, None),
        (503, "x" * 70_000, AgentFailed, True, "x" * 500),
    ],
)
async def test_each_status_becomes_one_error_with_its_detail(server, client, status, body, kind, is_retryable, detail):
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    server.replies(status, raw, "text/plain" if isinstance(body, str) else "application/json")
    events, error = await collect(client, ask(server))
    assert kinds(events) == ["RequestWritten"]
    assert (type(error), error.status_code, error.retryable, error.detail) == (kind, status, is_retryable, detail)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(server, client, status):
    async def answer(request):
        return web.Response(status=status, headers={"Location": "/agents/other/runs"})

    server.answer = answer
    _, error = await collect(client, ask(server, api_key="k"))
    assert (type(error), error.status_code, len(server.seen)) == (AgentRejected, status, 1)


async def test_a_refused_connection_is_unreachable_and_was_never_written(client, unused_tcp_port):
    events, error = await collect(client, ask(Server(), base_url=f"http://127.0.0.1:{unused_tcp_port}"))
    assert events == []
    assert (type(error), error.retryable) == (AgentUnreachable, True)


@pytest.mark.parametrize(
    "changes", [{"base_url": "no url"}, {"base_url": "ftp://h"}, {"base_url": ""}, {"api_key": "k\nX: y"}]
)
async def test_a_url_or_key_that_cannot_be_sent_is_rejected(server, client, changes):
    events, error = await collect(client, ask(server, **changes))
    assert (events, type(error), error.retryable) == ([], AgentRejected, False)
    assert server.seen == []


async def raw_server(handle):
    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    return listener, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", AgentProtocolError), (b"", AgentUnreachable)]
)
async def test_a_server_that_speaks_no_http(client, answer, kind):
    async def handle(reader, writer):
        await reader.readuntil(b"user_id=5511999990000")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    listener, base_url = await raw_server(handle)
    async with listener:
        events, error = await collect(client, ask(Server(), base_url=base_url))
    assert kinds(events) == ["RequestWritten"]
    assert isinstance(error, kind)


async def test_only_the_last_attempts_writing_counts(client):
    """The server takes one request, knows no such path, and is gone before the next: that one was never written."""
    head = b"HTTP/1.1 404 Not Found\r\ncontent-length: 22\r\nconnection: close\r\n\r\n"

    async def handle(reader, writer):
        listener.close()
        await reader.readuntil(b"user_id=5511999990000")
        writer.write(head + b'{"detail":"Not Found"}')
        writer.close()
        await writer.wait_closed()

    listener, base_url = await raw_server(handle)
    events, error = await collect(client, ask(Server(), base_url=base_url))
    await listener.wait_closed()
    assert (events, type(error)) == ([], AgentUnreachable)


GARBAGE = b"<!doctype html><html><style>body{color:red}</style>\nlogin please</html>"


@pytest.mark.parametrize("pieces", [[GARBAGE], [b"not json\n"], [b"data: {not json}\n\n"], [b'{"status":"ok"}']])
async def test_garbage_is_a_protocol_error(server, client, pieces):
    server.streams(*pieces)
    events, error = await collect(client, ask(server))
    assert isinstance(error, AgentProtocolError)
    assert kinds(events)[:2] == ["RequestWritten", "FirstByte"]


@pytest.mark.parametrize("pieces", [[], [b": ping\n\n"], [b"data: [DONE]\n\n"], [b'data: {"event":"RunSta']])
async def test_an_answer_that_says_nothing_is_incomplete(server, client, pieces):
    server.streams(*pieces)
    events, error = await collect(client, ask(server))
    assert error is None
    assert (kinds(events)[-1], events[-1].ending, text_of(events)) == ("RunEnded", "incomplete", "")


async def test_one_garbage_line_costs_nothing_but_itself(server, client):
    server.streams(
        event("RunStarted"),
        b"garbage\n\n",
        b'data: {"event": broken\n\n',
        event("RunContent", content="a"),
        event("RunCompleted", content="a"),
    )
    events, error = await collect(client, ask(server))
    assert error is None
    assert kinds(events)[2:] == ["RunStarted", "RunActivity", "TextDelta", "RunEnded"]


async def test_a_connection_that_breaks_ends_the_run_incomplete_after_all_it_held(server, client):
    server.streams(event("RunStarted"), event("RunContent", content="a"), b'data: {"event":"RunCont', then="drop")
    events, error = await collect(client, ask(server))
    assert error is None
    assert kinds(events) == ["RequestWritten", "FirstByte", "RunStarted", "TextDelta", "RunEnded"]
    assert (events[-1].ending, events[-1].run_id, text_of(events)) == ("incomplete", RUN_ID, "a")


@pytest.mark.parametrize("then", ["drop", "reset"])
async def test_what_arrived_before_a_break_is_not_lost_while_the_reader_is_busy(server, client, then):
    """The HTTP library forgets what it has buffered once the connection is gone."""
    more, dropped = asyncio.Event(), asyncio.Event()

    async def answer(request):
        response = await server.stream(request, [event("RunStarted")])
        await more.wait()
        await response.write(event("RunContent", content="a") + event("RunContent", content="b"))
        for _ in range(5):
            await asyncio.sleep(0)
        request.transport.close() if then == "drop" else request.transport.abort()
        dropped.set()
        return response

    server.answer = answer
    events = []
    async with asyncio.timeout(GUARD_S), aclosing(client.run(ask(server))) as run:
        async for one in run:
            events.append(one)
            if isinstance(one, RunStarted):
                more.set()
                await dropped.wait()
                for _ in range(50):
                    await asyncio.sleep(0)
    assert text_of(events) == "ab"
    assert events[-1].ending == "incomplete"


@pytest.mark.parametrize(
    "pieces",
    [[], [b": ping\n\n"], [event("RunStarted")], [event("RunStarted"), event("RunContent", content=" \n")]],
    ids=["nothing", "ping", "no text", "blank text"],
)
async def test_silence_before_the_first_text_is_given_up(server, client, pieces):
    server.streams(*pieces, then="hang")
    events, error = await collect(client, ask(server, timeout_s=0.05))
    assert isinstance(error, AgentTimeout)
    assert (error.kind, error.timeout_s, error.retryable) == ("first_token", 0.05, True)
    assert kinds(events)[0] == "RequestWritten"
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_what_earlier_attempts_have_waited_counts(server, client):
    """Three attempts together wait for the first text no longer than one may."""
    server.streams(event("RunStarted"), then="hang")
    events, error = await collect(client, ask(server, timeout_s=GUARD_S, waited_s=GUARD_S - 0.05))
    assert (kinds(events)[-1], error.kind, error.timeout_s) == ("RunStarted", "first_token", GUARD_S)


async def test_silence_before_the_head_is_given_up(server, client):
    async def answer(request):
        await server.release.wait()
        return web.Response()

    server.answer = answer
    events, error = await collect(client, ask(server, timeout_s=0.05))
    assert (kinds(events), error.kind) == (["RequestWritten"], "first_token")


async def test_silence_in_an_error_body_is_given_up(server, client):
    async def answer(request):
        response = await server.stream(request, [b"Internal "], status=500)
        await server.release.wait()
        return response

    server.answer = answer
    _, error = await collect(client, ask(server, timeout_s=0.05))
    assert (type(error), error.kind) == (AgentTimeout, "first_token")
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_an_endless_error_body_is_cut(server, client):
    async def answer(request):
        response = await server.stream(request, [b"x" * 70_000], status=500)
        await server.release.wait()
        return response

    server.answer = answer
    _, error = await collect(client, ask(server))
    assert (type(error), error.detail) == (AgentFailed, "x" * 500)
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_silence_in_the_middle_is_given_up_with_the_text_so_far(server, client):
    server.streams(event("RunStarted"), event("RunContent", content="a"), then="hang")
    events, error = await collect(client, ask(server, timeout_s=0.05))
    assert isinstance(error, AgentTimeout)
    assert (error.kind, error.retryable, text_of(events)) == ("idle", False, "a")
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


@pytest.mark.parametrize("busy_at", [RunStarted, TextDelta])
async def test_a_busy_reader_is_not_the_agents_silence(server, client, busy_at):
    more = asyncio.Event()

    async def answer(request):
        response = await server.stream(request, [event("RunStarted")])
        if busy_at is RunStarted:
            await more.wait()
        await response.write(event("RunContent", content="a"))
        await more.wait()
        await response.write(event("RunCompleted", content="a"))
        return response

    server.answer = answer
    loop = asyncio.get_running_loop()
    events = []
    async for one in client.run(ask(server, timeout_s=0.05)):
        events.append(one)
        if isinstance(one, busy_at):
            limit_passed = loop.create_future()
            loop.call_later(0.08, more.set)
            loop.call_later(0.1, limit_passed.set_result, None)
            await limit_passed
    assert events[-1].ending == "completed"


async def test_the_first_end_closes_the_connection(server, client):
    server.streams(event("RunCancelled", reason="asked"), event("RunCompleted", content="late"), then="hang")
    events, error = await collect(client, ask(server))
    assert (error, kinds(events)) == (None, ["RequestWritten", "FirstByte", "RunStarted", "RunEnded"])
    assert (events[-1].ending, events[-1].error_message) == ("cancelled", "asked")
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_closing_the_iterator_closes_the_connection(server, client):
    """On older servers the only way to cancel a run."""
    server.streams(event("RunStarted"), then="hang")
    async with aclosing(client.run(ask(server))) as run:
        async for one in run:
            if isinstance(one, RunStarted):
                break
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_cancelling_the_reader_closes_the_connection(server, client):
    server.streams(event("RunStarted"), then="hang")
    started = asyncio.Event()

    async def read():
        async for one in client.run(ask(server)):
            if isinstance(one, RunStarted):
                started.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), GUARD_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.hung_up.wait(), GUARD_S)


async def test_moments_are_those_of_the_wire(server, client):
    """Written before the server saw the form, first byte after it began to answer."""
    clock = SystemClock()
    moments = {}

    async def answer(request):
        moments["seen"] = clock.mono_ns()
        response = await server.stream(request, [])
        moments["answered"] = clock.mono_ns()
        await response.write(event("RunStarted"))
        return response

    server.answer = answer
    begun_ns = clock.mono_ns()
    events, _ = await collect(client, ask(server))
    written, first, started, end = events
    assert isinstance(written, RequestWritten)
    assert isinstance(first, FirstByte)
    assert begun_ns < written.mono_ns < moments["seen"] < moments["answered"] < first.mono_ns
    assert first.mono_ns == started.mono_ns < end.mono_ns


async def test_many_runs_at_once_do_not_mix(server, client):
    async def answer(request):
        form = await request.post()
        message = form["message"]
        return await server.stream(
            request, [event("RunContent", content=message), event("RunCompleted", content=message)]
        )

    server.answer = answer
    runs = await asyncio.gather(*(collect(client, ask(server, message=f"m{i}")) for i in range(20)))
    assert [text_of(events) for events, _ in runs] == [f"m{i}" for i in range(20)]


async def test_cancel_goes_where_the_run_went(server, client):
    reachable_at(server, "/playground", accepts=only_by_bearer)
    await collect(client, ask(server, api_key="k"))
    server.seen.clear()
    assert await client.cancel_run(ask(server, api_key="k"), "r/1") is True
    assert [path for path, _, _ in server.seen] == ["/playground/agents/wire/runs/r/1/cancel"]


async def test_cancel_is_false_where_there_is_no_such_route(server, client):
    server.replies(404, b'{"detail":"Not Found"}')
    assert await client.cancel_run(ask(server), RUN_ID) is False


async def test_cancel_reports_what_else_went_wrong(server, client):
    server.replies(500, b'{"detail":"Failed to cancel run"}')
    with pytest.raises(AgentFailed) as failed:
        await client.cancel_run(ask(server), RUN_ID)
    assert failed.value.detail == "Failed to cancel run"
    server.replies(401, b'{"detail":"no"}')
    with pytest.raises(AgentRejected):
        await client.cancel_run(ask(server), RUN_ID)

    async def answer(request):
        await server.release.wait()
        return web.Response()

    server.answer = answer
    with pytest.raises(AgentUnreachable):
        await client.cancel_run(ask(server, timeout_s=0.05), RUN_ID)
