"""The public contexts: what is logged is what is read, in memory and after storing."""

import asyncio

import pytest

from omni.model import InboundMessage, Usage
from omni.tracing import service
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.summary import headline
from omni.tracing.trace_context import TraceContext

JOKE = ["Why do programmers prefer dark mode?", "\n\n", "Because light ", "attracts bugs! ", "🐛"]


def open_turn(tracer, **changes):
    message = InboundMessage(
        **{
            "instance_name": "testonho",
            "message_id": "MSG123",
            "chat_key": "5511999990001@s.whatsapp.net",
            "reply_to": "5511999990001@s.whatsapp.net",
            "sender_phone": "5511999990001",
            "sender_name": "Maria",
            "text": "Tell me a joke",
            "message_type": "text",
        }
        | changes
    )
    return StreamingTraceContext.upgrade(tracer.open_turn(message, is_streaming=True))


def tell_joke(trace, clock):
    clock.advance_ms(10)
    trace.log_agent_request({"message": "Tell me a joke", "session_id": "s"})
    trace.mark_request_written(clock.mono_ns())
    trace.log_streaming_start({"agent_id": "genie"})
    clock.advance_ms(150)
    trace.log_first_token(JOKE[0], {"event_type": "RunContent"})
    for index, text in enumerate(JOKE):
        trace.log_streaming_chunk(text, index, {"event_type": "RunContent"})
        clock.advance_ms(60)
    trace.log_streaming_complete("".join(JOKE), usage=Usage(input_tokens=3, output_tokens=9, total_tokens=12))


def read_back(tracer, store, trace):
    assert tracer.flush()
    return read_stored_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id))


def test_summary_tells_the_true_figures(tracer, clock):
    trace = open_turn(tracer)
    tell_joke(trace, clock)
    summary = trace.get_streaming_summary()
    assert {
        key: summary[key]
        for key in (
            "status",
            "first_token_latency_ms",
            "total_streaming_duration_ms",
            "total_streaming_time_ms",
            "first_to_final_ms",
            "total_chunks",
            "total_content_length",
        )
    } == {
        "status": "completed",
        "first_token_latency_ms": 150,
        "total_streaming_duration_ms": 450,
        "total_streaming_time_ms": 450,
        "first_to_final_ms": 300,
        "total_chunks": 5,
        "total_content_length": len("".join(JOKE)),
    }


def test_stored_timeline_equals_the_one_in_memory(tracer, store, clock):
    """One timeline feeds every number: storing and reading changes none of them (F4, F5)."""
    trace = open_turn(tracer)
    tell_joke(trace, clock)
    before = trace.timeline
    after = read_back(tracer, store, trace).timeline
    names = ("first_token_latency_ms", "total_streaming_time_ms", "first_to_final_ms", "turn_total_ms", "stages")
    assert [getattr(before, name) for name in names] == [getattr(after, name) for name in names]
    assert before.content == after.content
    assert [chunk.text for chunk in after.chunks] == JOKE
    assert after.is_content_verified is True


def test_document_is_the_seeds_document(tracer, store, clock):
    trace = open_turn(tracer)
    tell_joke(trace, clock)
    document = streaming_document(read_back(tracer, store, trace))
    metrics = {
        "total_streaming_time_ms": 450,
        "first_token_latency_ms": 150,
        "first_to_final_ms": 300,
        "total_chunks": 5,
    }
    assert document["streaming_request"]["stream_mode"] is True
    assert document["streaming_request"]["trace_type"] == "streaming"
    assert document["first_token"]["first_token_latency_ms"] == 150
    assert document["streaming_chunks"][1] == {
        "chunk_index": 1,
        "content": "\n\n",
        "size": 2,
        "offset_ms": 220.0,
        "event_type": "RunContent",
    }
    assert {key: document["streaming_complete"][key] for key in metrics} == metrics
    assert document["agent_response"] == {
        "message": "".join(JOKE),
        "success": True,
        "streaming": True,
        "metrics": metrics,
    }
    assert document["ending"] == "completed"
    assert document["timeline"]["stages"] == {
        "queue_ms": 10.0,
        "agent_wait_ms": 150.0,
        "stream_ms": 300.0,
        "delivery_tail_ms": None,
        "unaccounted_ms": 0.0,
        "turn_total_ms": 460.0,
    }


@pytest.mark.parametrize("step_s", [2, -2, 3600, -3600])
def test_a_stepping_wall_clock_changes_no_duration(tracer, store, clock, step_s):
    """Truth rule 1."""
    trace = open_turn(tracer)
    clock.advance_ms(5)
    trace.log_agent_request({"message": "oi"})
    clock.step_wall_s(step_s)
    clock.advance_ms(150)
    trace.log_first_token("a")
    trace.log_streaming_chunk("a", 0)
    clock.step_wall_s(-2 * step_s)
    clock.advance_ms(300)
    trace.log_streaming_complete("a")
    document = streaming_document(read_back(tracer, store, trace))
    assert document["timeline"]["first_token_latency_ms"] == 150
    assert document["timeline"]["total_streaming_time_ms"] == 450
    assert document["timeline"]["stages"]["turn_total_ms"] == 455.0
    assert store.get_trace(trace.trace_id).total_processing_time_ms == 455


