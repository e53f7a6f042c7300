"""The simulated Hive against recorded streams of real servers: framing, events, fields, refusals."""

import asyncio
import base64
import json

import aiohttp
import pytest
from tests.unit.sandbox.conftest import CAPTURES

from omni.sandbox.hive import SimulatedHive
from omni.sandbox.script_texts import PROVIDER_ERROR
from omni.sandbox.script_texts import scripts as all_scripts
from omni.sandbox.scripts import Say, Script

DIALECTS = ["agno1", "agno20", "agno3"]
PREFIX = {"agno1": "/hive/agno1/playground", "agno20": "/hive/agno20", "agno3": "/hive"}
KEYS = {
    "agno1": {"x-api-key": "sandbox-hive-key"},
    "agno20": {"Authorization": "Bearer sandbox-hive-key"},
    "agno3": {"Authorization": "Bearer sandbox-hive-key"},
}


def events_in(body):
    """Every JSON object in a stream, whatever its framing."""
    text = body.decode()
    found, start = [], 0
    decoder = json.JSONDecoder()
    while (start := text.find("{", start)) >= 0:
        event, start = decoder.raw_decode(text, start)
        found.append(event)
    return found


def recorded_events(name):
    lines = (CAPTURES / "hive" / f"{name}.jsonl").read_text().splitlines()
    return events_in(b"".join(base64.b64decode(json.loads(line)["b64"]) for line in lines))


def forms(events):
    """The order of event names with repeats of one event taken once, and each event's field names in order."""
    order = []
    for event in events:
        form = (event["event"], tuple(event))
        if not order or order[-1] != form:
            order.append(form)
    return order


@pytest.fixture
def ask(http):
    async def ask_run(message, *, dialect="agno3", kind="agents", runner="assistant", **fields):
        url = f"{PREFIX[dialect]}/{kind}/{runner}/runs"
        form = {"message": message, "session_id": "s-1", "user_id": "u-1", **fields}
        async with http.post(url, data=form, headers=KEYS[dialect]) as answer:
            return answer.status, answer.headers, await answer.read()

    return ask_run


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("command", "kind", "capture_name"),
    [
        ("/prose", "agents", "agent_text"),
        ("/tool", "agents", "agent_tool"),
        ("/fail", "agents", "agent_error_midstream"),
        ("/paused", "agents", "agent_paused"),
        ("/team", "teams", "team_member"),
    ],
)
async def test_streams_have_the_recorded_events_and_fields(ask, dialect, command, kind, capture_name):
    runner = "squad" if kind == "teams" else "assistant"

    status, headers, body = await ask(command, dialect=dialect, kind=kind, runner=runner)

    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert forms(events_in(body)) == forms(recorded_events(f"{dialect}_{capture_name}"))


@pytest.mark.parametrize(("dialect", "name"), [("agno1", "agno1_agent_empty"), ("agno3", "agno3_agent_empty")])
async def test_an_empty_answer_has_no_content_anywhere(ask, dialect, name):
    _, _, body = await ask("/empty", dialect=dialect)

    assert forms(events_in(body)) == forms(recorded_events(name))


async def test_a_failure_before_the_first_text_has_the_recorded_form(ask):
    _, _, body = await ask("/error-first")

    assert forms(events_in(body)) == forms(recorded_events("agno3_agent_error_first"))


async def test_the_oldest_framing_is_glued_pretty_json_in_ascii(ask):
    _, _, body = await ask("/emoji", dialect="agno1")

    assert body.isascii()
    assert body.startswith(b'{\n  "created_at": ')
    assert body.endswith(b"\n}")
    assert b'\n}{\n  "created_at"' in body
    assert b"\\ud83d\\udc4b" in body


async def test_the_middle_framing_puts_pretty_json_under_one_data_line(ask):
    _, _, body = await ask("/emoji", dialect="agno20")

    assert body.isascii()
    assert body.startswith(b'event: RunStarted\ndata: {\n  "created_at": ')
    assert body.endswith(b"\n}\n\n")


async def test_the_newest_framing_is_proper_server_sent_events_in_utf8(ask):
    _, _, body = await ask("/emoji")

    blocks = body.decode().removesuffix("\n\n").split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['event']}"
    assert "👋".encode() in body


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["greeting", "prose", "code", "list", "emoji", "long", "tool", "team", "slow"])
async def test_the_root_runs_pieces_join_to_the_script(ask, dialect, name):
    _, _, body = await ask("hi", dialect=dialect, runner=name if name != "greeting" else "assistant")

    events = events_in(body)
    root = events[0]["run_id"]
    content = {"agno1": "RunResponseContent"}.get(dialect, "RunContent")
    text = "".join(event["content"] for event in events if event["event"] == content and event["run_id"] == root)
    assert text == all_scripts("en")[name].text
    assert events[-1]["content"] == text
    assert {event["session_id"] for event in events} == {"s-1"}


