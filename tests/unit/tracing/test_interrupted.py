"""How a trace reads whose process died: only moments that were seen, all text that came, and what became of each message."""

from hashlib import sha256

import pytest
from tests.support.told_turns import CHUNKS, RECIPIENT, open_turn, pieces_of, tell_piece, tell_stream

from omni.clock import wall_datetime
from omni.records import OutboxRecord
from omni.tracing.document import streaming_document
from omni.tracing.interrupted import DIED, close_interrupted
from omni.tracing.lost_text import RECOVERED
from omni.tracing.stored import read_stored_trace
from omni.tracing.verify import check_trace

DOWN_MS = 3 * 3_600_000
"""Nobody started Omni again for three hours."""


@pytest.fixture
def close(tracer, store, clock):
    """Closes a trace as a later process would, and returns its document."""

    def close_it(trace, rows=(), *, down_ms=DOWN_MS, **how):
        assert tracer.flush()
        clock.advance_ms(down_ms)
        stored = store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id)
        close_interrupted(tracer.reopen(*stored), rows, **how)
        assert tracer.flush()
        row, payloads = store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id)
        if not how.get("is_resumed"):  # what is left is still to come
            assert check_trace(row, payloads).disagreements == []
        return streaming_document(read_stored_trace(row, payloads))

    return close_it


def outbox(trace, clock, index, piece, state="accepted"):
    at = wall_datetime(clock.wall_ns())
    return OutboxRecord(
        message_uid=f"{trace.trace_id}/{index}",
        answer_id=trace.trace_id,
        trace_id=trace.trace_id,
        instance_name="shop",
        chat_key=RECIPIENT,
        recipient=RECIPIENT,
        index=index,
        text=piece.text,
        text_sha256=sha256(piece.text.encode()).hexdigest(),
        start=piece.start,
        end=piece.end,
        state=state,
        attempts=1,
        queued_at=at,
        started_at=at,
        ended_at=at,
        key_id=f"KEY{index}",
        status_code=201,
    )


def test_a_turn_nobody_goes_on_with_ended_when_its_last_sign_was_seen(tracer, clock, close):
    """The three hours belong to nobody's answer, and must not make the day's average."""
    trace = open_turn(tracer)
    tell_stream(trace, clock)
    tell_piece(trace, clock, CHUNKS, 0, pieces_of(CHUNKS)[0])
    seen_ms = trace.anchor.offset_ns(clock.mono_ns()) / 1e6
    document = close(trace)
    figures = document["timeline"]
    assert figures["stages"]["turn_total_ms"] <= seen_ms
    assert figures["stream_end_ms"] == figures["last_chunk_ms"]
    assert figures["completed_ms"] == max(document["delivery"]["messages"][0]["accepted_ms"], figures["last_chunk_ms"])
    assert figures["stages"]["unaccounted_ms"] >= 0
    assert (document["ending"], document["error_stage"], document["error_message"]) == (
        "interrupted",
        "interrupted",
        DIED,
    )
    assert [message["status"] for message in document["delivery"]["messages"]] == ["accepted", "not_sent"]
    assert document["streaming_error"]["partial_content"] == "".join(CHUNKS)


def test_a_turn_that_goes_on_ends_when_that_is_known(tracer, clock, close):
    trace = open_turn(tracer)
    tell_stream(trace, clock)
    document = close(trace, note="it goes on", is_resumed=True)
    assert document["timeline"]["completed_ms"] >= DOWN_MS
    assert document["timeline"]["stream_end_ms"] == document["timeline"]["last_chunk_ms"]
    assert (document["delivery"]["messages"], document["error_message"]) == ([], "it goes on")


def test_a_turn_that_waited_in_its_queue_says_no_more_than_that(tracer, clock, close):
    trace = open_turn(tracer)
    document = close(trace)
    stages = ("agent_request", "streaming_request", "first_token", "streaming_error", "agent_response")
    assert [document[stage] for stage in stages] == [None] * len(stages)
    assert (document["streaming_chunks"], document["delivery"]["messages"]) == ([], [])
    assert document["timeline"]["stages"]["turn_total_ms"] == 0


def test_text_of_a_request_that_is_not_on_record_is_one_chunk_at_the_moment_its_message_was_queued(
    tracer, clock, close
):
    """The message was stored before it was sent, the request a moment after it was made: the kill fell in between."""
    trace = open_turn(tracer)
    clock.advance_ms(190)
    first, *_ = pieces_of(CHUNKS)
    document = close(trace, [outbox(trace, clock, 0, first)])
    assert document["streaming_chunks"] == [
        {
            "chunk_index": 0,
            "content": "".join(CHUNKS)[: first.end],
            "size": first.end,
            "offset_ms": 190.0,
            "event_type": RECOVERED,
        }
    ]
    assert document["timeline"]["completed_ms"] == 190.0
    assert [(message["first_chunk"], message["text"]) for message in document["delivery"]["messages"]] == [
        (0, first.text)
    ]


def test_closing_a_trace_again_adds_only_what_it_does_not_have(tracer, store, clock, close):
    """The process that recovered it died as well."""
    trace = open_turn(tracer)
    tell_stream(trace, clock)
    pieces = pieces_of(CHUNKS)
    rows = [outbox(trace, clock, index, piece) for index, piece in enumerate(pieces)]
    once = close(trace, rows[:1], is_resumed=True)
    again = close(trace, rows, note="again", is_resumed=True, down_ms=1_000)
    assert [message["index"] for message in once["delivery"]["messages"]] == [0]
    assert [message["index"] for message in again["delivery"]["messages"]] == list(range(len(pieces)))
    assert again["error_message"] == "again"
    assert check_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id)).disagreements == []
    assert sum(row.stage == "streaming_error" for row in store.get_payloads(trace.trace_id)) == 1
