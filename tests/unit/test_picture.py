"""The terminal's picture of a trace, compared whole."""

from io import StringIO

from rich.console import Console

from omni.cli.picture import draw_document, draw_stream
from omni.clock import Anchor
from omni.ports import TraceRow
from omni.tracing.document import delivery_document, timeline_document
from omni.tracing.events import (
    AgentRequested,
    ChunkReceived,
    FirstTokenSeen,
    MessageSettled,
    ReceiptSeen,
    StreamCompleted,
    StreamFailed,
    TurnEnded,
)
from omni.tracing.summary import headline
from omni.tracing.timeline import build_timeline

MS = 1_000_000


def document(events):
    row = TraceRow(trace_id="5f2c0000", instance_name="shop", status="completed")
    timeline = build_timeline(row.trace_id, Anchor(0, 0), events)
    chunks = [
        {"chunk_index": chunk.index, "content": chunk.text, "size": len(chunk.text), "offset_ms": chunk.mono_ns / MS}
        for chunk in timeline.chunks
    ]
    return {
        "trace_id": row.trace_id,
        "instance_name": row.instance_name,
        "status": row.status,
        "ending": timeline.ending,
        "error_stage": timeline.error_stage,
        "error_message": timeline.error_message,
        "headline": headline(timeline),
        "streaming_chunks": chunks,
        "delivery": delivery_document(timeline),
        "timeline": timeline_document(timeline),
    }


def joke():
    texts = ["Why do programmers prefer dark mode?", "\n\n", "Because light ", "attracts bugs! ", "🐛"]
    yield AgentRequested(mono_ns=0, payload={}, is_streaming=True)
    yield FirstTokenSeen(mono_ns=150 * MS, content=texts[0])
    for index, text in enumerate(texts):
        yield ChunkReceived((150 + 60 * index) * MS, index, text)
    yield StreamCompleted(mono_ns=450 * MS, final_content="".join(texts))
    for index, (queued, accepted, text) in enumerate([(210, 240, texts[0]), (450, 600, "".join(texts[2:]))]):
        yield MessageSettled(
            mono_ns=accepted * MS,
            index=index,
            recipient="x",
            text=text,
            status="accepted",
            queued_ns=queued * MS,
            accepted_ns=accepted * MS,
            key_id=f"K{index}",
            first_chunk=index * 2,
            last_chunk=index * 3 + 1,
        )
    yield TurnEnded(mono_ns=600 * MS, ending="completed")


def test_stream_is_drawn_with_its_gaps_and_messages():
    lines = [line.plain.rstrip() for line in draw_stream(document(joke()), 41)]
    assert lines == [
        "            0                   300            600 ms",
        "stream      ▸·········█···▁···▄···▄···▁···▪",
        "message 1                 ◆━●",
        "message 2                                 ◆━━━━━━━━━●",
        "            ▸ request  ▁█ chunks by size  ▪ end",
        "            ◆ queued  ● accepted  longest gap 60 ms",
    ]


def receipts(*told):
    for key_id, status, at_ms in told:
        yield ReceiptSeen(mono_ns=at_ms * MS, key_id=key_id, status=status)


def test_receipts_are_drawn_behind_the_messages_they_confirm():
    """Two columns may not hide a mark: each stands in one of its own, in the order it happened."""
    told = [("K0", "delivered", 450), ("K0", "read", 800), ("K1", "delivered", 800), ("K1", "read", 800)]
    lines = [line.plain.rstrip() for line in draw_stream(document([*joke(), *receipts(*told)]), 41)]
    assert lines == [
        "            0                   400            800 ms",
        "stream      ▸······█··▁··▄··▄··▁··▪",
        "message 1             ◆━●─────────✓·················◉",
        "message 2                         ◆━━━━━━━●────────✓◉",
        "            ▸ request  ▁█ chunks by size  ▪ end",
        "            ◆ queued  ● accepted  ✓ delivered  ◉ read",
        "            longest gap 60 ms",
    ]


def test_a_receipt_days_later_leaves_the_stream_its_room():
    told = [("K0", "delivered", 700), ("K0", "read", 30 * 86_400_000), ("K1", "delivered", 86_400_000)]
    lines = [line.plain.rstrip() for line in draw_stream(document([*joke(), *receipts(*told)]), 41)]
    assert lines[:4] == [
        "            0                   350            700 ms",
        "stream      ▸·······█···▁··▄··▄···▁··▪",
        "message 1               ◆●─────────────────────────✓→",
        "message 2                            ◆━━━━━━━━●─────→",
    ]


