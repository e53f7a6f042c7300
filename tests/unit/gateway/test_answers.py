"""The story of one answer, told with a scripted agent and a recording channel: what the user gets, and what the trace says."""

import asyncio

import pytest
from tests.unit.gateway.scripts import JOKE, telling

from omni.errors import AgentFailed, AgentProtocolError, AgentRejected, AgentTimeout, AgentUnreachable
from omni.gateway.notices import notice_for
from omni.model import SendResult
from omni.testing import ScriptedAgent
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.trace_context import TraceContext

RECIPIENT = "5511999990001@s.whatsapp.net"
NO_ANSWER = notice_for("error", has_text=False, language="en")
CUT_SHORT = notice_for("error", has_text=True, language="en")
TOO_SLOW = notice_for("timeout", has_text=False, language="en")


def open_plain(tracer):
    body = {
        "data": {
            "key": {"id": "M1", "remoteJid": RECIPIENT, "fromMe": False},
            "pushName": "Maria",
            "message": {"conversation": "Tell me a joke"},
        }
    }
    return tracer.open_from_webhook(body, "shop", is_streaming=False)


def document_of(tracer, store, trace):
    assert tracer.flush()
    return streaming_document(read_stored_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id)))


async def ask(route_to, agent, instance, trace):
    return await route_to(agent).route_message_smart(
        message_text="Tell me a joke", recipient=RECIPIENT, instance_config=instance, trace_context=trace
    )


async def test_a_plain_trace_is_upgraded_and_tells_the_whole_story(route_to, tracer, store, channel, clock, instance):
    """F1 to F5: the webhook's plain context, streamed end to end, with figures that agree everywhere."""
    trace = open_plain(tracer)
    agent = ScriptedAgent(telling(clock, JOKE))
    assert await ask(route_to, agent, instance, trace) is True
    assert isinstance(trace, StreamingTraceContext)
    assert channel.texts == ["Why do programmers prefer dark mode?", "Because light attracts bugs! 🐛"]
    document = document_of(tracer, store, trace)
    metrics = {
        "total_streaming_time_ms": 450,
        "first_token_latency_ms": 150,
        "first_to_final_ms": 300,
        "total_chunks": 5,
    }
    assert document["agent_response"]["metrics"] == metrics
    assert {key: document["streaming_complete"][key] for key in metrics} == metrics
    assert document["first_token"]["first_token_latency_ms"] == 150
    assert document["timeline"]["first_byte_latency_ms"] == 20.0
    assert document["timeline"]["usage"] == {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    assert document["ending"] == "completed"
    assert [
        (message["index"], message["first_chunk"], message["last_chunk"], message["status"])
        for message in document["delivery"]["messages"]
    ] == [(0, 0, 1, "accepted"), (1, 2, 4, "accepted")]
    summary = trace.get_streaming_summary()
    assert (summary["total_streaming_duration_ms"], summary["total_content_length"]) == (450, len("".join(JOKE)))
    row = store.get_trace(trace.trace_id)
    assert (row.status, row.agent_processing_time_ms, row.agent_response_length) == ("completed", 450, 68)
    assert (row.agent_request_tokens, row.agent_response_tokens, row.evolution_success) == (11, 7, True)


async def test_session_and_user_are_really_sent(route_to, tracer, clock, instance):
    """F23: what the trace says was sent is what was sent."""
    trace, agent = open_plain(tracer), ScriptedAgent(telling(clock, ["oi"]))
    await ask(route_to, agent, instance, trace)
    (request,) = agent.requests
    assert (request.session_id, request.user_id, request.stream) == ("shop_5511999990001", "5511999990001", True)


async def test_agent_time_does_not_include_delivery(route_to, tracer, store, channel, clock, instance):
    """F6: a slow Evolution lengthens the tail, not the agent."""
    sent = asyncio.Event()

    async def slow_send(*_args):
        clock.advance_ms(3_000)
        sent.set()
        return SendResult(is_accepted=True, status_code=201, key_id="K")

    channel.send_text = slow_send
    trace = open_plain(tracer)
    # One paragraph: it is sent when the stream is over.
    await ask(route_to, ScriptedAgent(telling(clock, ["one paragraph"])), instance, trace)
    timeline = document_of(tracer, store, trace)["timeline"]
    assert timeline["total_streaming_time_ms"] == 210
    assert timeline["stages"]["delivery_tail_ms"] == 3_000.0
    assert timeline["stages"]["unaccounted_ms"] == 0.0


async def test_reading_never_waits_for_sending(route_to, tracer, channel, clock, instance):
    """The whole stream is read while the first message is still being sent."""
    channel.gate = asyncio.Event()
    read_to_the_end = asyncio.Event()

    async def run(_request):
        for step in telling(clock, ["one\n\n", "two\n\n", "three\n\n", "four"])(_request):
            yield step
            await asyncio.sleep(0)
        read_to_the_end.set()

    agent = ScriptedAgent(lambda _: ())
    agent.run = run
    answering = asyncio.create_task(ask(route_to, agent, instance, open_plain(tracer)))
    await asyncio.wait_for(read_to_the_end.wait(), 5)
    assert channel.texts == []
    channel.gate.set()
    assert await asyncio.wait_for(answering, 5) is True
    assert channel.texts == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("ending", "texts", "stage", "notice"),
    [
        ("error", ["Olá\n\n", "meia fra"], "streaming_error", CUT_SHORT),
        ("error", [], "streaming_error", NO_ANSWER),
        ("incomplete", ["Primeira parte.\n\n", "Segun"], "streaming_error", CUT_SHORT),
        ("incomplete", [], "streaming_error", NO_ANSWER),
        ("paused", ["Vou apagar o pedido."], "streaming_error", notice_for("paused", has_text=True, language="en")),
        ("cancelled", ["parte 0"], "streaming_error", notice_for("cancelled", has_text=True, language="en")),
    ],
)
async def test_every_end_is_told_apart_and_the_tail_is_flushed(
    route_to, tracer, store, channel, clock, instance, ending, texts, stage, notice
):
    """Truth rules 5 and 9; F9, F11, F20, F24."""
    trace = open_plain(tracer)
    secret = "upstream 529: overloaded, key sk-123"
    agent = ScriptedAgent(telling(clock, texts, ending=ending, error=secret))
    assert await ask(route_to, agent, instance, trace) is False
    document = document_of(tracer, store, trace)
    assert (document["ending"], document["status"], document["error_stage"]) == (ending, "failed", stage)
    assert document["error_message"] == secret
    assert document["streaming_error"]["partial_content"] == ("".join(texts) or None)
    assert channel.texts[-1] == notice
    assert channel.texts[:-1] == [text for text in "".join(texts).split("\n\n") if text]
    assert not any("529" in text for text in channel.texts)
    assert document["delivery"]["messages"][-1]["is_notice"] is True
    assert document["timeline"]["completed_ms"] is not None


