"""A user writes on WhatsApp, a real Agno server answers, and the trace tells it as it was: through real processes and sockets.

Agno, its agent loop, its teams and its server are the real ones; only the model is scripted. Every figure and every text is compared
literally; times by their order and sums.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.documents import ID, MS, TIME, bubble, check_times, chunk, delivery, timeline, told
from tests.e2e.processes import AgnoServer, OmniServer, omni_serve
from tests.e2e.whatsapp import PHONE, PHONE_JID, WAIT_S, WhatsApp, World, open_api

pytestmark = pytest.mark.slow

TEXT = "Olá! 👋 Seu pedido\n\n1. café ☕\n2. pão de queijo 🧀\n\nFamília: 👨‍👩‍👧‍👦 — até já!"
TEXT_BUBBLES = ["Olá! 👋 Seu pedido", "1. café ☕\n2. pão de queijo 🧀", "Família: 👨‍👩‍👧‍👦 — até já!"]
TOOL_TEXT = "Vou consultar o estoque… 🔎\nTemos 7 unidades de SKU-42 📦."
TEAM_TEXT = "Um instante… O prazo de entrega é 3 dias úteis 🚚."
ERROR_TEXT = "Começando a responder… ⏳"
PROVIDER_ERROR = 'upstream 529: overloaded "now"\nretry later'
HALFWAY = "The first paragraph.\n\nThe second one, unfin"
CUT_SHORT = "Sorry, I had to stop before I was done. Please ask me again."

# The agent pauses 30 ms before each piece; the reader may see a piece late, never early.
PIECE_MS = 30
AT_MOST_MS = 8_000


@pytest.fixture(params=["omni", "omni_on_postgresql"])
def any_omni(request: pytest.FixtureRequest) -> OmniServer:
    """Omni on SQLite, and Omni on PostgreSQL."""
    server: OmniServer = request.getfixturevalue(request.param)
    return server


async def add_agno(world: World, agno: AgnoServer, agent: str, **values: Any) -> str:
    return await world.add_instance(agno.base_url, agent_key=agno.api_key, agent=agent, **values)


def asked_stage(instance: str, agent: dict[str, str], *, streaming: bool = True) -> dict[str, Any]:
    return {
        "message": "Onde está o pedido?",
        "user_id": PHONE,
        "session_id": f"{instance}_{PHONE}",
        **agent,
        "streaming": streaming,
        "recipient": PHONE_JID,
    }


def request_stage(instance: str, agent: dict[str, str]) -> dict[str, Any]:
    return {
        **asked_stage(instance, agent),
        "stream_mode": True,
        "trace_type": "streaming",
        "request_timestamp": TIME,
    }


def first_token_stage(content: str, event_type: str) -> dict[str, Any]:
    return {
        "first_token_received": True,
        "first_content": content,
        "first_token_latency_ms": MS,
        "timestamp": TIME,
        "event_data": {"event_type": event_type, "chunk_size": len(content)},
    }


def complete_stage(text: str, num_chunks: int, length: int, event_type: str) -> dict[str, Any]:
    return {
        "streaming_completed": True,
        "final_content": text,
        "total_streaming_time_ms": MS,
        "first_token_latency_ms": MS,
        "first_to_final_ms": MS,
        "total_chunks": num_chunks,
        "total_content_length": length,
        "completion_timestamp": TIME,
        "streaming_events_count": num_chunks,
        "content_verified": True,
        "completion_data": {
            "event_type": event_type,
            "streaming_chunks": num_chunks,
            "terminal_content_equals_chunks": True,
        },
    }


def response_stage(text: str, num_chunks: int) -> dict[str, Any]:
    return {
        "message": text,
        "success": True,
        "streaming": True,
        "metrics": {
            "total_streaming_time_ms": MS,
            "first_token_latency_ms": MS,
            "first_to_final_ms": MS,
            "total_chunks": num_chunks,
        },
    }


async def test_a_streamed_text_reaches_the_phone_in_paragraphs_and_its_trace_tells_all_of_it(
    any_omni: OmniServer, agno: AgnoServer, whatsapp: WhatsApp
) -> None:
    """F1, F2, F4, F8: streaming works from the webhook on, with true figures and every chunk, on both databases."""
    async with open_api(any_omni) as api:
        world = World(any_omni, api, whatsapp)
        instance = await add_agno(world, agno, "text")

        document = await world.ended(await world.ask(instance, "Onde está o pedido?"))

    assert whatsapp.bubbles == TEXT_BUBBLES
    assert told(document) == {
        "trace_id": ID,
        "instance_name": instance,
        "status": "completed",
        "ending": "completed",
        "error_stage": None,
        "error_message": None,
        "received_at": TIME,
        "headline": f"streamed in {MS}: 75 characters in 10 chunks, first token after {MS}, 3 messages accepted",
        "agent_request": asked_stage(instance, {"agent_id": "text"}),
        "streaming_request": request_stage(instance, {"agent_id": "text"}),
        "first_token": first_token_stage("Olá", "RunContent"),
        "streaming_chunks": [
            chunk(0, "Olá", "RunContent"),
            chunk(1, "! 👋", "RunContent"),
            chunk(2, " Seu pedido", "RunContent"),
            chunk(3, "\n\n1. café ☕\n", "RunContent"),
            chunk(4, "2. pão de queijo 🧀\n", "RunContent"),
            chunk(5, "\n", "RunContent"),
            chunk(6, "Família: ", "RunContent"),
            chunk(7, "👨‍👩‍👧‍👦", "RunContent"),
            chunk(8, " — até já", "RunContent"),
            chunk(9, "!", "RunContent"),
        ],
        "streaming_complete": complete_stage(TEXT, 10, 75, "RunCompleted"),
        "streaming_error": None,
        "agent_response": response_stage(TEXT, 10),
        # A blank line belongs to the message before it, and so does the chunk it came with.
        "delivery": delivery(
            bubble(0, TEXT_BUBBLES[0], (0, 3)), bubble(1, TEXT_BUBBLES[1], (3, 5)), bubble(2, TEXT_BUBBLES[2], (6, 9))
        ),
        "timeline": timeline(
            ending="completed",
            total_chunks=10,
            total_content_length=75,
            content_verified=True,
            usage={"input_tokens": 11, "output_tokens": 7, "total_tokens": 18},
        ),
    }
    check_times(document, at_least_ms=9 * PIECE_MS, at_most_ms=AT_MOST_MS)
    # While the agent wrote the typing sign was shown, to the chat the answer went to.
    assert {(call.number, call.state) for call in whatsapp.evolution.presences} >= {(PHONE, "composing")}


async def test_a_tool_is_counted_and_its_log_line_is_not_sent(world: World, agno: AgnoServer) -> None:
    """F17: tool events end nothing, are counted, and what the server says about the call is not the answer."""
    instance = await add_agno(world, agno, "tool")

    document = await world.ended(await world.ask(instance, "Onde está o pedido?"))

    assert world.whatsapp.bubbles == [TOOL_TEXT]
    pieces = ["Vou ", "consultar", " o estoque… ", "🔎\n", "Temos ", "7 unidades", " de SKU-42 📦", "."]
    assert told(document) == {
        "trace_id": ID,
        "instance_name": instance,
        "status": "completed",
        "ending": "completed",
        "error_stage": None,
        "error_message": None,
        "received_at": TIME,
        "headline": f"streamed in {MS}: 56 characters in 8 chunks, first token after {MS}, 1 message accepted",
        "agent_request": asked_stage(instance, {"agent_id": "tool"}),
        "streaming_request": request_stage(instance, {"agent_id": "tool"}),
        "first_token": first_token_stage("Vou ", "RunContent"),
        "streaming_chunks": [chunk(index, piece, "RunContent") for index, piece in enumerate(pieces)],
        "streaming_complete": complete_stage(TOOL_TEXT, 8, 56, "RunCompleted"),
        "streaming_error": None,
        "agent_response": response_stage(TOOL_TEXT, 8),
        "delivery": delivery(bubble(0, TOOL_TEXT, (0, 7))),
        "timeline": timeline(
            ending="completed",
            total_chunks=8,
            total_content_length=56,
            content_verified=True,
            num_tools=1,
            usage={"input_tokens": 22, "output_tokens": 14, "total_tokens": 36},
        ),
    }
    check_times(document, at_least_ms=7 * PIECE_MS, at_most_ms=AT_MOST_MS)


async def test_a_provider_that_fails_in_the_middle_leaves_the_partial_text_one_notice_and_the_cause_in_the_trace(
    world: World, agno: AgnoServer
) -> None:
    """F9, F21, F24: the user reads what was said and one polite sentence; the provider's words are for the operator."""
    instance = await add_agno(world, agno, "error")

    document = await world.ended(await world.ask(instance, "Onde está o pedido?"))

    assert world.whatsapp.bubbles == [ERROR_TEXT, CUT_SHORT]
    assert told(document) == {
        "trace_id": ID,
        "instance_name": instance,
        "status": "failed",
        "ending": "error",
        "error_stage": "streaming_error",
        "error_message": PROVIDER_ERROR,
        "received_at": TIME,
        "headline": f"error at streaming_error; streamed in {MS}: 24 characters in 3 chunks, first token after {MS}, "
        "2 messages accepted",
        "agent_request": asked_stage(instance, {"agent_id": "error"}),
        "streaming_request": request_stage(instance, {"agent_id": "error"}),
        "first_token": first_token_stage("Começando ", "RunContent"),
        "streaming_chunks": [
            chunk(0, "Começando ", "RunContent"),
            chunk(1, "a responder", "RunContent"),
            chunk(2, "… ⏳", "RunContent"),
        ],
        "streaming_complete": None,
        "streaming_error": {
            "streaming_error": True,
            "error_message": PROVIDER_ERROR,
            "error_type": "RunError",
            "error_stage": "streaming_error",
            "ending": "error",
            "detail": None,
            "timestamp": TIME,
            "partial_content": ERROR_TEXT,
            "content_verified": True,
            "chunks_received": 3,
            "upstream_cancel": None,
            "first_token_latency_ms": MS,
            "total_streaming_time_ms": MS,
        },
        "agent_response": None,
        "delivery": delivery(bubble(0, ERROR_TEXT, (0, 2)), bubble(1, CUT_SHORT, None)),
        "timeline": timeline(
            ending="error", total_chunks=3, total_content_length=24, content_verified=True, usage=None
        ),
    }
    check_times(document, at_least_ms=2 * PIECE_MS, at_most_ms=AT_MOST_MS)


