"""Verify derives everything anew: what a healthy turn stored agrees, whatever the text and the way it was cut."""

from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.support.told_turns import (
    CHUNKS,
    RECIPIENT,
    open_turn,
    pieces_of,
    tell_answer,
    tell_broken_answer,
    tell_piece,
    tell_stream,
)

from omni.channels.whatsapp.splitter import ParagraphSplitter
from omni.clock import wall_datetime
from omni.ports import PayloadRow, TraceRow
from omni.records import OutboxRecord
from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore
from omni.tracing.disagreements import KINDS, Disagreement
from omni.tracing.interrupted import close_interrupted
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.verify import TraceReport, check_trace
from omni.tracing.verify_messages import is_text_of_range, shows_nothing
from omni.tracing.verify_stream import Losses

CODE = "Veja:\n\n```python\n" + "".join(f"preco_{number} = {number}\n" for number in range(12)) + "```\n\nPronto."


def report_on(tracer, store, trace):
    assert tracer.flush()
    return check_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id))


def agreeing(trace, **more):
    return TraceReport(trace_id=trace.trace_id, state="closed", disagreements=[], **more)


def test_an_answered_turn_agrees_with_itself(tracer, store, clock):
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert report_on(tracer, store, trace) == agreeing(trace)


@pytest.mark.parametrize("ending", ["error", "incomplete", "paused", "cancelled", "timeout"])
def test_a_broken_turn_agrees_with_itself(tracer, store, clock, ending):
    """Partial text, its messages and a notice are as verifiable as a whole answer."""
    trace = open_turn(tracer)
    tell_broken_answer(trace, clock, ending=ending)
    assert report_on(tracer, store, trace) == agreeing(trace)


def test_a_broken_turn_without_any_text_agrees_with_itself(tracer, store, clock):
    trace = open_turn(tracer)
    tell_broken_answer(trace, clock, [])
    assert report_on(tracer, store, trace) == agreeing(trace)


def test_messages_that_were_not_sent_keep_the_answer_whole(tracer, store, clock):
    """Text generated is text sent plus text explicitly not sent."""
    trace = open_turn(tracer)
    tell_answer(trace, clock, status_of=lambda index: ("accepted", "failed", "not_sent")[index])
    assert report_on(tracer, store, trace) == agreeing(trace)


def test_a_code_block_that_was_cut_and_reopened_agrees(tracer, store, clock):
    trace = open_turn(tracer)
    tell_answer(trace, clock, [CODE[at : at + 7] for at in range(0, len(CODE), 7)], max_chars=64)
    texts = [row.payload["text"] for row in store.get_payloads(trace.trace_id) if row.stage == "evolution_send"]
    assert report_on(tracer, store, trace) == agreeing(trace)
    texts = [row.payload["text"] for row in store.get_payloads(trace.trace_id) if row.stage == "evolution_send"]
    assert sum(text.startswith("```python\n") for text in texts) > 2


def test_a_running_turn_is_open_and_its_segments_agree(tracer, store, clock):
    trace = open_turn(tracer)
    tell_stream(trace, clock, CHUNKS[:2])
    assert tracer.flush()
    for index, chunk in enumerate(CHUNKS[2:], start=2):
        trace.log_streaming_chunk(chunk, index)
    report = report_on(tracer, store, trace)
    assert report == TraceReport(trace_id=trace.trace_id, state="open", disagreements=[])
    assert sum(row.stage == "streaming_chunks" for row in store.get_payloads(trace.trace_id)) == 2


def test_a_trace_written_before_ranges_were_kept_is_not_blamed_for_it(tracer, store, clock):
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    for row in store.get_payloads(trace.trace_id):
        if row.stage == "evolution_send":
            del row.payload["start"], row.payload["end"]
    assert report_on(tracer, store, trace) == agreeing(trace)


class NoRoom:
    """A spool that is nearly full: it takes no bodies of chunks."""

    is_database_up, sheds_chunks, num_spooled, spool_bytes, num_lost = False, True, 1, 1, 0