@pytest.mark.parametrize("kind", ["agents", "teams"])
async def test_a_members_text_belongs_to_another_run(ask, kind):
    _, _, body = await ask("/team", kind=kind, runner="squad")

    events = events_in(body)
    root = events[0]["run_id"]
    member = [event for event in events if event.get("parent_run_id") == root]
    assert {event["run_id"] for event in member} & {root} == set()
    assert "".join(event["content"] for event in member if event["event"] == "RunContent").startswith("[member]")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_cut_stream_breaks_without_an_end(sandbox, http, dialect):
    parts = []

    async def read_all():
        async for part in answer.content.iter_any():
            parts.append(part)

    url = f"{PREFIX[dialect]}/agents/assistant/runs"
    async with http.post(url, data={"message": "/cut"}, headers=KEYS[dialect]) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_all()

    seen = b"".join(parts)
    assert "RunCompleted" not in seen.decode()
    assert "".join(e.get("content") or "" for e in events_in(seen)) == all_scripts("en")["cut"].text
    assert sandbox.hive.runs[-1].ending == "cut"


async def test_garbage_is_a_page_and_no_stream(ask):
    status, _, body = await ask("/garbage")

    assert (status, body[:12], b"502 Bad Gateway" in body) == (200, b"<html><head>", True)


async def test_a_stalled_stream_stays_silent_at_any_speed_until_the_client_goes(sandbox, http):
    async with http.post("/hive/agents/stall/runs", data={"message": "hi"}, headers=KEYS["agno3"]) as answer:
        seen = b""
        while all_scripts("en")["stall"].text not in "".join(e.get("content") or "" for e in events_in(seen)):
            seen += await answer.content.readany()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await answer.content.readany()

    [run] = sandbox.hive.runs
    assert run.ending is None


@pytest.mark.parametrize("dialect", ["agno20", "agno3"])
async def test_cancelling_acts_at_the_next_piece_with_the_recorded_events(sandbox, http, dialect):
    sandbox.pace.speed = 1
    path = f"{PREFIX[dialect]}/agents/prose/runs"
    async with http.post(path, data={"message": "hi"}, headers=KEYS[dialect]) as answer:
        seen = await answer.content.readany()
        run_id = sandbox.hive.runs[0].wire.run_id
        async with http.post(f"{path}/{run_id}/cancel", headers=KEYS[dialect]) as cancelled:
            assert (cancelled.status, await cancelled.json()) == (200, {})
        sandbox.pace.speed = 0
        seen += await answer.read()

    recorded = recorded_events(f"{dialect}_agent_cancel")
    ending = [event["event"] for event in recorded[-2:] if event["event"] != "RunContent"]
    events = events_in(seen)
    assert [event["event"] for event in events[-len(ending) :]] == ending
    assert list(events[-len(ending)]) == list(recorded[-len(ending)])
    assert sandbox.hive.runs[0].ending == "cancelled"


async def test_cancelling_an_unknown_run_is_answered_as_each_generation_does(http):
    async def cancel(dialect):
        url = f"{PREFIX[dialect]}/agents/prose/runs/none/cancel"
        async with http.post(url, headers=KEYS[dialect]) as answer:
            return answer.status, await answer.json()

    assert await cancel("agno1") == (404, {"detail": "Not Found"})
    assert await cancel("agno20") == (500, {"detail": "Failed to cancel run"})
    assert await cancel("agno3") == (200, {})


def recorded_refusals():
    rows = json.loads((CAPTURES / "hive" / "http_errors.json").read_text())
    wanted = {"unknown agent", "unknown team", "missing message", "bad bool", "GET on run", "wrong path prefix"}
    wanted |= {"no key", "bad key", "bearer instead of x-api-key", "json body instead of form"}
    keyless = {"no key", "bad key", "bearer instead of x-api-key"}
    for row in rows:
        if row["server"] in ("agno1", "agno3") and row["case"] in wanted:
            if row["server"] == "agno3" and row["case"] in keyless:
                continue  # that server ran without a key
            yield pytest.param(row, id=f"{row['server']} {row['case']}")


@pytest.mark.parametrize("row", list(recorded_refusals()))
async def test_refusals_are_the_recorded_ones(http, row):
    dialect, case = row["server"], row["case"]
    path = row["path"].replace("/wire/", "/assistant/").removeprefix("/playground" if dialect == "agno1" else "")
    url = PREFIX[dialect] + path
    if case == "wrong path prefix":
        url = ("/hive/agno1" if dialect == "agno1" else "/hive") + row["path"].replace("/wire/", "/assistant/")
    headers = {
        "no key": {},
        "bad key": {"x-api-key": "wrong"},
        "bearer instead of x-api-key": {"Authorization": "Bearer sandbox-hive-key"},
    }.get(case, KEYS[dialect])
    form = {"message": "hi", "stream": "false"}
    if case == "missing message":
        del form["message"]
    if case == "bad bool":
        form["stream"] = "maybe"
    body = {"json": form} if case == "json body instead of form" else {"data": form}

    async with http.request(row["method"], url, headers=headers, **body) as answer:
        assert (answer.status, await answer.text()) == (row["status"], row["body"])


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ({}, 401, "Authorization header required"),
        ({"x-api-key": "sandbox-hive-key"}, 401, "Authorization header required"),
        ({"Authorization": "Bearer wrong"}, 401, "Invalid authentication token"),
        ({"Authorization": "Basic xyz"}, 401, "Invalid authentication token"),
        ({"Authorization": "bearer sandbox-hive-key"}, 200, None),
        ({"Authorization": "sandbox-hive-key"}, 200, None),
        ({"Authorization": "Bearer sandbox-hive-key", "x-api-key": "sandbox-hive-key"}, 200, None),
    ],
)
async def test_newer_servers_want_a_bearer_token(http, headers, status, detail):
    form = {"message": "/empty", "stream": "false"}
    async with http.post("/hive/agents/assistant/runs", data=form, headers=headers) as answer:
        assert (answer.status, (await answer.json()).get("detail")) == (status, detail)