@pytest.mark.parametrize(
    ("error", "ending", "stage", "notice"),
    [
        (AgentUnreachable("no connection", retryable=True), "error", "agent_request", NO_ANSWER),
        (
            AgentRejected("401", status_code=401, detail="Invalid authentication token"),
            "error",
            "agent_request",
            NO_ANSWER,
        ),
        (AgentFailed("500", status_code=500, detail="boom"), "error", "streaming_error", NO_ANSWER),
        (AgentProtocolError("no agent stream"), "error", "streaming_error", NO_ANSWER),
        (AgentTimeout("silence", kind="first_token", timeout_s=60), "timeout", "streaming_error", TOO_SLOW),
    ],
)
@pytest.mark.parametrize("is_streaming", [True, False])
async def test_agent_failures_give_one_notice_and_a_failed_trace(
    route_to, tracer, store, channel, instance, streamer, error, ending, stage, notice, is_streaming
):
    """F21, F24, F25: never an empty message, never the server's words, never a completed trace."""
    from msgspec import structs

    from omni.gateway.hive_streamer import Question
    from omni.model import AgentRequest

    trace = open_plain(tracer)
    request = AgentRequest(
        base_url="http://hive.test",
        api_key="k",
        agent_kind="agent",
        agent_id="genie",
        message="oi",
        session_id="s",
        user_id="u",
        stream=is_streaming,
    )
    question = Question(
        instance=structs.replace(instance, agent_stream_mode=is_streaming),
        request=request,
        recipient=RECIPIENT,
        chat_key=RECIPIENT,
    )
    agent = ScriptedAgent(lambda _: [error])
    assert await streamer.answer(question, agent, trace) is False
    assert channel.texts == [notice]
    document = document_of(tracer, store, trace)
    row = store.get_trace(trace.trace_id)
    stage = stage if is_streaming or stage == "agent_request" else "agent_response"
    assert (document["ending"], row.status, row.error_stage) == (ending, "failed", stage)
    assert row.agent_response_success is False
    assert row.completed_at is not None
    assert document["timeline"]["first_token_latency_ms"] is None


async def test_empty_answer_gives_one_notice(route_to, tracer, store, channel, clock, instance):
    """A completed run without text leaves nobody without a word; the trace says 0 characters."""
    trace = open_plain(tracer)
    await ask(route_to, ScriptedAgent(telling(clock, [])), instance, trace)
    assert channel.texts == [notice_for("completed", has_text=False, language="en")]
    document = document_of(tracer, store, trace)
    assert (document["ending"], document["timeline"]["total_content_length"]) == ("completed", 0)
    assert document["timeline"]["first_token_latency_ms"] is None