async def test_a_team_answers_once_and_its_member_is_not_heard(world: World, agno: AgnoServer) -> None:
    """F3, F17: the member's text is an inner step; the leader's text is the answer, and it is sent once."""
    instance = await add_agno(world, agno, "team", agent_type="team")

    document = await world.ended(await world.ask(instance, "Onde está o pedido?"))

    assert world.whatsapp.bubbles == [TEAM_TEXT]
    pieces = ["Um instante", "… ", "O prazo ", "de entrega é ", "3 dias úteis 🚚", "."]
    assert told(document) == {
        "trace_id": ID,
        "instance_name": instance,
        "status": "completed",
        "ending": "completed",
        "error_stage": None,
        "error_message": None,
        "received_at": TIME,
        "headline": f"streamed in {MS}: 49 characters in 6 chunks, first token after {MS}, 1 message accepted",
        "agent_request": asked_stage(instance, {"team_id": "team"}),
        "streaming_request": request_stage(instance, {"team_id": "team"}),
        "first_token": first_token_stage("Um instante", "TeamRunContent"),
        "streaming_chunks": [chunk(index, piece, "TeamRunContent") for index, piece in enumerate(pieces)],
        "streaming_complete": complete_stage(TEAM_TEXT, 6, 49, "TeamRunCompleted"),
        "streaming_error": None,
        "agent_response": response_stage(TEAM_TEXT, 6),
        "delivery": delivery(bubble(0, TEAM_TEXT, (0, 5))),
        "timeline": timeline(
            ending="completed",
            total_chunks=6,
            total_content_length=49,
            content_verified=True,
            num_tools=1,
            usage={"input_tokens": 22, "output_tokens": 14, "total_tokens": 36},
        ),
    }
    # The member's two pieces stand between the leader's.
    check_times(document, at_least_ms=7 * PIECE_MS, at_most_ms=AT_MOST_MS)