def test_chunks_that_were_shed_for_want_of_room_are_told_and_no_disagreement(store, clock, settings):
    """The recorder left all of them out; their number stands in the trace, and the answer whole in its end."""
    recorder = Recorder(store, clock=clock, settings=settings, tiers=NoRoom())
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    recorder.start()
    assert recorder.stop()
    assert report_on(tracer, store, trace) == agreeing(trace, losses=Losses(dropped_chunks=6))


def test_chunks_that_were_never_noted_are_told_and_no_disagreement(tracer, store, clock):
    """Two of six were shed when too much waited: the others are in the answer in their order, and the sums hold."""
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    payloads = [shed(row) for row in store.get_payloads(trace.trace_id)]
    loss = PayloadRow(
        id=99,
        trace_id=trace.trace_id,
        stage="streaming_chunks",
        payload_type="error",
        payload={"dropped_chunks": 2, "lost_rows": 0, "omni": {}},
        timestamp=None,
    )
    report = check_trace(store.get_trace(trace.trace_id), [*payloads, loss])
    assert report == agreeing(trace, losses=Losses(dropped_chunks=2))


def shed(row):
    """The row as it is when the records of chunks 1 and 4 were shed."""
    if row.stage == "streaming_chunks":
        kept = [0, 2, 3, 5]
        row.payload.update(
            count=4,
            sizes=[len(CHUNKS[index]) for index in kept],
            indexes=kept,
            gaps_us=[60_000, 30_000, 60_000],
            event_types=[["RunContent", 4]],
            text="".join(CHUNKS[index] for index in kept),
        )
        del row.payload["text_stage"], row.payload["text_sha256"]
    if row.stage == "streaming_complete":
        row.payload["omni"]["dropped_chunks"] = 2
        row.payload["content_verified"] = None
    return row


def test_a_trace_of_which_only_the_row_could_be_kept_is_told_and_no_disagreement(tracer, store, clock):
    """Every payload was lost and says so; what the row says cannot be checked and is not doubted."""
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    loss = store.get_payloads(trace.trace_id)[0]
    loss = structs.replace(
        loss,
        stage="streaming_chunks",
        payload_type="error",
        payload={"dropped_chunks": 6, "lost_rows": 12, "omni": {}},
    )
    report = check_trace(store.get_trace(trace.trace_id), [loss])
    assert report == agreeing(trace, losses=Losses(dropped_chunks=6, lost_rows=12))


def test_a_row_without_any_payload_is_open_while_nobody_closed_it():
    row = TraceRow(trace_id="t", status="received")
    assert check_trace(row, []) == TraceReport(trace_id="t", state="open", disagreements=[])


def test_what_cannot_even_be_read_is_a_disagreement_and_no_crash(tracer, store, clock):
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    for row in store.get_payloads(trace.trace_id):
        if row.stage == "streaming_complete":
            row.payload["omni"]["usage"] = {"input_tokens": 1, "no_such_field": 2}
    report = report_on(tracer, store, trace)
    assert report.disagreements == [
        Disagreement(kind="payload_damaged", where="trace", stored="TypeError", derived="payloads that can be read")
    ]


def test_no_disagreement_quotes_anybody(tracer, store, clock):
    """Its output goes into tickets and chats: lengths and positions, never words."""
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    row = store.get_trace(trace.trace_id)
    for payload in store.get_payloads(trace.trace_id):
        for key in ("text", "final_content", "message"):
            if key in payload.payload:
                payload.payload[key] = "segredo do cliente"
    found = check_trace(row, store.get_payloads(trace.trace_id)).disagreements
    assert len(found) >= 4
    told = " ".join(one.sentence for one in found)
    assert [word for word in ("segredo", "cliente", "pedido", "Bom", "Maria", "55119") if word in told] == []


def test_every_kind_of_disagreement_is_explained():
    page = Path(__file__).parents[3] / "docs" / "howto" / "nothing-lost.md"
    text = page.read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []


texts = st.text(alphabet=st.sampled_from("ab  \n\n\n`~#.!é🚚\u200b\u00ad\t-[](https://"), max_size=240) | st.lists(
    st.sampled_from(
        ["```\n", "```py\n", "~~~\n", "  ```\n", "code line\n", "\n", "a ", "\u200b", "https://x.y/z ", "."]
    ),
    max_size=40,
).map("".join)