def test_blank_text_is_no_first_token(tracer, clock):
    """Truth rule 2: the first visible text counts, not the first event."""
    trace = open_turn(tracer)
    trace.log_agent_request({})
    clock.advance_ms(10)
    trace.log_first_token("\n ")
    trace.log_streaming_chunk("\n ", 0)
    assert trace.timeline.first_token_latency_ms is None
    clock.advance_ms(90)
    trace.log_streaming_chunk("olá", 1)
    assert trace.timeline.first_token_latency_ms == 100


def test_unknown_is_none_before_anything_arrived(tracer):
    summary = open_turn(tracer).get_streaming_summary()
    assert summary["status"] == "no_streaming_data"
    assert summary["first_token_latency_ms"] is None
    assert summary["total_streaming_duration_ms"] is None
    assert summary["total_chunks"] == 0


def test_stream_without_terminal_event_ends_incomplete_with_its_text(tracer, store, clock):
    """Truth rule 5 and F11: the partial text is kept whole and the trace says how it ended."""
    trace = open_turn(tracer)
    trace.log_agent_request({})
    clock.advance_ms(20)
    text = "parte " * 100
    trace.log_first_token(text)
    trace.log_streaming_chunk(text, 0)
    trace.log_streaming_error("the stream ended without a terminal event", "streaming", ending="incomplete")
    document = streaming_document(read_back(tracer, store, trace))
    row = store.get_trace(trace.trace_id)
    assert document["ending"] == "incomplete"
    assert document["streaming_error"]["partial_content"] == text
    assert (row.status, row.error_stage, row.agent_response_success) == ("failed", "streaming", False)
    assert row.completed_at is not None
    assert row.agent_response_length == len(text)


def test_success_after_an_error_leaves_no_error_behind(tracer, store):
    """F10."""
    trace = open_turn(tracer)
    trace.update_trace_status("failed", error_message="event", error_stage="event_processing")
    trace.update_trace_status("completed")
    assert tracer.flush()
    row = store.get_trace(trace.trace_id)
    assert (row.status, row.error_message, row.error_stage) == ("completed", None, None)


def test_status_error_of_older_callers_closes_the_trace_as_failed(tracer, store):
    """F9."""
    trace = open_turn(tracer)
    trace.update_trace_status("error", error_message="peer closed", error_stage="streaming_general")
    assert tracer.flush()
    row = store.get_trace(trace.trace_id)
    assert (row.status, row.error_message) == ("failed", "peer closed")
    assert row.completed_at is not None


def test_plain_context_is_upgraded_in_place(tracer, store, clock):
    """F1: same object, same trace, same row, nothing lost."""
    message = {
        "data": {
            "key": {"id": "M1", "remoteJid": "5511999990001@s.whatsapp.net"},
            "message": {"conversation": "social media"},
        }
    }
    trace = tracer.open_from_webhook(message, "testonho", is_streaming=False)
    trace.log_stage("custom", {"kept": True})
    assert type(trace) is TraceContext
    upgraded = StreamingTraceContext.upgrade(trace)
    assert upgraded is trace
    tell_joke(trace, clock)
    stored = read_back(tracer, store, trace)
    assert [row.stage for row in stored.payloads] == [
        "webhook_received",
        "custom",
        "agent_request",
        "streaming_request",
        "streaming_start",
        "first_token",
        "streaming_chunks",
        "streaming_complete",
        "agent_response",
    ]
    assert stored.row.status == "completed"
    assert stored.payloads[0].contains_media is False  # F34: the words "social media" are no media


def test_evolution_send_closes_a_plain_trace(tracer, store):
    trace = tracer.open_from_webhook({"data": {}}, "testonho", is_streaming=False)
    trace.log_agent_request({"message": "oi"})
    trace.log_agent_response({"message": "olá", "success": True, "usage": {"request_tokens": 2, "response_tokens": 1}})
    trace.log_evolution_send({"recipient": "5511999990001", "text": "olá"}, 201, True)
    assert tracer.flush()
    row = store.get_trace(trace.trace_id)
    assert (row.status, row.evolution_success, row.evolution_response_code) == ("completed", True, 201)
    assert (row.agent_response_length, row.agent_request_tokens, row.agent_response_tokens) == (3, 2, 1)


def test_secrets_of_a_webhook_are_not_stored(tracer, store):
    """F32."""
    body = {"apikey": "DCE34FA7-1D19-43B9-9924", "data": {"message": {"imageMessage": {}, "base64": "A" * 5000}}}
    trace = tracer.open_from_webhook(body, "testonho", is_streaming=False)
    assert tracer.flush()
    (row,) = store.get_payloads(trace.trace_id)
    assert row.payload["apikey"] == "…9924"
    assert row.payload["data"]["message"]["base64"] == {"omitted_chars": 5000}
    assert (row.contains_media, row.contains_base64) == (True, True)


async def test_logging_never_waits(tracer, clock):
    """Truth rule 8: the whole stream is logged without giving up the loop once."""
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(tick())
    tell_joke(open_turn(tracer), clock)
    assert ticks == 0
    task.cancel()


