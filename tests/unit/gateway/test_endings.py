"""Answers that do not come to their end by themselves: cut off, stopped, timed out, undeliverable. Each is whole on record."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from msgspec import structs
from tests.unit.gateway.held_agent import CHAT, HeldAgent, open_trace, question_for
from tests.unit.gateway.scripts import JOKE, telling

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.errors import AgentFailed, AgentTimeout
from omni.gateway import agent_run
from omni.gateway.hive_streamer import AnswerStreamer
from omni.gateway.turn import Turn
from omni.model import InboundMessage, SendResult
from omni.testing import ScriptedAgent
from omni.tracing.document import streaming_document
from omni.tracing.events import TurnEnded
from omni.tracing.stored import read_stored_trace

CUT_SHORT = "Sorry, I had to stop before I was done. Please ask me again."
NO_ANSWER = "Sorry, I could not answer just now. Please try again in a moment."
TOO_SLOW = "Sorry, this is taking longer than it should. Please try again in a moment."
STOPPED = "I stopped here, as requested."
GUARD_S = 5
REFUSED = SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="not on WhatsApp")


@pytest.fixture
def tell(tracer, store):
    """What the trace says of an ended turn, in short, and every message with what became of it."""

    def read(trace):
        assert tracer.flush()
        stored = read_stored_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id))
        document = streaming_document(stored)
        failure = document["streaming_error"] or {}
        return {
            **{name: document[name] for name in ("ending", "status", "error_stage", "error_message")},
            "partial_content": failure.get("partial_content"),
            "upstream_cancel": failure.get("upstream_cancel"),
            "messages": [
                (each["index"], each["text"], each["status"], each["is_notice"])
                for each in document["delivery"]["messages"]
            ],
        }

    return read


async def begin(streamer, instance, agent, trace, **hooks):
    """A turn whose agent holds still."""
    task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace, **hooks))
    await asyncio.wait_for(agent.is_holding.wait(), GUARD_S)
    return task


async def cut_off(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- the caller is gone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["cancelled", "interrupted"])
async def test_a_cut_off_answer_is_finished_behind_its_callers_back(streamer, tracer, tell, instance, clock, ending):
    """F20: the caller is let go at once; the text so far goes out to its last character, with one notice, and is on record."""
    if ending == "interrupted":
        streamer.note_stopping()
    agent, trace = HeldAgent(clock, ["First.\n\n", "Second, unfin"]), open_trace(tracer)
    heard = []
    task = await begin(
        streamer, instance, agent, trace, on_delivering=lambda: heard.append("delivering"), on_closed=heard.append
    )
    await cut_off(task)
    is_closed_at_once = trace.timeline.completed_ns is not None
    await streamer.aclose(GUARD_S)
    assert tell(trace) == {
        "ending": ending,
        "status": "failed",
        "error_stage": ending,
        "error_message": "the turn was cut off before it was done",
        "partial_content": "First.\n\nSecond, unfin",
        "upstream_cancel": "requested",
        "messages": [
            (0, "First.", "accepted", False),
            (1, "Second, unfin", "accepted", False),
            (2, CUT_SHORT, "accepted", True),
        ],
    }
    assert (is_closed_at_once, agent.cancelled_runs, agent.is_closed) == (False, ["r1"], True)
    assert heard == ["delivering", ending]


async def test_a_cut_off_before_any_text_gives_the_notice_of_no_answer(streamer, tracer, tell, instance, clock):
    """Cancelled during the first request: there is no run to name, and closing the connection is all there is."""
    agent, trace = HeldAgent(clock, [], names_run=False), open_trace(tracer)
    await cut_off(await begin(streamer, instance, agent, trace))
    await streamer.aclose(GUARD_S)
    assert tell(trace) == {
        "ending": "cancelled",
        "status": "failed",
        "error_stage": "cancelled",
        "error_message": "the turn was cut off before it was done",
        "partial_content": None,
        "upstream_cancel": None,
        "messages": [(0, NO_ANSWER, "accepted", True)],
    }
    assert (agent.cancelled_runs, agent.is_closed) == ([], True)


async def test_an_answer_that_is_only_being_delivered_is_not_cut_by_its_callers_end(
    streamer, tracer, tell, instance, clock, channel
):
    """The agent has said everything: nothing is missing, so nothing is called cut off."""
    channel.gate = asyncio.Event()
    trace, is_delivering = open_trace(tracer), asyncio.Event()
    answering = streamer.answer(
        question_for(instance), ScriptedAgent(telling(clock, JOKE)), trace, on_delivering=is_delivering.set
    )
    task = asyncio.create_task(answering)
    await asyncio.wait_for(is_delivering.wait(), GUARD_S)
    await cut_off(task)
    channel.gate.set()
    await streamer.aclose(GUARD_S)
    told = tell(trace)
    assert (told["ending"], told["error_message"]) == ("completed", None)
    assert [status for _, _, status, _ in told["messages"]] == ["accepted", "accepted"]


async def test_what_cannot_be_finished_in_time_is_given_up_and_closed(
    streamer, tracer, tell, instance, clock, channel, delivery
):
    """The deadline of a stopping server: what was not sent is on record as not sent, and no trace stays open."""
    channel.gate = asyncio.Event()
    agent, trace = HeldAgent(clock, ["First.\n\n", "Second.\n\n", "Third, unfin"]), open_trace(tracer)
    await cut_off(await begin(streamer, instance, agent, trace))
    await streamer.aclose(0)
    await delivery.aclose(0)
    told = tell(trace)
    assert (told["ending"], told["partial_content"]) == ("cancelled", "First.\n\nSecond.\n\nThird, unfin")
    assert sorted(told["messages"]) == [
        (0, "First.", "failed", False),
        (1, "Second.", "not_sent", False),
        (2, "Third, unfin", "not_sent", False),
        (3, CUT_SHORT, "not_sent", True),
    ]
    assert agent.is_closed


async def test_closing_the_streamer_cuts_off_what_still_runs(streamer, tracer, tell, instance, clock):
    """Also an answer whose caller waits patiently: the server stops all the same."""
    agent, trace = HeldAgent(clock, ["Half a sen"]), open_trace(tracer)
    task = await begin(streamer, instance, agent, trace)
    await streamer.aclose(GUARD_S)
    assert await task is False
    told = tell(trace)
    assert (told["ending"], told["messages"]) == (
        "interrupted",
        [(0, "Half a sen", "accepted", False), (1, CUT_SHORT, "accepted", True)],
    )
    assert streamer.get_streaming_analytics() == {"active_streams": 0, "streams": [], "ended": {"interrupted": 1}}


@pytest.mark.parametrize("num_rounds", range(24))
def test_a_loop_that_ends_leaves_no_trace_open(num_rounds, tracer, tell, instance, clock, channel, settings):
    """A script may end at any moment, also before the story's first step: everything said is sent or on record as not sent."""
    trace = open_trace(tracer)

    async def script():
        delivery = Delivery(channel, clock=clock, settings=settings, sleep=clock.sleep)
        typing = TypingIndicator(channel, is_enabled=False)
        streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en")
        agent = HeldAgent(clock, ["First.\n\n", "Second.\n\n", "Third, unfin"])
        task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace))
        for _ in range(num_rounds + 1):
            await asyncio.sleep(0)
        return task

    task = asyncio.run(script())
    assert task.cancelled()
    told = tell(trace)
    assert told["ending"] == "cancelled"
    said = [text for _, text, _, is_notice in sorted(told["messages"]) if not is_notice]
    assert said == [text for text in (told["partial_content"] or "").split("\n\n") if text]