@pytest.mark.parametrize(("dialect", "status"), [("agno1", 200), ("agno20", 200), ("agno3", 422)])
async def test_only_the_newest_server_refuses_an_empty_message(ask, dialect, status):
    assert (await ask("", dialect=dialect, stream="false"))[0] == status


@pytest.mark.parametrize(
    ("dialect", "command", "kind", "name"),
    [
        ("agno1", "/prose", "agents", "agno1_agent_nostream"),
        ("agno1", "/tool", "agents", "agno1_agent_nostream_tool"),
        ("agno1", "/paused", "agents", "agno1_agent_nostream_paused"),
        ("agno1", "/team", "teams", "agno1_team_nostream"),
        ("agno3", "/prose", "agents", "agno3_agent_nostream"),
        ("agno3", "/tool", "agents", "agno3_agent_nostream_tool"),
        ("agno3", "/paused", "agents", "agno3_agent_nostream_paused"),
        ("agno3", "/fail", "agents", "agno3_agent_nostream_error"),
        ("agno3", "/team", "teams", "agno3_team_nostream"),
    ],
)
async def test_answers_without_streaming_have_the_recorded_fields(ask, dialect, command, kind, name):
    [recorded] = recorded_events(name)

    status, headers, raw = await ask(command, dialect=dialect, kind=kind, stream="false")

    body = json.loads(raw)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert list(body) == list(recorded)
    assert [list(m) for m in body.get("member_responses", [])] == [
        list(m) for m in recorded.get("member_responses", [])
    ]
    assert (body["status"], set(body["metrics"])) == (recorded["status"], set(recorded["metrics"]))
    assert body["session_id"] == "s-1"


@pytest.mark.parametrize("dialect", ["agno1", "agno20"])
async def test_older_servers_answer_a_broken_run_with_a_bare_500(ask, dialect):
    status, headers, body = await ask("/fail", dialect=dialect, stream="false")

    assert (status, headers["content-type"], body) == (500, "text/plain; charset=utf-8", b"Internal Server Error")


async def test_the_newest_server_puts_the_raw_error_into_the_answer(ask):
    _, _, body = await ask("/fail", stream="false")

    assert (json.loads(body)["status"], json.loads(body)["content"]) == ("ERROR", PROVIDER_ERROR)


async def test_runs_are_recorded_with_what_was_asked_and_when(sandbox, ask):
    await ask("/list", runner="assistant")

    [run] = sandbox.hive.runs
    assert (run.message, run.user_id, run.wire.session_id, run.wire.runner_id, run.script.name, run.ending) == (
        "/list",
        "u-1",
        "s-1",
        "assistant",
        "list",
        "completed",
    )
    assert run.received_ns < run.first_text_ns < run.ended_ns
    assert run.text == all_scripts("en")["list"].text


async def test_a_missing_session_is_made_up_and_returned(http, sandbox):
    async with http.post("/hive/agents/prose/runs", data={"message": "hi"}, headers=KEYS["agno3"]) as answer:
        events = events_in(await answer.read())

    assert {event["session_id"] for event in events} == {sandbox.hive.runs[0].wire.session_id}


async def test_a_script_of_ones_own_gets_its_own_agent(sandbox, ask):
    sandbox.hive.add_script("mine", Script(name="mine", title="Mine", steps=(Say("just this"),)))

    _, _, body = await ask("/list", runner="mine")

    assert events_in(body)[-1]["content"] == "just this"


async def test_an_empty_key_leaves_the_server_open(sandbox):
    hive = SimulatedHive(api_key="", tasks=sandbox.tasks, pace=sandbox.pace, clock=sandbox.evolution.clock)

    assert hive._refusal("agno3", None) is None


async def test_health_is_answered_without_a_key(http):
    async with http.get("/hive/health") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ok")


async def test_at_a_lifelike_pace_first_text_and_pieces_take_their_time(sandbox, ask):
    """The pace is a product of the script's figures; a tenth of the real one keeps the test short."""
    sandbox.pace.speed = 20

    await ask("/emoji")

    [run] = sandbox.hive.runs
    assert run.first_text_ns - run.received_ns >= 0.4 / 20 * 1e9
    assert run.ended_ns - run.first_text_ns >= 0.8 * run.num_pieces * 0.05 / 20 * 1e9
