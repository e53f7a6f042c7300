"""The webhook route: what it takes, what it refuses, and that it never waits for anything slow."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from tests.unit.web.fakes import API_KEY, WAIT_S, Desk, client_of, held, refusal

from omni.errors import InboxFull, StoreError, WebhookMalformed
from omni.gateway.turn import Verdict

CAPTURES = Path(__file__).parents[2] / "captures" / "evolution"
JWT_CAPTURE = json.loads((CAPTURES / "13_webhook_set_and_byevents_jwt.json").read_text())
JWT_SECRET = JWT_CAPTURE["set_ok"]["request"]["body"]["webhook"]["headers"]["jwt_key"]
CAPTURED_CALL = JWT_CAPTURE["webhooks"][0]
TOKEN_ENDS = datetime.fromtimestamp(1795343410, UTC)
EVENT = {"event": "messages.upsert", "instance": "support", "data": {"key": {"id": "A1"}}}
PATH = "/webhook/evolution/support"


def token(**claims: Any) -> str:
    whole = {"iat": 1795342810, "exp": 1795343410, "app": "evolution", "action": "webhook", **claims}
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        return jwt.encode(
            {name: value for name, value in whole.items() if value is not None}, JWT_SECRET, algorithm="HS256"
        )


def bare(desk: Desk, **settings: Any) -> httpx.AsyncClient:
    return client_of(desk.app(**settings), key=None)


async def test_an_event_is_handed_in_with_its_instance_and_answered(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post(PATH, json=EVENT)

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "success", "instance": "support", "trace_id": "trace-1", "reason": None},
    )
    assert [(instance.name, body) for instance, body in desk.taken] == [("support", EVENT)]


async def test_an_ignored_event_is_a_success_that_says_why(desk: Desk, client: httpx.AsyncClient):
    desk.verdict = Verdict(status="ignored", reason="own_message")

    answer = await client.post(PATH, json=EVENT)

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ignored", "instance": "support", "trace_id": None, "reason": "own_message"},
    )


@pytest.mark.parametrize("suffix", ["messages-upsert", "send-message", "some/deeper/path"])
async def test_an_address_per_event_takes_the_same_events(desk: Desk, client: httpx.AsyncClient, suffix: str):
    answer = await client.post(f"{PATH}/{suffix}", json=EVENT)

    assert answer.status_code == 200
    assert [body for _, body in desk.taken] == [EVENT]


async def test_an_unknown_instance_is_a_404(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post("/webhook/evolution/nobody", json=EVENT)

    assert (answer.status_code, answer.json()) == (
        404,
        refusal(404, "instance_not_found", "No instance of that name is configured.", stage="webhook_received"),
    )
    assert desk.taken == []


async def test_an_inactive_instance_ignores_every_event(desk: Desk, client: httpx.AsyncClient):
    desk.add_instance("asleep", is_active=False)

    answer = await client.post("/webhook/evolution/asleep", json=EVENT)

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ignored", "instance": "asleep", "trace_id": None, "reason": "instance_inactive"},
    )
    assert desk.taken == []


async def test_a_nul_in_the_instances_name_is_an_unknown_instance(desk: Desk, client: httpx.AsyncClient):
    """PostgreSQL cannot be asked for one, and the 503 for that made Evolution call again and again."""
    desk.instances.num_reads = 0

    answer = await client.post("/webhook/evolution/%00", json={"event": "connection.update"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "instance_not_found")
    assert desk.instances.num_reads == 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is not JSON."),
        (b"{", "The body is not JSON."),
        (b'{"a": NaN}', "The body is not JSON."),
        (b"hello", "The body is not JSON."),
        (b"[1, 2]", "The body is not a JSON object."),
        (b'"text"', "The body is not a JSON object."),
        (b"null", "The body is not a JSON object."),
        (b"[" * 3_000, "The body is nested too deeply."),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(client: httpx.AsyncClient, body: bytes, sentence: str):
    answer = await client.post(PATH, content=body)

    assert (answer.status_code, answer.json()) == (
        400,
        refusal(400, "webhook_malformed", sentence, stage="webhook_received"),
    )


@pytest.mark.parametrize(
    ("body", "name"),
    [(rb'{"pushName": "Ana \ud83d"}', "Ana ?"), (b'{"pushName": "Ana \xff"}', "Ana \N{REPLACEMENT CHARACTER}")],
)
async def test_half_an_emoji_does_not_lose_the_message(desk: Desk, client: httpx.AsyncClient, body: bytes, name: str):
    """WhatsApp cuts long names in the middle of a surrogate pair; a 400 would never be repeated."""
    answer = await client.post(PATH, content=body)

    assert answer.status_code == 200
    assert [taken for _, taken in desk.taken] == [{"pushName": name}]


TOO_LARGE = refusal(413, "webhook_too_large", "The body is larger than 4096 bytes.", stage="webhook_received")


async def test_a_declared_length_over_the_bound_is_refused_without_reading(desk: Desk):
    num_pieces_read = 0

    async def pieces():
        nonlocal num_pieces_read
        num_pieces_read += 1
        yield b"x" * 5_000

    async with client_of(desk.app()) as client:
        answer = await client.post(PATH, content=pieces(), headers={"content-length": "5000"})

    assert (answer.status_code, answer.json()) == (413, TOO_LARGE)
    assert num_pieces_read == 0


async def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_bound(desk: Desk):
    num_pieces_read = 0

    async def pieces():
        nonlocal num_pieces_read
        for _ in range(1_000):
            num_pieces_read += 1
            yield b"x" * 1_000

    async with client_of(desk.app()) as client:
        answer = await client.post(PATH, content=pieces())

    assert (answer.status_code, answer.json()) == (413, TOO_LARGE)
    assert num_pieces_read < 10


async def test_a_body_of_exactly_the_bound_is_taken(desk: Desk, client: httpx.AsyncClient):
    body = json.dumps({"pad": ""}).encode()
    body = json.dumps({"pad": "x" * (4_096 - len(body))}).encode()

    answer = await client.post(PATH, content=body)

    assert (len(body), answer.status_code) == (4_096, 200)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (InboxFull("Too many messages are waiting."), 503, "inbox_full"),
        (WebhookMalformed("The body is no envelope."), 400, "webhook_malformed"),
    ],
)
async def test_what_the_inbox_refuses_is_answered_with_its_own_status(
    desk: Desk, client: httpx.AsyncClient, raised: Exception, status: int, code: str
):
    desk.verdict = raised

    answer = await client.post(PATH, json=EVENT)

    assert (answer.status_code, answer.json()) == (
        status,
        refusal(status, code, str(raised), stage="webhook_received"),
    )


UNAUTHORIZED = refusal(
    401,
    "webhook_unauthorized",
    "This instance takes webhooks only with its key or token.",
    stage="webhook_received",
)
GOOD_TOKEN = {"authorization": CAPTURED_CALL["headers"]["Authorization"]}


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({}, False),
        ({"x-api-key": API_KEY}, True),
        ({"authorization": f"Bearer {API_KEY}"}, True),
        ({"authorization": f"bearer {API_KEY}"}, True),
        ({"authorization": f"Basic {API_KEY}"}, False),
        ({"authorization": API_KEY}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": "wrong"}, False),
        ({"x-api-key": API_KEY + "x"}, False),
        ({"x-api-key": "wrong", "authorization": f"Bearer {API_KEY}"}, True),
        ({"authorization": "Bearer "}, False),
        (GOOD_TOKEN, True),
        ({"x-api-key": GOOD_TOKEN["authorization"].removeprefix("Bearer ")}, False),
        ({"authorization": GOOD_TOKEN["authorization"][:-1]}, False),
        ({"authorization": "Bearer a.b.c"}, False),
    ],
)
@pytest.mark.parametrize("where", ["everywhere", "instance"])
async def test_where_proof_is_required_only_the_key_or_the_signed_token_is_taken(
    desk: Desk, headers: dict[str, str], is_accepted: bool, where: str
):
    desk.add_instance("guarded", webhook_secret=JWT_SECRET, requires_webhook_auth=where == "instance")

    async with bare(desk, require_webhook_auth=where == "everywhere") as client:
        answer = await client.post("/webhook/evolution/guarded", json=CAPTURED_CALL["body"], headers=headers)

    assert (answer.status_code, len(desk.taken)) == ((200, 1) if is_accepted else (401, 0))
    if not is_accepted:
        assert answer.json() == UNAUTHORIZED


@pytest.mark.parametrize(
    ("claims", "is_accepted"),
    [
        ({}, True),
        ({"app": "other"}, False),
        ({"action": "login"}, False),
        ({"app": None}, False),
        ({"action": None}, False),
        ({"exp": None}, False),
        ({"exp": "soon"}, False),
        ({"iat": None}, True),
        ({"more": 1}, True),
    ],
)
async def test_a_token_counts_only_with_evolutions_claims(desk: Desk, claims: dict[str, Any], is_accepted: bool):
    desk.add_instance("guarded", webhook_secret=JWT_SECRET, requires_webhook_auth=True)

    async with bare(desk) as client:
        answer = await client.post(
            "/webhook/evolution/guarded", json=EVENT, headers={"authorization": f"Bearer {token(**claims)}"}
        )

    assert answer.status_code == (200 if is_accepted else 401)


@pytest.mark.parametrize("algorithm", ["none", "HS512"])
async def test_a_token_of_another_algorithm_is_refused(desk: Desk, algorithm: str):
    desk.add_instance("guarded", webhook_secret="x" * 64, requires_webhook_auth=True)
    claims = {"exp": 1795343410, "app": "evolution", "action": "webhook"}
    made = jwt.encode(claims, None if algorithm == "none" else "x" * 64, algorithm=algorithm)

    async with bare(desk) as client:
        answer = await client.post(
            "/webhook/evolution/guarded", json=EVENT, headers={"authorization": f"Bearer {made}"}
        )

    assert answer.status_code == 401


@pytest.mark.parametrize(("minutes_late", "is_accepted"), [(0, True), (39, True), (40, True), (41, False)])
async def test_a_token_is_taken_for_forty_minutes_past_its_end(desk: Desk, minutes_late: int, is_accepted: bool):
    """Evolution signs once per event; its last retry comes up to half an hour later with the same token."""
    desk.add_instance("guarded", webhook_secret=JWT_SECRET, requires_webhook_auth=True)
    desk.clock.advance((TOKEN_ENDS + timedelta(minutes=minutes_late)).timestamp() - desk.clock.wall_ns() / 1e9)

    async with bare(desk) as client:
        answer = await client.post("/webhook/evolution/guarded", json=EVENT, headers=GOOD_TOKEN)

    assert answer.status_code == (200 if is_accepted else 401)


async def test_without_a_secret_no_token_counts(desk: Desk):
    desk.add_instance("guarded", requires_webhook_auth=True)

    async with bare(desk) as client:
        answer = await client.post("/webhook/evolution/guarded", json=EVENT, headers=GOOD_TOKEN)

    assert answer.status_code == 401


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}])
async def test_where_proof_is_not_required_a_call_is_taken_with_one_warning_per_instance(
    desk: Desk, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
):
    desk.add_instance("second")
    async with bare(desk) as client:
        with caplog.at_level(logging.WARNING, "omni.web"):
            for _ in range(3):
                for name in ("support", "second"):
                    assert (await client.post(f"/webhook/evolution/{name}", json=EVENT, headers=headers)).is_success

    assert [(record.message, record.instance) for record in caplog.records] == [
        ("webhook_unauthenticated", "support"),
        ("webhook_unauthenticated", "second"),
    ]


async def test_no_key_reaches_the_log(desk: Desk, caplog: pytest.LogCaptureFixture):
    desk.add_instance("guarded", webhook_secret=JWT_SECRET, requires_webhook_auth=True)
    async with bare(desk) as client:
        with caplog.at_level(logging.DEBUG):
            for headers in ({"x-api-key": "a-wrong-key-0123"}, GOOD_TOKEN, {"x-api-key": API_KEY}):
                await client.post("/webhook/evolution/guarded", json=CAPTURED_CALL["body"], headers=headers)

    for secret in ("a-wrong-key-0123", GOOD_TOKEN["authorization"], API_KEY, JWT_SECRET, "5511999990003"):
        assert secret not in caplog.text


async def test_an_instance_is_read_once_in_a_few_seconds(desk: Desk, client: httpx.AsyncClient):
    desk.instances.num_reads = 0
    for _ in range(5):
        await client.post(PATH, json=EVENT)
    assert desk.instances.num_reads == 1

    desk.clock.advance(3.5)
    await client.post(PATH, json=EVENT)
    assert desk.instances.num_reads == 2


async def test_a_changed_instance_is_seen_by_the_very_next_webhook(desk: Desk, client: httpx.AsyncClient):
    await client.post(PATH, json=EVENT)
    await client.put("/api/v1/instances/support", json={"is_active": False})

    answer = await client.post(PATH, json=EVENT)

    assert answer.json()["reason"] == "instance_inactive"


async def test_an_instance_that_was_unknown_is_found_right_after_it_is_made(desk: Desk, client: httpx.AsyncClient):
    assert (await client.post("/webhook/evolution/new", json=EVENT)).status_code == 404
    form = {"name": "new", "agent_api_url": "http://hive:8886", "agent_api_key": "k" * 24}
    assert (await client.post("/api/v1/instances", json=form)).status_code == 201

    assert (await client.post("/webhook/evolution/new", json=EVENT)).status_code == 200


async def test_webhooks_are_answered_while_every_read_of_the_api_hangs(desk: Desk, client: httpx.AsyncClient):
    desk.traces.gate.close()
    stuck = [asyncio.create_task(client.get("/api/v1/traces")) for _ in range(40)]
    await held(desk.traces.gate)

    async with asyncio.timeout(WAIT_S):
        answer = await client.post(PATH, json=EVENT)
        health = await client.get("/health")
        # The loop's own threads resolve host names for the calls to agents and to Evolution.
        assert await asyncio.to_thread(lambda: "free") == "free"

    assert (answer.status_code, health.status_code) == (200, 200)
    assert not any(task.done() for task in stuck)
    desk.traces.gate.open()
    assert {(await task).status_code for task in stuck} == {200}


async def test_a_known_instance_is_served_as_last_read_while_the_database_fails(
    desk: Desk, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
):
    await client.post(PATH, json=EVENT)
    desk.clock.advance(60)
    desk.instances.failure = StoreError("The file cannot be read.")

    answer = await client.post(PATH, json=EVENT)

    assert answer.status_code == 200
    assert "instance_served_as_last_read" in caplog.messages


async def test_an_instance_not_known_yet_gets_a_503_while_the_database_fails(desk: Desk, client: httpx.AsyncClient):
    """A 503 makes Evolution deliver the event again; a 404 or 500 that it does not repeat would lose it."""
    desk.instances.failure = StoreError("The file cannot be read.")

    answer = await client.post(PATH, json=EVENT)

    assert (answer.status_code, answer.json()) == (
        503,
        refusal(
            503,
            "store_unavailable",
            "The database cannot be reached at the moment; try again later.",
            stage="store",
        ),
    )