async def test_a_fault_of_our_own_closes_the_trace_of_an_answer_nobody_waits_for(
    streamer, tracer, tell, instance, clock, caplog
):
    """Where a caller waits it gets the exception; where none does, the log says so and the trace is closed."""

    class Fault(Exception):
        pass

    def break_down():
        raise Fault

    agent, trace = HeldAgent(clock, ["Half a sen"]), open_trace(tracer)
    await cut_off(await begin(streamer, instance, agent, trace, on_delivering=break_down))
    with caplog.at_level(logging.ERROR):
        await streamer.aclose(GUARD_S)
    told = tell(trace)
    assert (told["ending"], told["error_stage"], told["error_message"]) == ("error", "processing", "Fault")
    assert [record.message for record in caplog.records] == ["answer_failed"]


# --- the user says stop ---------------------------------------------------------------------------------------------------


async def test_stop_drops_what_was_not_sent_and_says_so_once(streamer, tracer, tell, instance, clock, channel):
    """The user gets no word more than was on its way, and the dropped text is on record to its last character."""
    channel.gate = asyncio.Event()
    agent, trace = HeldAgent(clock, ["First.\n\n", "Second.\n\n", "Third, unfin"]), open_trace(tracer)
    task = await begin(streamer, instance, agent, trace)
    await asyncio.sleep(0)
    assert streamer.stop_chat("shop", CHAT) is True
    assert streamer.stop_chat("shop", CHAT) is True
    channel.gate.set()
    assert await asyncio.wait_for(task, GUARD_S) is False
    told = tell(trace)
    told["messages"].sort()
    assert told == {
        "ending": "cancelled",
        "status": "failed",
        "error_stage": "cancelled",
        "error_message": "the user asked to stop",
        "partial_content": "First.\n\nSecond.\n\nThird, unfin",
        "upstream_cancel": "requested",
        "messages": [
            (0, "First.", "accepted", False),
            (1, "Second.", "not_sent", False),
            (2, "Third, unfin", "not_sent", False),
            (3, STOPPED, "accepted", True),
        ],
    }
    assert (channel.texts, agent.cancelled_runs) == (["First.", STOPPED], ["r1"])
    assert streamer.stop_chat("shop", CHAT) is False


