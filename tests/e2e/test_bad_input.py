"""What goes wrong on every side of a running Omni, and what people are told: the user politely and once, the operator everything.

Wrong settings, wrong webhooks, agents that refuse, break, babble or fall silent, an Evolution that cannot deliver.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from tests.e2e.agents import HIVE_KEY, serve_answer, serve_hive
from tests.e2e.conftest import WEBHOOK_MAX_BYTES
from tests.e2e.documents import bubble, told
from tests.e2e.processes import Finished, run_omni, run_omni_in_turn
from tests.e2e.whatsapp import PHONE, PHONE_JID, World

from omni.sandbox.scripts import AskPerson, DropConnection, FailRun, Garbage, Say, Script, Stall, Step

pytestmark = pytest.mark.slow

NO_ANSWER = "Sorry, I could not answer just now. Please try again in a moment."
CUT_SHORT = "Sorry, I had to stop before I was done. Please ask me again."
TOO_SLOW = "Sorry, this is taking longer than it should. Please try again in a moment."
EMPTY = "Sorry, I have no answer to that. Could you put it another way?"
WAITING = "I need a confirmation before I can go on. Someone from the team will see to it."

INSIDE = "KeyError in /srv/agents/tool.py line 7, model key sk-live-0042"
"""What servers say when they break. It must not reach the user."""


class Refusal(NamedTuple):
    """What an agent server that gives no answer leads to; ``code`` is the status it answered with, if any."""

    message: str
    stage: str = "agent_request"
    ending: str = "error"
    notice: str = NO_ANSWER
    code: int | None = None
    detail: str | None = None


@asynccontextmanager
async def serve_nothing() -> AsyncIterator[str]:
    """An address where nobody listens any more."""
    async with serve_answer(200, b"") as url:
        pass
    yield url


def scripted(*steps: Step) -> AbstractAsyncContextManager[str]:
    return serve_hive(Script(name="scripted", title="", steps=steps, first_token_s=0))


def answering(status: int, body: str) -> AbstractAsyncContextManager[str]:
    return serve_answer(status, body.encode())


REFUSALS: dict[str, tuple[Callable[[], AbstractAsyncContextManager[str]], Refusal]] = {
    "401": (
        partial(answering, 401, f'{{"detail": "Invalid authentication token, {INSIDE}"}}'),
        Refusal(
            "The agent server answered with status 401.", code=401, detail=f"Invalid authentication token, {INSIDE}"
        ),
    ),
    "404": (
        partial(answering, 404, '{"detail": "Agent not found"}'),
        Refusal("The agent server answered with status 404.", code=404, detail="Agent not found"),
    ),
    "422": (
        partial(
            answering, 422, f'{{"detail": [{{"loc": ["body", "message"], "msg": "{INSIDE}", "input": "quoted"}}]}}'
        ),
        Refusal("The agent server answered with status 422.", code=422, detail=f"body.message: {INSIDE}"),
    ),
    "500": (
        partial(answering, 500, INSIDE),
        Refusal("The agent server answered with status 500.", stage="streaming_error", code=500, detail=INSIDE),
    ),
    "refused connection": (
        serve_nothing,
        Refusal(
            "The agent server cannot be reached.",
            detail="Cannot connect to host 127.0.0.1:PORT ssl:default [Connect call failed ('127.0.0.1', PORT)]",
        ),
    ),
    "garbage": (
        partial(scripted, Garbage(f"<html><body>{INSIDE}</body></html>".encode())),
        Refusal("The agent server's answer holds no event that can be read.", stage="streaming_error"),
    ),
    "silence": (
        partial(scripted, Stall(60)),
        Refusal(
            "The agent was silent for 1 s before its first text.",
            stage="streaming_error",
            ending="timeout",
            notice=TOO_SLOW,
        ),
    ),
    "empty body": (
        partial(answering, 200, ""),
        Refusal("the stream ended without a terminal event", stage="streaming_error", ending="incomplete"),
    ),
    "error first": (partial(scripted, FailRun(INSIDE)), Refusal(INSIDE, stage="streaming_error")),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_an_agent_that_gives_no_answer_costs_one_polite_notice_and_is_on_record(world: World, case: str) -> None:
    """F9, F11, F15, F21, F24: every refusal ends the trace as failed with its stage and cause, and nothing inner is said."""
    serve, refusal = REFUSALS[case]
    async with serve() as url:
        instance = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted", agent_timeout=1)
        trace_id = await world.ask(instance, "Oi")
        document = await world.ended(trace_id)

    assert world.whatsapp.bubbles == [refusal.notice]
    short = told_in_short(document)
    if short["detail"] is not None:
        short["detail"] = short["detail"].replace(url.rpartition(":")[2], "PORT")
    assert short == {
        "status": "failed",
        "ending": refusal.ending,
        "error_stage": refusal.stage,
        "error_message": refusal.message,
        "chunks": [],
        "detail": refusal.detail,
        "partial_content": None,
        "messages": [bubble(0, refusal.notice, None)],
    }
    row = await world.api.call("GET", f"/api/v1/traces/{trace_id}")
    assert {name: row[name] for name in ("status", "error_stage", "agent_response_success", "evolution_success")} == {
        "status": "failed",
        "error_stage": refusal.stage,
        "agent_response_success": False,
        "evolution_success": True,
    }
    assert row["completed_at"] is not None
    payloads = await world.api.call("GET", f"/api/v1/traces/{trace_id}/payloads")
    assert [row["status_code"] for row in payloads if row["stage"] == "streaming_error"] == [refusal.code]


async def test_an_agent_that_does_not_stream_fails_as_politely(world: World) -> None:
    """F24, F25: neither the server's words nor an empty message reach the user, and the trace does not call it a success."""
    async with answering(500, INSIDE) as url:
        hive = await world.add_instance(url, agent="scripted", agent_stream_mode=False)
        automagik = await world.add_instance(url, agent="scripted", agent_instance_type="automagik")
        documents = [await world.ended(await world.ask(instance, "Oi")) for instance in (hive, automagik)]

    assert world.whatsapp.bubbles == [NO_ANSWER, NO_ANSWER]
    for document in documents:
        assert (document["status"], document["ending"]) == ("failed", "error")
        assert document["agent_response"]["success"] is False
        assert INSIDE not in document["error_message"]