def test_a_turn_that_never_asked_is_ours_and_not_the_predecessors(tracer, store):
    """A voice note leaves only its webhook behind; its figures are ours and unknown, not another program's."""
    trace = tracer.open_from_webhook({"data": {"message": {"audioMessage": {}}}}, "shop", is_streaming=False)
    trace.end_turn("error", error_message="not answered: unsupported_type (audio)", error_stage="webhook_received")
    document = streaming_document(read_back(tracer, store, trace))
    assert document["headline"] == "error at webhook_received; not answered: 0 characters, 0 messages accepted"
    assert document["timeline"]["stages"]["turn_total_ms"] == 0.0
    assert document["timeline"]["completed_ms"] == 0.0


def test_tail_lag_is_unknown_while_the_turn_is_open(tracer, clock):
    """It is the last message that counts, and which one that is shows only at the end."""
    trace = open_turn(tracer)
    trace.await_delivery()
    trace.log_agent_request({})
    trace.log_streaming_chunk("one", 0)
    trace.log_evolution_send({"text": "one"}, 201, True)
    clock.advance_ms(500)
    trace.log_streaming_chunk("two", 1)
    assert trace.timeline.tail_lag_ms is None


def test_a_whole_answer_that_failed_was_no_answer(tracer, clock):
    trace = tracer.open_from_webhook({"data": {}}, "shop", is_streaming=False)
    trace.log_agent_request({"message": "oi"})
    clock.advance_ms(109)
    trace.log_agent_response({"message": "", "success": False})
    trace.end_turn("error", error_message="500", error_stage="agent_response")
    assert headline(trace.timeline) == (
        "error at agent_response; no answer after 109 ms: 0 characters, 0 messages accepted"
    )


def test_a_streaming_context_asked_for_a_whole_answer_is_no_stream(tracer, store):
    trace = open_turn(tracer)
    trace.log_agent_request({"message": "oi"}, is_streaming=False)
    trace.log_agent_response({"message": "olá", "success": True})
    trace.end_turn("completed")
    document = streaming_document(read_back(tracer, store, trace))
    assert document["streaming_request"] is None
    assert document["headline"] == "answered whole in 0 ms: 3 characters, 0 messages accepted"


@pytest.mark.parametrize(
    "log",
    [
        lambda trace: trace.log_stage("mine", None),
        lambda trace: trace.log_stage("mine", "plain text"),
        lambda trace: trace.log_stage("mine", [1, 2], "response", "200", {"why": 1}),
        lambda trace: trace.log_agent_request(None),
        lambda trace: trace.log_agent_response("plain text", 12.7),
        lambda trace: trace.log_agent_response({"usage": {"request_tokens": "many"}, "session_id": {"id": 1}}),
        lambda trace: trace.log_evolution_send(None, None, False),
        lambda trace: trace.log_streaming_start(None),
        lambda trace: trace.log_first_token(None),
        lambda trace: trace.log_streaming_chunk(None, None, "no mapping"),
        lambda trace: trace.log_streaming_complete(None, usage=Usage(input_tokens=10**12)),
        lambda trace: trace.log_streaming_error(None),
        lambda trace: trace.update_trace_status("processing", agent_request_tokens="12", evolution_success="yes"),
        lambda trace: trace.update_session_info({"a": 1}, 7),
    ],
)  # fmt: skip
def test_odd_arguments_neither_raise_nor_cost_the_trace(tracer, store, recorder, log):
    """Tracing can never break an answer (truth rule 8), nor one odd value a record."""
    trace = open_turn(tracer)
    log(trace)
    trace.log_streaming_chunk("olá", 0)
    trace.end_turn("completed")
    stored = read_back(tracer, store, trace)
    assert (stored.row.status, stored.row.sender_phone, recorder.num_lost) == ("completed", "5511999990001", 0)
    assert trace.get_streaming_summary()["status"] == "completed"


def test_values_are_converted_where_that_loses_nothing_and_left_out_otherwise(tracer, store):
    trace = open_turn(tracer, sender_phone=5511999990001, sender_name={"name": "Maria"})
    trace.update_trace_status(
        "processing", agent_request_tokens="12", agent_response_tokens=10**12, agent_tools_used=2.0, has_media=1
    )
    trace.update_session_info(agent_session_id=77)
    row = read_back(tracer, store, trace).row
    assert (row.sender_phone, row.sender_name, row.agent_session_id) == ("5511999990001", None, "77")
    assert (row.agent_request_tokens, row.agent_response_tokens, row.agent_tools_used) == (12, None, 2)
    assert row.has_media is True


def test_a_trace_can_be_opened_with_what_little_is_known(tracer, store, monkeypatch):
    monkeypatch.setattr(service, "_provider", lambda: tracer)
    trace = service.create_streaming_trace_context("shop", sender_phone=5511999990001, db_session=object())
    row = read_back(tracer, store, trace).row
    assert (row.instance_name, row.sender_phone, row.message_type) == ("shop", "5511999990001", "text")
    assert (row.whatsapp_message_id, row.sender_name, row.sender_jid) == (None, None, None)