async def test_an_instance_that_does_not_stream_gets_an_equally_complete_trace(world: World, agno: AgnoServer) -> None:
    """F3, F24: the whole answer is sent once, in paragraphs too, and what a stream has and this has not is null, not 0."""
    instance = await add_agno(world, agno, "text", agent_stream_mode=False)

    trace_id = await world.ask(instance, "Onde está o pedido?")
    document = await world.ended(trace_id)

    assert world.whatsapp.bubbles == TEXT_BUBBLES
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    unseen = (
        "first_event_ms",
        "first_token_ms",
        "last_chunk_ms",
        "first_event_latency_ms",
        "first_token_latency_ms",
        "first_to_final_ms",
        "longest_gap_ms",
        "content_verified",
    )
    assert told(document) == {
        "trace_id": ID,
        "instance_name": instance,
        "status": "completed",
        "ending": "completed",
        "error_stage": None,
        "error_message": None,
        "received_at": TIME,
        "headline": f"answered whole in {MS}: 75 characters, 3 messages accepted",
        "agent_request": asked_stage(instance, {"agent_id": "text"}, streaming=False),
        "streaming_request": None,
        "first_token": None,
        "streaming_chunks": [],
        "streaming_complete": None,
        "streaming_error": None,
        "agent_response": {"message": TEXT, "success": True, "streaming": False, "usage": usage},
        "delivery": delivery(
            *(bubble(index, text, None, is_notice=False) for index, text in enumerate(TEXT_BUBBLES)), tail_lag_ms=None
        ),
        "timeline": timeline(
            is_streaming=False,
            ending="completed",
            total_chunks=0,
            total_content_length=75,
            usage=usage,
            **dict.fromkeys(unseen),
        ),
    }
    check_times(document, at_least_ms=PIECE_MS, at_most_ms=AT_MOST_MS)
    payloads = await world.api.call("GET", f"/api/v1/traces/{trace_id}/payloads", params={"include_payload": "true"})
    assert [row["stage"] for row in payloads] == [
        "webhook_received",
        "agent_request",
        "agent_response",
        *["evolution_send"] * 3,
    ]
    del payloads[1]["payload"]["omni"]
    assert payloads[1]["payload"] == {
        "message": "Onde está o pedido?",
        "user_id": PHONE,
        "session_id": f"{instance}_{PHONE}",
        "agent_id": "text",
        "streaming": False,
        "recipient": PHONE_JID,
    }