@given(text=texts, max_chars=st.integers(16, 60))
def test_every_message_the_splitter_makes_is_its_range_of_the_answer(text, max_chars):
    """The second statement of the rule accepts whatever the first one produces: no false alarm on any text."""
    pieces = pieces_of([text], max_chars=max_chars)
    assert [piece for piece in pieces if not is_text_of_range(piece.text, text, piece.start, piece.end)] == []
    edges = [0, *(edge for piece in pieces for edge in (piece.start, piece.end))]
    assert all(earlier == later for earlier, later in list(pairwise(edges))[::2])
    assert shows_nothing(text[edges[-1] :])


@given(text=texts, data=st.data())
def test_a_message_with_a_visible_character_missing_is_not_its_range(text, data):
    pieces = pieces_of([text], max_chars=40)
    if not pieces:
        return
    piece = data.draw(st.sampled_from(pieces))
    visible = [at for at, character in enumerate(piece.text) if not shows_nothing(character) and character not in "`~"]
    if not visible:
        return
    at = data.draw(st.sampled_from(visible))
    damaged = piece.text[:at] + piece.text[at + 1 :]
    # Deleting one of a run of equal characters at an edge can give another true part; those aside, it never does.
    if damaged.strip() and damaged not in text[piece.start : piece.end]:
        assert not is_text_of_range(damaged, text, piece.start, piece.end)


@given(
    chunks=st.lists(st.text(alphabet="ab \n.é🚚`", max_size=12), max_size=20),
    max_chars=st.integers(16, 40),
)
def test_however_an_answer_is_divided_its_trace_agrees_with_itself(chunks, max_chars):
    """Chunks, messages and their ranges of any answer fit together in what is stored."""
    clock, store = FakeClock(), MemoryStore()
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1))
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    tell_answer(trace, clock, chunks, max_chars=max_chars)
    recorder.start()
    assert recorder.stop()
    assert report_on(tracer, store, trace) == agreeing(trace)


def outbox_row(trace, index, piece, *, state, clock):
    at = wall_datetime(clock.wall_ns())
    return OutboxRecord(
        message_uid=f"uid-{index}",
        answer_id=trace.trace_id,
        trace_id=trace.trace_id,
        instance_name="shop",
        chat_key=f"{RECIPIENT}@s.whatsapp.net",
        recipient=RECIPIENT,
        index=index,
        text=piece.text,
        text_sha256=sha256(piece.text.encode()).hexdigest(),
        start=piece.start,
        end=piece.end,
        state=state,
        attempts=1 if state == "accepted" else 0,
        queued_at=at,
        started_at=at if state == "accepted" else None,
        ended_at=at if state == "accepted" else None,
        key_id=f"3EB0{index:04}" if state == "accepted" else None,
        status_code=201 if state == "accepted" else None,
    )


@given(num_chunks=st.integers(0, len(CHUNKS)), num_on_trace=st.integers(0, 3), num_accepted=st.integers(0, 3))
def test_a_trace_closed_after_the_death_of_its_process_agrees_with_itself(num_chunks, num_on_trace, num_accepted):
    """Wherever the kill fell: the text received so far, what the outbox knows beyond the trace, and the rest as not sent."""
    clock, store = FakeClock(), MemoryStore()
    settings = Settings(_env_file=None, trace_flush_ms=1)
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    recorder.start()
    trace = open_turn(tracer)
    chunks = CHUNKS[:num_chunks]
    tell_stream(trace, clock, chunks)
    splitter = ParagraphSplitter()
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    for index, piece in enumerate(pieces[:num_on_trace]):
        tell_piece(trace, clock, chunks, index, piece)
    assert recorder.stop()

    rows = [
        outbox_row(trace, index, piece, state="accepted" if index < num_accepted else "queued", clock=clock)
        for index, piece in enumerate(pieces)
    ]
    clock.advance_ms(90_000)
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    recorder.start()
    reopened = tracer.reopen(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id))
    close_interrupted(reopened, rows)
    assert recorder.stop()
    assert report_on(tracer, store, trace) == agreeing(trace)