async def test_stop_ends_a_delivery_whose_agent_is_done(streamer, tracer, tell, instance, clock, channel):
    """Six bubbles wait and the user has had enough: the run was complete, the delivery is not."""
    channel.gate = asyncio.Event()
    trace, is_delivering = open_trace(tracer), asyncio.Event()
    agent = ScriptedAgent(telling(clock, ["one\n\n", "two\n\n", "three"]))
    task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace, on_delivering=is_delivering.set))
    await asyncio.wait_for(is_delivering.wait(), GUARD_S)
    await asyncio.sleep(0)
    assert streamer.stop_turn(trace.trace_id) is True
    channel.gate.set()
    assert await asyncio.wait_for(task, GUARD_S) is False
    told = tell(trace)
    told["messages"].sort()
    assert told == {
        "ending": "cancelled",
        "status": "failed",
        "error_stage": "cancelled",
        "error_message": "the user asked to stop",
        "partial_content": None,
        "upstream_cancel": None,
        "messages": [
            (0, "one", "accepted", False),
            (1, "two", "not_sent", False),
            (2, "three", "not_sent", False),
            (3, STOPPED, "accepted", True),
        ],
    }
    assert agent.cancelled_runs == []


async def test_stop_adds_no_second_notice(streamer, tracer, tell, instance, clock, channel):
    """The answer had failed and its notice is on its way: one notice is enough."""
    channel.gate = asyncio.Event()
    trace, is_delivering = open_trace(tracer), asyncio.Event()
    agent = ScriptedAgent(telling(clock, [], ending="error"))
    task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace, on_delivering=is_delivering.set))
    await asyncio.wait_for(is_delivering.wait(), GUARD_S)
    for _ in range(5):
        await asyncio.sleep(0)
    assert streamer.stop_chat("shop", CHAT) is True
    channel.gate.set()
    await asyncio.wait_for(task, GUARD_S)
    assert (tell(trace)["ending"], tell(trace)["messages"]) == ("cancelled", [(0, NO_ANSWER, "accepted", True)])