MID_STREAM = {
    "silence": (
        (Stall(60),),
        ("timeout", "streaming_error", "The agent was silent for 1 s in the middle of its answer.", CUT_SHORT),
    ),
    "dropped connection": (
        (DropConnection(),),
        ("incomplete", "streaming_error", "the stream ended without a terminal event", CUT_SHORT),
    ),
    "question for a person": (
        (AskPerson(tool_name="delete_order", args={"id": 77}),),
        ("paused", "streaming_error", "the run waits for input", WAITING),
    ),
}


@pytest.mark.parametrize("case", MID_STREAM)
async def test_what_was_said_before_an_early_end_is_delivered_and_kept_whole(world: World, case: str) -> None:
    """F11, F21: the unsent tail is sent, the partial text is in the trace, one notice follows."""
    steps, (ending, stage, message, notice) = MID_STREAM[case]
    async with scripted(Say("First.\n\nSecond, unfin", piece_chars=12), *steps) as url:
        instance = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted", agent_timeout=1)
        document = await world.ended(await world.ask(instance, "Oi"))

    assert world.whatsapp.bubbles == ["First.", "Second, unfin", notice]
    assert told_in_short(document) == {
        "status": "failed",
        "ending": ending,
        "error_stage": stage,
        "error_message": message,
        "chunks": ["First.", "\n\nSecond,", " unfin"],
        "detail": None,
        "partial_content": "First.\n\nSecond, unfin",
        "messages": [bubble(0, "First.", (0, 1)), bubble(1, "Second, unfin", (1, 2)), bubble(2, notice, None)],
    }


async def test_an_answer_without_text_is_said_to_be_one(world: World) -> None:
    """A run may end well and say nothing; the user is not left waiting, and the trace counts no text."""
    async with scripted(Say("")) as url:
        instance = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted")
        document = await world.ended(await world.ask(instance, "Oi"))

    assert world.whatsapp.bubbles == [EMPTY]
    assert (document["ending"], document["timeline"]["first_token_latency_ms"]) == ("completed", None)


async def test_a_number_that_is_not_on_whatsapp_makes_the_turn_send_failed(world: World) -> None:
    """F22: the refusal stands in the trace with Evolution's status; what could not follow was not tried."""
    world.whatsapp.evolution.unregistered_numbers.add(PHONE)
    async with scripted(Say("First.\n\nSecond.", piece_chars=12)) as url:
        instance = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted")
        trace_id = await world.ask(instance, "Oi")
        document = await world.ended(trace_id)

    assert world.whatsapp.bubbles == []
    assert told_in_short(document)["messages"] == [
        bubble(
            0,
            "First.",
            (0, 1),
            key_id=None,
            accepted_ms=None,
            status="failed",
            status_code=400,
            error="the number is not on WhatsApp",
        ),
        bubble(
            1,
            "Second.",
            (1, 1),
            key_id=None,
            started_ms=None,
            accepted_ms=None,
            status="not_sent",
            attempts=0,
            status_code=None,
            error="an earlier message of the answer failed",
        ),
    ]
    figures = ("status", "ending", "error_stage", "error_message")
    assert {name: document[name] for name in figures} == {
        "status": "failed",
        "ending": "send_failed",
        "error_stage": "evolution_send",
        "error_message": "the number is not on WhatsApp",
    }
    assert document["streaming_complete"]["final_content"] == "First.\n\nSecond."
    row = await world.api.call("GET", f"/api/v1/traces/{trace_id}")
    assert (row["evolution_success"], row["agent_response_success"]) == (False, True)


