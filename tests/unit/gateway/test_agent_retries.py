"""A server that is away for a moment is asked again; a run that may have begun never is."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.gateway.held_agent import open_trace, question_for
from tests.unit.gateway.scripts import telling

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.errors import AgentFailed, AgentProtocolError, AgentRejected, AgentTimeout, AgentUnreachable
from omni.gateway.hive_streamer import AnswerStreamer
from omni.model import FirstByte, InstanceConfig, RequestWritten
from omni.settings import Settings
from omni.testing import FakeClock, RecordingChannel, ScriptedAgent
from omni.tracing.trace_context import TraceContext

NO_ANSWER = "Sorry, I could not answer just now. Please try again in a moment."
REFUSED = AgentUnreachable("The agent server cannot be reached.", retryable=True, detail="connection refused")
GUARD_S = 5


def status(code):
    return AgentFailed(f"The agent server answered with status {code}.", retryable=True, status_code=code)


def answering_in_turn(clock, *attempts):
    """An agent whose attempts go as given: the events before an error and the error, or an answer."""
    left = list(attempts)

    def steps(request):
        attempt = left.pop(0) if left else "answer"
        return telling(clock, ["Olá."])(request) if attempt == "answer" else attempt

    return ScriptedAgent(steps)


def retries_of(store, trace):
    rows = [row for row in store.get_payloads(trace.trace_id) if row.stage == "agent_retry"]
    return [
        (row.payload_type, row.status_code, row.error_details, row.payload["attempt"], row.payload["detail"])
        for row in rows
    ]


async def test_a_server_that_comes_back_answers_and_each_attempt_is_on_record(
    streamer, tracer, store, channel, clock, instance
):
    """A restart of the agent server costs its users seconds, not their answers."""
    agent = answering_in_turn(clock, [REFUSED], [RequestWritten(clock.mono_ns()), status(503)])
    trace = open_trace(tracer)
    assert await streamer.answer(question_for(instance), agent, trace) is True
    assert channel.texts == ["Olá."]
    assert tracer.flush()
    assert retries_of(store, trace) == [
        ("error", None, "The agent server cannot be reached.", 1, "connection refused"),
        ("error", 503, "The agent server answered with status 503.", 2, None),
    ]
    waited_s = [request.waited_s for request in agent.requests]
    assert waited_s[0] == 0
    assert 0.5 <= waited_s[1] <= 0.75
    assert 2.5 <= waited_s[2] <= 3.75
    # The agent's time counts from the request it answered.
    assert trace.timeline.first_token_latency_ms == 150


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda now: [RequestWritten(now), REFUSED], id="the request was written whole"),
        pytest.param(lambda now: [RequestWritten(now), status(500)], id="the run itself failed"),
        pytest.param(lambda now: [RequestWritten(now), status(504)], id="a proxy lost patience with a run"),
        pytest.param(lambda now: [RequestWritten(now), FirstByte(now), status(503)], id="the answer had begun"),
        pytest.param(lambda _: [AgentRejected("401", status_code=401)], id="refused for good"),
        pytest.param(lambda _: [AgentTimeout("silence", kind="first_token", timeout_s=60)], id="waited long enough"),
        pytest.param(lambda _: [AgentProtocolError("no HTTP")], id="no agent at all"),
    ],
)
async def test_what_may_have_begun_a_run_is_not_asked_again(streamer, tracer, store, channel, clock, instance, attempt):
    """Asking twice may do twice what the agent does."""
    agent, trace = answering_in_turn(clock, attempt(clock.mono_ns())), open_trace(tracer)
    assert await streamer.answer(question_for(instance), agent, trace) is False
    assert tracer.flush()
    assert (len(agent.requests), retries_of(store, trace), len(channel.texts)) == (1, [], 1)


async def test_after_three_attempts_the_user_is_told(streamer, tracer, store, channel, clock, instance):
    agent, trace = answering_in_turn(clock, [REFUSED], [status(502)], [REFUSED]), open_trace(tracer)
    assert await streamer.answer(question_for(instance), agent, trace) is False
    assert tracer.flush()
    row = store.get_trace(trace.trace_id)
    assert (len(agent.requests), len(retries_of(store, trace)), channel.texts) == (3, 2, [NO_ANSWER])
    assert (row.error_stage, row.error_message) == ("agent_request", "The agent server cannot be reached.")


async def test_whoever_stops_waiting_is_not_asked_for_again(streamer, tracer, clock, instance, delivery, channel):
    """Stop, or the caller's end, in the pause between two attempts."""
    pause_began, forever = asyncio.Event(), asyncio.Event()

    async def sleep(_duration_s):
        pause_began.set()
        await forever.wait()

    typing = TypingIndicator(channel, is_enabled=False)
    streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en", sleep=sleep)
    agent, trace = answering_in_turn(clock, [REFUSED]), open_trace(tracer)
    task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace))
    await asyncio.wait_for(pause_began.wait(), GUARD_S)
    streamer.stop_turn(trace.trace_id)
    assert await asyncio.wait_for(task, GUARD_S) is False
    assert (len(agent.requests), trace.timeline.ending) == (1, "cancelled")


@hypothesis_settings(max_examples=40, deadline=None)
@given(timeout_s=st.floats(0.05, 20), took_s=st.lists(st.floats(0, 10), min_size=3, max_size=3))
async def test_attempts_never_outlast_the_agents_timeout(timeout_s, took_s):
    """A law: no attempt begins when the wait for the first text is used up, and at most three are made."""
    clock, channel, began_s = FakeClock(), RecordingChannel(), []
    settings = Settings(_env_file=None, message_spacing_ms=0)
    start_ns = clock.mono_ns()

    def steps(_request):
        began_s.append((clock.mono_ns() - start_ns) / 1e9)
        clock.advance_ms(took_s[len(began_s) - 1] * 1_000)
        return [REFUSED]

    question = question_for(InstanceConfig(name="shop", agent_instance_type="hive"))
    question = structs.replace(question, request=structs.replace(question.request, timeout_s=timeout_s))
    delivery = Delivery(channel, clock=clock, settings=settings, sleep=clock.sleep)
    typing = TypingIndicator(channel, is_enabled=False)
    streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en", sleep=clock.sleep)
    agent = ScriptedAgent(steps)
    await streamer.answer(question, agent, TraceContext("t", clock=clock))
    await delivery.aclose(1)
    assert 1 <= len(began_s) <= 3
    assert all(began < timeout_s for began in began_s)
    assert [request.waited_s for request in agent.requests] == pytest.approx(began_s, abs=1e-6)