async def test_stop_reaches_only_the_chat_or_turn_it_names(streamer, tracer, instance, clock):
    agent, trace = HeldAgent(clock, ["Half"]), open_trace(tracer)
    task = await begin(streamer, instance, agent, trace)
    assert [
        streamer.stop_chat("shop", "5511999990002@s.whatsapp.net"),
        streamer.stop_chat("other", CHAT),
        streamer.stop_turn("no such trace"),
    ] == [False, False, False]
    agent.released.set()
    assert await asyncio.wait_for(task, GUARD_S) is True


async def test_a_run_that_completes_while_it_is_being_stopped_stays_stopped(streamer, tracer, tell, instance, clock):
    """The server says the rest while it is told to stop; nobody asked for that any more."""
    agent, trace = HeldAgent(clock, ["Half"], after=[" and the rest"]), open_trace(tracer)
    agent.cancel_answer = asyncio.Event()
    task = await begin(streamer, instance, agent, trace)
    streamer.stop_chat("shop", CHAT)
    agent.released.set()
    for _ in range(20):
        await asyncio.sleep(0)
    agent.cancel_answer.set()
    assert await asyncio.wait_for(task, GUARD_S) is False
    told = tell(trace)
    assert (told["ending"], told["partial_content"], told["upstream_cancel"]) == ("cancelled", "Half", "requested")
    assert told["messages"] == [(0, "Half", "not_sent", False), (1, STOPPED, "accepted", True)]


@pytest.mark.parametrize("num_rounds", range(40))
async def test_stop_at_any_moment_gives_one_ending_and_one_notice_and_loses_no_text(
    streamer, tracer, store, tell, instance, clock, num_rounds
):
    """The law of stopping: text generated is text sent plus text on record as not sent, whenever the word comes."""
    texts = ["First.\n\n", "Second.\n\n", "Third."]
    trace = open_trace(tracer)

    async def run(request):
        for step in telling(clock, texts)(request):
            yield step
            await asyncio.sleep(0)

    agent = ScriptedAgent(lambda _: ())
    agent.run = run
    task = asyncio.create_task(streamer.answer(question_for(instance), agent, trace))
    for _ in range(num_rounds):
        await asyncio.sleep(0)
    is_stopped = streamer.stop_chat("shop", CHAT)
    await asyncio.wait_for(task, GUARD_S)
    told = tell(trace)
    notices = [text for _, text, status, is_notice in told["messages"] if is_notice and status == "accepted"]
    assert (told["ending"], notices) == (("cancelled", [STOPPED]) if is_stopped else ("completed", []))
    content = trace.timeline.content
    said = [text for _, text, _, is_notice in sorted(told["messages"]) if not is_notice]
    assert said == [text for text in content.split("\n\n") if text]
    assert sum(isinstance(event, TurnEnded) for event in trace._journal.events) == 1


# --- the agent is silent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kind", "notice"), [([], "first_token", TOO_SLOW), (["Half a sen"], "idle", CUT_SHORT)]
)
async def test_a_silent_run_is_stopped_upstream_and_the_user_does_not_wait_for_that(
    streamer, tracer, tell, instance, clock, channel, texts, kind, notice
):
    """A hanging server would hold the notice back for seconds more if it were told to stop first."""
    silence = AgentTimeout("silence", kind=kind, timeout_s=60)
    agent, trace = HeldAgent(clock, texts, then=silence), open_trace(tracer)
    agent.cancel_answer = asyncio.Event()
    task = await begin(streamer, instance, agent, trace)
    agent.released.set()
    for _ in range(30):
        await asyncio.sleep(0)
    assert (channel.texts, task.done()) == ([*texts, notice], False)
    agent.cancel_answer.set()
    assert await asyncio.wait_for(task, GUARD_S) is False
    told = tell(trace)
    assert told == {
        "ending": "timeout",
        "status": "failed",
        "error_stage": "streaming_error",
        "error_message": "silence",
        "partial_content": "".join(texts) or None,
        "upstream_cancel": "requested",
        "messages": [
            *((index, text, "accepted", False) for index, text in enumerate(texts)),
            (len(texts), notice, "accepted", True),
        ],
    }