async def test_a_passing_failure_of_evolution_costs_an_attempt_and_no_text(world: World) -> None:
    """F22: WhatsApp's socket is gone for a moment; the same message is sent again and the order is kept."""
    world.whatsapp.evolution.fail_next("connection_closed")
    async with scripted(Say("First.\n\nSecond.", piece_chars=12)) as url:
        instance = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted")
        document = await world.ended(await world.ask(instance, "Oi"))

    assert world.whatsapp.bubbles == ["First.", "Second."]
    assert [message["attempts"] for message in document["delivery"]["messages"]] == [2, 1]
    assert document["ending"] == "completed"


def told_in_short(document: dict[str, Any]) -> dict[str, Any]:
    """What the operator is told of a failure, and each message."""
    failure = document["streaming_error"] or {}
    short = {name: document[name] for name in ("status", "ending", "error_stage", "error_message")}
    return {
        **short,
        "chunks": [chunk["content"] for chunk in document["streaming_chunks"]],
        "detail": failure.get("detail"),
        "partial_content": failure.get("partial_content"),
        "messages": told(document["delivery"]["messages"]),
    }


WEBHOOKS = {
    "not JSON": ("{shop}", b"{not json", 400, "webhook_malformed", "The body is not JSON."),
    "not an object": ("{shop}", b"[1, 2]", 400, "webhook_malformed", "The body is not a JSON object."),
    "no event": ("{shop}", b"{}", 400, "webhook_malformed", "The webhook names no event."),
    "no key": (
        "{shop}",
        b'{"event": "messages.upsert", "data": {"message": {}}}',
        400,
        "webhook_malformed",
        "The message has no key.",
    ),
    "oversized": (
        "{shop}",
        b" " * (WEBHOOK_MAX_BYTES + 1),
        413,
        "webhook_too_large",
        f"The body is larger than {WEBHOOK_MAX_BYTES} bytes.",
    ),
    "unknown instance": ("nobody", b"{}", 404, "instance_not_found", "No instance of that name is configured."),
}


async def test_webhooks_that_cannot_be_taken_are_refused_in_the_one_error_shape(world: World) -> None:
    """F40: a client's error is a 4xx with a sentence and a stable word, and nothing from inside."""
    shop = await world.add_instance("http://127.0.0.1:1", agent="scripted")

    answers = {
        case: await world.api.call("POST", f"/webhook/evolution/{path.format(shop=shop)}", data=body, status=status)
        for case, (path, body, status, _, _) in WEBHOOKS.items()
    }

    assert answers == {
        case: {"detail": sentence, "error": {"code": code, "stage": "webhook_received", "status": status}}
        for case, (_, _, status, code, sentence) in WEBHOOKS.items()
    }


async def test_what_nobody_asked_is_not_answered(world: World) -> None:
    """F26: own messages, status posts, groups and repeats are taken and let be; the reason is named."""
    evolution = world.whatsapp.evolution
    async with scripted(Say("Hello!")) as url:
        shop = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted")

        async def emit(**key: Any) -> dict[str, Any]:
            data = {
                "key": {"remoteJid": PHONE_JID, "fromMe": False, "id": "3EB0AA", **key},
                "message": {"conversation": "Oi"},
                "messageType": "conversation",
            }
            post = await evolution.emit(shop, "messages.upsert", data)
            assert post is not None
            assert post.status_code == 200
            return {name: post.answer[name] for name in ("status", "reason")}

        ignored = [
            await emit(fromMe=True),
            await emit(remoteJid="status@broadcast"),
            await emit(remoteJid="120363000000000001@g.us", participant=PHONE_JID),
        ]
        taken = await emit()
        repeated = await emit()
        await world.whatsapp.until_bubbles(1)
        await world.ended(await world.ask(shop, "And again"))

    assert ignored == [
        {"status": "ignored", "reason": "own_message"},
        {"status": "ignored", "reason": "status_broadcast"},
        {"status": "ignored", "reason": "group"},
    ]
    assert (taken, repeated) == ({"status": "success", "reason": None}, {"status": "ignored", "reason": "repeat"})
    # The turns of a chat keep their order: had a repeat been answered, it would have come before the last one.
    assert world.whatsapp.bubbles == ["Hello!", "Hello!"]