def test_the_table_tells_when_each_message_was_delivered_and_read():
    told = [("K0", "delivered", 450), ("K0", "read", 30 * 86_400_000), ("K1", "delivered", 7_300_000)]
    console = Console(width=112, record=True, file=StringIO())
    draw_document(document([*joke(), *receipts(*told)]), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[-3:] == [
        "message  chunks    queued  accepted  delivered    read  status     text",
        "      1     0-1  210.0 ms  240.0 ms   450.0 ms  30.0 d  read       Why do programmers prefer…",
        "      2     2-4  450.0 ms  600.0 ms      2.0 h       ?  delivered  Because light attracts bu…",
    ]
    assert max(len(line) for line in lines) <= 112


def test_a_terminal_without_room_for_every_column_gets_a_line_for_the_times():
    console = Console(width=80, record=True, file=StringIO())
    draw_document(document([*joke(), *receipts(("K0", "delivered", 450), ("K0", "read", 800))]), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[-7:] == [
        "message 1  read",
        "210.0 ms to 240.0 ms, delivered 450.0 ms, read 800.0 ms",
        "Why do programmers prefer dark mode?",
        "",
        "message 2  accepted",
        "450.0 ms to 600.0 ms",
        "Because light attracts bugs! 🐛",
    ]


def test_whole_trace_fits_the_terminal():
    console = Console(width=100, record=True, file=StringIO())
    draw_document(document(joke()), console)
    text = console.export_text()
    assert "streamed in 450 ms: 68 characters in 5 chunks, first token after 150 ms, 2 messages accepted" in text
    assert "0.0 ms    150.0 ms  300.0 ms       150.0 ms       0.0 ms    600.0 ms" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_failed_stream_names_stage_and_cause():
    events = [
        AgentRequested(mono_ns=0, payload={}, is_streaming=True),
        StreamFailed(
            mono_ns=80 * MS,
            ending="timeout",
            error_message="silence",
            error_type="AgentTimeout",
            error_stage="streaming_error",
        ),
        TurnEnded(mono_ns=90 * MS, ending="timeout", error_message="silence", error_stage="streaming_error"),
    ]
    told = document(events)
    assert told["headline"] == (
        "timeout at streaming_error; streamed in 80 ms: 0 characters in 0 chunks, no text came, 0 messages accepted"
    )
    assert draw_stream(document([]), 40) == []


def test_status_of_an_unsent_message_stays_inside_the_picture():
    events = [
        AgentRequested(mono_ns=0, payload={}, is_streaming=True),
        ChunkReceived(100 * MS, 0, "Half a par"),
        MessageSettled(
            mono_ns=200 * MS,
            index=0,
            recipient="x",
            text="Half a par",
            status="not_sent",
            queued_ns=200 * MS,
            first_chunk=0,
            last_chunk=0,
        ),
        TurnEnded(mono_ns=200 * MS, ending="cancelled"),
    ]
    lines = [line.plain.rstrip() for line in draw_stream(document(events), 30)]
    assert lines[2] == "message 1".ljust(32) + "not_sent ◆"


def test_a_turn_that_never_asked_has_no_request_in_its_picture():
    told = document([TurnEnded(mono_ns=500 * MS, ending="interrupted")])
    lines = [line.plain.rstrip() for line in draw_stream(told, 30)]
    assert lines[1] == "stream      not asked"


def test_narrow_terminal_shows_every_figure_whole():
    console = Console(width=40, record=True, file=StringIO())
    draw_document(document(joke()), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[-14:] == [
        "queue            0.0 ms",
        "agent wait     150.0 ms",
        "stream         300.0 ms",
        "delivery tail  150.0 ms",
        "unaccounted      0.0 ms",
        "turn total     600.0 ms",
        "",
        "message 1  accepted",
        "210.0 ms to 240.0 ms",
        "Why do programmers prefer dark mode?",
        "",
        "message 2  accepted",
        "450.0 ms to 600.0 ms",
        "Because light attracts bugs! 🐛",
    ]
    # The sentence is one long line, which the terminal wraps.
    assert max(len(line) for line in lines if not line.startswith("streamed in")) <= 40