async def test_session_and_user_reach_the_agent_so_that_it_remembers(world: World, agno: AgnoServer) -> None:
    """F23: the agent itself says which session and user it was given, and sees the earlier questions of this person.

    The third message comes from the person's privacy address, as WhatsApp may have it; it is the same person.
    """
    instance = await add_agno(world, agno, "memory")

    for _ in range(2):
        await world.ended(await world.ask(instance, "Do you remember me?"))
    last = await world.ask(instance, "And now?", addressing="lid")
    await world.ended(last)

    seen = f"session {instance}_{PHONE}, user {PHONE}, messages seen: "
    assert world.whatsapp.bubbles == [f"{seen}{number}" for number in (1, 2, 3)]
    sent = [(message.jid, message.text) for message in world.whatsapp.evolution.sent]
    assert [jid for jid, _ in sent] == [PHONE_JID, PHONE_JID, world.whatsapp.evolution.contact.lid_jid]
    row = await world.api.call("GET", f"/api/v1/traces/{last}")
    assert (row["session_name"], row["agent_session_id"]) == (f"{instance}_{PHONE}", f"{instance}_{PHONE}")


async def test_the_first_paragraph_is_on_the_phone_before_the_agent_writes_the_second(
    world: World, agno: AgnoServer
) -> None:
    """F3, F6: delivery overlaps with writing. The agent holds still until the first message has been seen on the phone."""
    instance = await add_agno(world, agno, "gated")

    trace_id = await world.ask(instance, "Tell me slowly")
    first = await world.whatsapp.until_bubbles(1)
    meanwhile = await world.document(trace_id)
    headers = {"Authorization": f"Bearer {agno.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{agno.base_url}/release") as response,
    ):
        assert response.status == 204
    document = await world.ended(trace_id)

    assert first == ["The first paragraph."]
    assert (meanwhile["ending"], meanwhile["streaming_complete"], meanwhile["timeline"]["stream_end_ms"]) == (
        None,
        None,
        None,
    )
    assert [piece["content"] for piece in meanwhile["streaming_chunks"]] == ["The first ", "paragraph.\n\n"]
    assert world.whatsapp.bubbles == ["The first paragraph.", "The second one came later."]
    accepted_ms = [message["accepted_ms"] for message in document["delivery"]["messages"]]
    assert accepted_ms[0] < document["streaming_chunks"][2]["offset_ms"]
    assert accepted_ms[0] < document["timeline"]["stream_end_ms"] <= accepted_ms[1]


