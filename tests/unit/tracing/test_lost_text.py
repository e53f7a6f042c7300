"""Text that is known from messages only, because the process died before its chunks were stored."""

from datetime import UTC, datetime

from omni.records import OutboxRecord
from omni.tracing.events import ChunkReceived
from omni.tracing.lost_text import RECOVERED, chunk_range, missing_chunk


def row(index, text, start, end, *, is_notice=False):
    return OutboxRecord(
        message_uid=f"a/{index}",
        answer_id="a",
        trace_id="a",
        instance_name="shop",
        chat_key="c",
        recipient="c",
        index=index,
        text=text,
        text_sha256="",
        start=start,
        end=end,
        is_notice=is_notice,
        queued_at=datetime(2026, 11, 22, tzinfo=UTC),
    )


def chunks(*texts):
    return [ChunkReceived(index, index, text, "RunContent") for index, text in enumerate(texts)]


def test_nothing_is_missing_when_the_chunks_reach_as_far_as_the_messages():
    assert missing_chunk(chunks("One.\n\n", "Tw"), [row(0, "One.", 0, 6)], at_ns=9) is None


def test_the_text_behind_the_stored_chunks_is_taken_from_the_messages():
    rows = [row(1, "Two.", 6, 12), row(0, "One.", 0, 6), row(2, "Sorry.", 12, 12, is_notice=True)]
    assert missing_chunk(chunks("On", "e.\n"), rows, at_ns=9) == ChunkReceived(9, 2, "\nTwo.\n\n", RECOVERED)


def test_without_any_stored_chunk_the_messages_are_all_there_is():
    assert missing_chunk([], [row(0, "One.", 0, 6)], at_ns=9) == ChunkReceived(9, 0, "One.\n\n", RECOVERED)


def test_text_behind_a_gap_is_not_put_in_the_gap():
    """A text that is gone, or a row that never was: what came behind it would be told in the wrong place."""
    rows = [row(0, "One.", 0, 6), row(1, None, 6, 12), row(2, "Three.", 12, 18)]
    assert missing_chunk([], rows, at_ns=9) == ChunkReceived(9, 0, "One.\n\n", RECOVERED)
    assert missing_chunk(chunks("One.\n\n"), [rows[2]], at_ns=9) is None


def test_a_range_is_told_in_chunks():
    parts = chunks("On", "e.\n\n", "", "Two.")
    assert chunk_range(parts, 0, 6) == (0, 1)
    assert chunk_range(parts, 6, 10) == (3, 3)
    assert chunk_range(parts, 20, 30) == (None, None)