@pytest.mark.parametrize(
    ("answer", "told"),
    [(True, "requested"), (False, "unsupported"), (AgentFailed("500", status_code=500), "failed"), ("never", "failed")],
)
async def test_what_became_of_stopping_the_run_is_on_record(
    streamer, tracer, tell, instance, clock, monkeypatch, answer, told
):
    """1.x has no way to, 2.x refuses for runs it has forgotten, and a server may not answer at all."""
    monkeypatch.setattr(agent_run, "CANCEL_LIMIT_S", 0.01)
    agent, trace = HeldAgent(clock, ["Half"]), open_trace(tracer)
    agent.cancel_answer = asyncio.Event() if answer == "never" else answer
    task = await begin(streamer, instance, agent, trace)
    streamer.stop_chat("shop", CHAT)
    await asyncio.wait_for(task, GUARD_S)
    assert (tell(trace)["upstream_cancel"], tell(trace)["ending"]) == (told, "cancelled")
    assert agent.is_closed


# --- a message cannot be delivered ----------------------------------------------------------------------------------------


async def test_a_message_that_fails_for_good_stops_the_run_and_keeps_its_text(
    streamer, tracer, tell, instance, clock, channel
):
    """F22: nobody would read the rest, so nobody pays for it; what was said is whole on record, what was not sent explicit."""
    channel.answers = [SendResult(is_accepted=True, status_code=201, key_id="K1"), REFUSED]
    agent, trace = HeldAgent(clock, ["one\n\n", "two\n\n", "three\n\n", "and a ha"]), open_trace(tracer)
    task = await begin(streamer, instance, agent, trace)
    assert await asyncio.wait_for(task, GUARD_S) is False
    told = tell(trace)
    told["messages"].sort()
    assert told == {
        "ending": "send_failed",
        "status": "failed",
        "error_stage": "evolution_send",
        "error_message": "not on WhatsApp",
        "partial_content": "one\n\ntwo\n\nthree\n\nand a ha",
        "upstream_cancel": "requested",
        "messages": [
            (0, "one", "accepted", False),
            (1, "two", "failed", False),
            (2, "three", "not_sent", False),
            (3, "and a ha", "not_sent", False),
        ],
    }
    assert (agent.cancelled_runs, agent.is_closed) == (["r1"], True)


async def test_an_ambiguous_message_does_not_stop_the_run(streamer, tracer, tell, instance, clock, channel):
    """It may have arrived; a reader with the rest of the answer is better off than one without."""
    channel.answers = [SendResult(is_accepted=False, error_kind="ambiguous", error="the connection broke")]
    agent, trace = HeldAgent(clock, ["one\n\n"], after=["two"]), open_trace(tracer)
    task = await begin(streamer, instance, agent, trace)
    for _ in range(20):
        await asyncio.sleep(0)
    agent.released.set()
    await asyncio.wait_for(task, GUARD_S)
    assert ([text for _, text, _, _ in tell(trace)["messages"]], agent.cancelled_runs) == (["one", "two"], [])


# --- callers who deliver themselves, and words of one's own -----------------------------------------------------------------


async def test_a_cut_off_whole_answer_is_closed_at_once(streamer, tracer, tell, store, instance, clock):
    """Nothing was going to be delivered by us, so there is nothing to finish."""
    agent, trace = HeldAgent(clock, ["Half"]), tracer.open_from_webhook({"data": {}}, "shop", is_streaming=False)
    task = asyncio.create_task(streamer.ask_whole(question_for(instance, stream=False), agent, trace))
    await asyncio.wait_for(agent.is_holding.wait(), GUARD_S)
    await cut_off(task)
    assert (tell(trace)["ending"], tell(trace)["messages"], agent.is_closed) == ("cancelled", [], True)
    (response,) = [row for row in store.get_payloads(trace.trace_id) if row.stage == "agent_response"]
    assert {name: response.payload[name] for name in ("message", "success", "ending", "upstream_cancel")} == {
        "message": "Half",
        "success": False,
        "ending": "cancelled",
        "upstream_cancel": None,
    }