async def test_refused_message_ends_the_turn_as_send_failed(route_to, tracer, store, channel, clock, instance):
    """F22: the trace knows that the user did not get it."""
    channel.answers = [
        SendResult(is_accepted=True, status_code=201, key_id="K1"),
        SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="not on WhatsApp"),
    ]
    trace = open_plain(tracer)
    agent = ScriptedAgent(telling(clock, ["one\n\n", "two\n\n", "three"]))
    assert await ask(route_to, agent, instance, trace) is False
    document = document_of(tracer, store, trace)
    row = store.get_trace(trace.trace_id)
    assert (document["ending"], row.status, row.error_stage) == ("send_failed", "failed", "evolution_send")
    assert [message["status"] for message in document["delivery"]["messages"]] == ["accepted", "failed", "not_sent"]
    assert row.evolution_success is False
    assert document["streaming_complete"]["final_content"] == "one\n\ntwo\n\nthree"
    assert document["delivery"]["failed"] == 2


async def test_tools_are_counted_and_silent(route_to, tracer, store, channel, clock, instance):
    trace = open_plain(tracer)
    await ask(route_to, ScriptedAgent(telling(clock, ["Temos 7."], with_tool=True)), instance, trace)
    document = document_of(tracer, store, trace)
    assert (document["timeline"]["num_tools"], document["timeline"]["num_tool_errors"]) == (1, 1)
    assert store.get_trace(trace.trace_id).agent_tools_used == 1
    assert channel.texts == ["Temos 7."]


async def test_unstreamed_instance_returns_the_reply_and_keeps_its_figures(
    route_to, tracer, store, channel, clock, instance
):
    from msgspec import structs

    trace = open_plain(tracer)
    agent = ScriptedAgent(telling(clock, ["whole answer"]))
    reply = await ask(route_to, agent, structs.replace(instance, agent_stream_mode=False), trace)
    assert reply == "whole answer"
    assert channel.texts == []
    assert type(trace) is TraceContext
    trace.log_evolution_send({"recipient": RECIPIENT, "text": reply}, 201, True)
    document = document_of(tracer, store, trace)
    assert (document["ending"], document["agent_response"]["message"]) == ("completed", "whole answer")
    assert document["timeline"]["first_byte_latency_ms"] == 20.0
    assert document["timeline"]["first_token_latency_ms"] is None
    assert document["timeline"]["total_streaming_time_ms"] == 210


@pytest.mark.parametrize(
    ("steps", "ending", "stage", "status_code"),
    [
        ({"ending": "paused", "error": None}, "paused", "agent_response", None),
        ({"ending": "incomplete", "error": None}, "incomplete", "agent_response", None),
        ({"error": AgentTimeout("silence", kind="first_token", timeout_s=60)}, "timeout", "agent_response", None),
        ({"error": AgentRejected("401", status_code=401)}, "error", "agent_request", 401),
    ],
)
async def test_an_unstreamed_failure_returns_the_notice_and_keeps_its_ending(
    route_to, tracer, store, clock, instance, steps, ending, stage, status_code
):
    """What the run's end was called is not lost on the way, and a status nobody gave is unknown, not 0."""
    from msgspec import structs

    trace = open_plain(tracer)
    agent = ScriptedAgent(telling(clock, [], **steps))
    reply = await ask(route_to, agent, structs.replace(instance, agent_stream_mode=False), trace)
    assert reply == notice_for(ending, has_text=False, language="en")
    document = document_of(tracer, store, trace)
    assert (document["ending"], document["status"], document["error_stage"]) == (ending, "failed", stage)
    (response,) = [row for row in store.get_payloads(trace.trace_id) if row.stage == "agent_response"]
    assert response.status_code == status_code


def test_route_message_blocks_and_returns_the_reply(route_to, tracer, clock):
    agent = ScriptedAgent(telling(clock, ["olá"]))
    router = route_to(agent)
    reply = router.route_message(
        "oi", session_name="s", agent_config={"name": "genie", "api_url": "http://x", "instance_type": "hive"}
    )
    assert reply == "olá"


async def test_analytics_show_what_runs_now_and_how_turns_ended(route_to, tracer, channel, clock, instance):
    channel.gate = asyncio.Event()
    router = route_to(ScriptedAgent(telling(clock, ["um"])))
    task = asyncio.create_task(router.route_message_smart("oi", RECIPIENT, instance, trace_context=open_plain(tracer)))
    for _ in range(20):
        await asyncio.sleep(0)
    running = router.get_streaming_analytics()
    assert (running["active_streams"], running["streams"][0]["total_chunks"]) == (1, 1)
    channel.gate.set()
    await asyncio.wait_for(task, 5)
    assert router.get_streaming_analytics() == {"active_streams": 0, "streams": [], "ended": {"completed": 1}}