async def test_an_operator_stops_an_answer_and_the_model_is_left(world: World, agno: AgnoServer) -> None:
    """Over REST, in the middle of a sentence: what was not sent is on record, the user gets one notice, nobody pays for more."""
    instance = await add_agno(world, agno, "halfway", language="pt", notice_texts={"stopped": "Tudo bem, parei. 🛑"})
    trace_id = await world.ask(instance, "Onde está o pedido?")
    await world.whatsapp.until_bubbles(1)
    await until_said(world, trace_id, HALFWAY)

    stopped = await world.api.call("POST", f"/api/v1/traces/{trace_id}/cancel", status=202)
    document = await world.ended(trace_id)
    again = await world.api.call("POST", f"/api/v1/traces/{trace_id}/cancel", status=409)

    assert stopped == {"trace_id": trace_id, "status": "stopping"}
    assert again["error"]["code"] == "turn_not_running"
    assert world.whatsapp.bubbles == ["The first paragraph.", "Tudo bem, parei. 🛑"]
    assert told_of_the_end(document) == {
        "status": "failed",
        "ending": "cancelled",
        "error_stage": "cancelled",
        "error_message": "the user asked to stop",
        "partial_content": HALFWAY,
        "upstream_cancel": "requested",
        "messages": [
            ("The first paragraph.", "accepted"),
            ("The second one, unfin", "not_sent"),
            ("Tudo bem, parei. 🛑", "accepted"),
        ],
    }


async def test_a_silent_agent_is_given_up_where_it_runs(world: World, agno: AgnoServer) -> None:
    """The half sentence is delivered, the run is cancelled at the server, and the user is told in his language."""
    instance = await add_agno(world, agno, "halfway", agent_timeout=1, language="pt")
    document = await world.ended(await world.ask(instance, "Onde está o pedido?"))

    notice = "Desculpe, precisei parar antes de terminar. Pode me perguntar de novo?"
    assert world.whatsapp.bubbles == ["The first paragraph.", "The second one, unfin", notice]
    assert told_of_the_end(document) == {
        "status": "failed",
        "ending": "timeout",
        "error_stage": "streaming_error",
        "error_message": "The agent was silent for 1 s in the middle of its answer.",
        "partial_content": HALFWAY,
        "upstream_cancel": "requested",
        "messages": [(text, "accepted") for text in world.whatsapp.bubbles],
    }


async def test_a_server_that_stops_finishes_what_was_said_and_says_that_it_stopped(
    agno: AgnoServer, whatsapp: WhatsApp, tmp_path: Path
) -> None:
    """An orderly stop in the middle of a sentence: nothing that was said is lost, and the next process finds the trace closed."""
    with ExitStack() as stack:
        server = stack.enter_context(omni_serve(tmp_path, stop_deadline_ms="300"))
        async with open_api(server) as api:
            world = World(server, api, whatsapp)
            trace_id = await world.ask(await add_agno(world, agno, "halfway"), "Onde está o pedido?")
            await until_said(world, trace_id, HALFWAY)
        # In a thread: the phone goes on in this one while the server takes its leave.
        await asyncio.to_thread(stack.close)
    with omni_serve(tmp_path) as server:
        async with open_api(server) as api:
            document = await World(server, api, whatsapp).document(trace_id)

    assert whatsapp.bubbles == ["The first paragraph.", "The second one, unfin", CUT_SHORT]
    assert told_of_the_end(document) == {
        "status": "failed",
        "ending": "interrupted",
        "error_stage": "interrupted",
        "error_message": "the turn was cut off before it was done",
        "partial_content": HALFWAY,
        "upstream_cancel": "requested",
        "messages": [(text, "accepted") for text in whatsapp.bubbles],
    }


async def until_said(world: World, trace_id: str, text: str) -> None:
    """Wait until the agent has said that much."""
    async with asyncio.timeout(WAIT_S):
        while "".join(chunk["content"] for chunk in (await world.document(trace_id))["streaming_chunks"]) != text:
            await world.whatsapp.next_change()


def told_of_the_end(document: dict[str, Any]) -> dict[str, Any]:
    """How a turn ended that did not end well, and what became of each message."""
    failure = document["streaming_error"]
    messages = sorted(document["delivery"]["messages"], key=lambda each: int(each["index"]))
    return {
        **{name: document[name] for name in ("status", "ending", "error_stage", "error_message")},
        **{name: failure[name] for name in ("partial_content", "upstream_cancel")},
        "messages": [(message["text"], message["status"]) for message in messages],
    }