@pytest.mark.parametrize(
    ("language", "texts", "notice"),
    [
        (None, None, NO_ANSWER),
        ("pt", None, "Desculpe, não consegui responder agora. Tente de novo daqui a pouco, por favor."),
        ("pt", {"no_answer": "Já volto! 🌸"}, "Já volto! 🌸"),
        ("pt", {"stopped": "Ok."}, "Desculpe, não consegui responder agora. Tente de novo daqui a pouco, por favor."),
        ("xx", None, NO_ANSWER),
    ],
)
async def test_an_instance_speaks_its_own_language_and_words(
    streamer, tracer, tell, instance, clock, language, texts, notice
):
    trace = open_trace(tracer)
    agent = ScriptedAgent(telling(clock, [], ending="error", error="boom"))
    instance = structs.replace(instance, language=language, notice_texts=texts)
    await streamer.answer(question_for(instance), agent, trace)
    assert tell(trace)["messages"] == [(0, notice, "accepted", True)]


def unset_turn(tracer, instance, **hooks):
    """A turn of an instance that does not say whom to ask."""
    message = InboundMessage(
        instance_name="shop",
        message_id="M1",
        chat_key=CHAT,
        reply_to=CHAT,
        sender_phone="5511999990001",
        sender_name=None,
        text="oi",
        message_type="text",
    )
    trace = tracer.open_turn(message, is_streaming=True)
    return Turn(instance=structs.replace(instance, agent_api_url=None), message=message, trace=trace, **hooks)


async def test_an_instance_that_cannot_be_asked_costs_one_notice(route_to, tracer, tell, instance, clock):
    heard = []
    turn = unset_turn(tracer, instance, on_delivering=lambda: heard.append("delivering"))
    assert await route_to(ScriptedAgent(telling(clock, JOKE))).answer_turn(turn) is False
    assert tell(turn.trace) == {
        "ending": "error",
        "status": "failed",
        "error_stage": "settings",
        "error_message": "instance 'shop' needs agent_api_url and agent_id to be answered for",
        "partial_content": None,
        "upstream_cancel": None,
        "messages": [(0, NO_ANSWER, "accepted", True)],
    }
    assert heard == ["delivering"]


async def test_a_refusal_that_is_cut_off_is_finished_too(route_to, streamer, tracer, tell, instance, clock, channel):
    """Whoever is let go leaves no open trace behind, however little there was to do."""
    channel.gate = asyncio.Event()
    turn = unset_turn(tracer, instance)
    task = asyncio.create_task(route_to(ScriptedAgent(telling(clock, JOKE))).answer_turn(turn))
    for _ in range(5):
        await asyncio.sleep(0)
    await cut_off(task)
    channel.gate.set()
    await streamer.aclose(GUARD_S)
    assert (tell(turn.trace)["ending"], channel.texts) == ("error", [NO_ANSWER])


async def test_the_clients_stay_open_until_the_answer_is_finished(tracer, tell, instance, clock, channel, delivery):
    """A script that gives up waiting closes what it opened; the rest of the answer still needs a connection."""
    leases = []

    @asynccontextmanager
    async def online():
        leases.append("open")
        try:
            yield
        finally:
            leases.append("closed")

    typing = TypingIndicator(channel, is_enabled=False)
    streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en", online=online)
    agent, trace = HeldAgent(clock, ["Half"]), open_trace(tracer)
    channel.gate = asyncio.Event()
    await cut_off(await begin(streamer, instance, agent, trace))
    is_open_behind_the_caller = leases == ["open"]
    channel.gate.set()
    await streamer.aclose(GUARD_S)
    assert (is_open_behind_the_caller, leases, channel.texts) == (True, ["open", "closed"], ["Half", CUT_SHORT])