async def test_a_voice_note_is_on_record_although_it_cannot_be_answered(world: World) -> None:
    """F28: the operator finds the message, with its type and why nothing followed; the trace is closed."""
    shop = await world.add_instance("http://127.0.0.1:1", agent="scripted")
    data = {
        "key": {"remoteJid": PHONE_JID, "fromMe": False, "id": "3EB0BB"},
        "pushName": "Maria",
        "message": {"audioMessage": {"seconds": 4, "mimetype": "audio/ogg; codecs=opus"}},
        "messageType": "audioMessage",
    }

    post = await world.whatsapp.evolution.emit(shop, "messages.upsert", data)

    assert post is not None
    trace_id = post.trace_id
    assert post.answer == {"status": "ignored", "instance": shop, "trace_id": trace_id, "reason": "unsupported_type"}
    row = await world.api.call("GET", f"/api/v1/traces/{trace_id}")
    assert {name: row[name] for name in ("status", "error_stage", "error_message", "message_type", "has_media")} == {
        "status": "failed",
        "error_stage": "webhook_received",
        "error_message": "not answered: unsupported_type (audio)",
        "message_type": "audio",
        "has_media": True,
    }
    assert row["completed_at"] is not None


async def test_a_forged_webhook_cannot_say_where_the_answer_goes(world: World) -> None:
    """F27: the body's server and key are not used; the reply goes where the instance says, with the instance's key."""
    async with scripted(Say("Secret reply")) as url, serve_answer(201, b'{"key": {"id": "X"}}') as trap:
        shop = await world.add_instance(url, agent_key=HIVE_KEY, agent="scripted")
        body = {
            "event": "messages.upsert",
            "instance": shop,
            "server_url": trap,
            "apikey": "forged",
            "data": {
                "key": {"remoteJid": PHONE_JID, "fromMe": False, "id": "3EB0CC"},
                "message": {"conversation": "Oi"},
                "messageType": "conversation",
            },
        }
        taken = await world.api.call("POST", f"/webhook/evolution/{shop}", json=body)
        document = await world.ended(taken["trace_id"])

    assert world.whatsapp.bubbles == ["Secret reply"]
    # An id that Evolution made, not the trap's.
    assert document["delivery"]["messages"][0]["key_id"] == world.whatsapp.evolution.sent[0].key_id


async def test_no_environment_and_no_missing_key_open_the_api(world: World) -> None:
    """F38: the server runs with ENVIRONMENT=test; without the key, or with a wrong one, it answers 401 all the same."""
    codes = []
    for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer "}):
        async with (
            aiohttp.ClientSession(world.omni.base_url, headers=headers) as session,
            session.get("/api/v1/traces") as response,
        ):
            assert response.status == 401
            codes.append((await response.json())["error"]["code"])

    assert codes == ["unauthorized"] * 3


async def test_wrong_settings_are_one_clear_line_and_exit_code_2(tmp_path: Path) -> None:
    """The line names the variable and what it accepts; no traceback, and nothing was started or made."""
    served = await run_omni("serve", folder=tmp_path, settings={"AUTOMAGIK_OMNI_API_PORT": "abc"})
    url, unreachable, both = await run_omni_in_turn(
        ("AUTOMAGIK_OMNI_DATABASE_URL=mysql://db/omni", "traces", "list"),
        ("AUTOMAGIK_OMNI_DATABASE_URL=postgresql://omni:hidden@127.0.0.1:1/omni", "traces", "list"),
        ("AUTOMAGIK_OMNI_LANGUAGE=xx", "AUTOMAGIK_OMNI_SEND_ATTEMPTS=0", "instances", "list"),
        folder=tmp_path,
    )

    assert served == Finished(
        exit_code=2,
        stdout="",
        stderr="omni: AUTOMAGIK_OMNI_API_PORT: Input should be a valid integer, unable to parse string as an integer. "
        "Port the server listens on; 0 takes a free one.\n",
    )
    assert url == Finished(
        exit_code=2,
        stdout="",
        stderr="omni: AUTOMAGIK_OMNI_DATABASE_URL: must be empty or start with sqlite:// or postgresql://. "
        "SQLAlchemy URL of the database (sqlite or postgresql). Empty: SQLite at SQLITE_DATABASE_PATH.\n",
    )
    assert (unreachable.exit_code, unreachable.stderr.count("\n")) == (1, 1)
    assert unreachable.stderr.startswith(
        "omni: AUTOMAGIK_OMNI_DATABASE_URL: the PostgreSQL database omni at 127.0.0.1:1 could not be opened."
    )
    assert "hidden" not in unreachable.stderr
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
    assert "AUTOMAGIK_OMNI_LANGUAGE: " in both.stderr
    assert "AUTOMAGIK_OMNI_SEND_ATTEMPTS: " in both.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - an empty list is the claim
