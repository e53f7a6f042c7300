"""A stored trace that is damaged, in every way verify knows, is found out, and an undamaged one is not; on both databases."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from tests.support.told_turns import CHUNKS, open_turn, tell_answer, tell_broken_answer, tell_stream

from omni.ports import PayloadRow
from omni.settings import Settings
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.payload_codec import decode_payload, encode_payload
from omni.store.queries import SqlTraceReader
from omni.store.schema import message_traces, trace_payloads
from omni.store.writes import SqlTraceSink
from omni.testing import FakeClock
from omni.tracing.disagreements import KINDS
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.verify import TraceReport, check_trace

CONTENT = "".join(CHUNKS)
Payload = dict[str, Any]
Damage = Callable[["StoredTurn"], None]


class StoredTurn:
    """One trace in a database, and the means to damage it there."""

    def __init__(self, database: Database, trace_id: str) -> None:
        self._database = database
        self._reader = SqlTraceReader(database)
        self.trace_id = trace_id

    def report(self) -> TraceReport:
        row = self._reader.get_trace(self.trace_id)
        assert row is not None
        return check_trace(row, self.payloads())

    def payloads(self) -> list[PayloadRow]:
        return self._reader.get_payloads(self.trace_id)

    def rows(self, stage: str) -> list[int]:
        return [row.id for row in self.payloads() if row.stage == stage]

    def change(self, stage: str, spoil: Callable[[Payload], object], *, nth: int = 0) -> None:
        """Rewrite the payload of the nth row of a stage."""
        row_id = self.rows(stage)[nth]
        packed = trace_payloads.c.payload_compressed
        with self._database.writing("damaging a payload") as connection:
            payload = decode_payload(connection.scalar(select(packed).where(trace_payloads.c.id == row_id))).payload
            spoil(payload)
            connection.execute(
                update(trace_payloads)
                .where(trace_payloads.c.id == row_id)
                .values(payload_compressed=encode_payload(payload).text)
            )

    def put(self, stage: str, key: str, value: object, *, nth: int = 0) -> None:
        """Set one key of a payload; dots lead inside."""
        *path, last = key.split(".")

        def spoil(payload: Payload) -> None:
            for name in path:
                payload = payload[name]
            payload[last] = value

        self.change(stage, spoil, nth=nth)

    def scribble(self, stage: str, compressed: str | None, *, nth: int = 0) -> None:
        """Overwrite what is stored of a payload with something else."""
        row_id = self.rows(stage)[nth]
        with self._database.writing("damaging a payload") as connection:
            connection.execute(
                update(trace_payloads).where(trace_payloads.c.id == row_id).values(payload_compressed=compressed)
            )

    def lose(self, stage: str, *, nth: int = 0) -> None:
        """Remove one row."""
        row_id = self.rows(stage)[nth]
        with self._database.writing("losing a payload") as connection:
            connection.execute(delete(trace_payloads).where(trace_payloads.c.id == row_id))

    def lose_all(self, stage: str) -> None:
        """Remove every row of a stage."""
        for _ in self.rows(stage):
            self.lose(stage)

    def repeat(self, stage: str, *, nth: int = 0) -> None:
        """Store one row a second time, as a batch that is applied twice would."""
        row_id = self.rows(stage)[nth]
        names = [column.name for column in trace_payloads.columns if column.name != "id"]
        columns = [trace_payloads.c[name] for name in names]
        with self._database.writing("repeating a payload") as connection:
            row = connection.execute(select(*columns).where(trace_payloads.c.id == row_id)).one()
            connection.execute(insert(trace_payloads).values(dict(zip(names, row, strict=True))))

    def add(self, stage: str, payload: Payload, *, payload_type: str = "stream_event") -> None:
        """Store a row that nobody wrote."""
        with self._database.writing("adding a payload") as connection:
            connection.execute(
                insert(trace_payloads).values(
                    trace_id=self.trace_id,
                    stage=stage,
                    payload_type=payload_type,
                    payload_compressed=encode_payload(payload).text,
                )
            )

    def set(self, **columns: object) -> None:
        """Set columns of the trace's row."""
        with self._database.writing("damaging a trace") as connection:
            connection.execute(
                update(message_traces).where(message_traces.c.trace_id == self.trace_id).values(**columns)
            )


@pytest.fixture
def tracer(database: Database, clock: FakeClock) -> Iterator[Tracer]:
    SqlInstanceStore(database).create({"name": "shop"})
    recorder = Recorder(
        SqlTraceSink(database),
        clock=clock,
        settings=Settings(_env_file=None, trace_flush_ms=1),
    )
    recorder.start()
    yield Tracer(clock=clock, recorder=recorder, reader=SqlTraceReader(database))
    assert recorder.stop()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def answered(tracer: Tracer, database: Database, clock: FakeClock) -> StoredTurn:
    """A whole answer: six chunks, three messages, all accepted."""
    trace = open_turn(tracer)
    tell_answer(trace, clock)
    assert tracer.flush()
    return StoredTurn(database, trace.trace_id)


@pytest.fixture
def broken(tracer: Tracer, database: Database, clock: FakeClock) -> StoredTurn:
    """The same text, after which the stream broke; three messages and a notice."""
    trace = open_turn(tracer)
    tell_broken_answer(trace, clock)
    assert tracer.flush()
    return StoredTurn(database, trace.trace_id)


@pytest.fixture
def running(tracer: Tracer, database: Database, clock: FakeClock) -> StoredTurn:
    """The same stream, all of it stored in segments, with no end yet."""
    trace = open_turn(tracer)
    tell_stream(trace, clock, CHUNKS[:3])
    assert tracer.flush()
    for index, chunk in enumerate(CHUNKS[3:], start=3):
        trace.log_streaming_chunk(chunk, index)
    assert tracer.flush()
    return StoredTurn(database, trace.trace_id)


def found(report: TraceReport) -> list[tuple[str, str]]:
    """What was named, without the numbers of rows."""
    return [(one.kind, one.where.split(" (row")[0]) for one in report.disagreements]


def own_text(payload: Payload) -> None:
    """Let the columns hold their text themselves, as they do while a stream runs."""
    del payload["text_stage"], payload["text_sha256"]
    payload["text"] = CONTENT


def swap_first_chunks(payload: Payload) -> None:
    own_text(payload)
    payload["text"] = CHUNKS[1] + CHUNKS[0] + "".join(CHUNKS[2:])
    payload["sizes"][:2] = [len(CHUNKS[1]), len(CHUNKS[0])]


def lose_a_chunk(payload: Payload) -> None:
    """Chunk 1 is gone from the columns, and nobody says so."""
    own_text(payload)
    payload.update(count=5, indexes=[0, 2, 3, 4, 5], text=CONTENT.replace(CHUNKS[1], "", 1))
    del payload["sizes"][1], payload["gaps_us"][1]
    payload["event_types"] = [["RunContent", 5]]


def say_indexes(indexes: list[int]) -> Callable[[Payload], None]:
    return lambda payload: payload.update(indexes=indexes)


DAMAGES: dict[str, tuple[Damage, set[tuple[str, str]]]] = {
    "a payload is no base64": (
        lambda turn: turn.scribble("streaming_start", "!!"),
        {("payload_damaged", "streaming_start")},
    ),
    "a payload is cut short": (
        lambda turn: turn.scribble("first_token", encode_payload({"first_content": "Bom"}).text[:16]),
        {("payload_damaged", "first_token")},
    ),
    "a payload is empty": (
        lambda turn: turn.scribble("agent_request", None),
        {("payload_damaged", "agent_request"), ("figure", "agent_request_at")},
    ),
    "a payload is another value": (
        lambda turn: turn.scribble("streaming_start", encode_payload([1, 2]).text),
        {("payload_damaged", "streaming_start")},
    ),
    "a message's text is no text": (
        lambda turn: turn.put("evolution_send", "text", 12),
        {("payload_damaged", "evolution_send"), ("message_index", "message 1"), ("message_range", "message 1")},
    ),
    "a message lost its bookkeeping": (
        lambda turn: turn.change("evolution_send", lambda payload: payload.pop("omni"), nth=1),
        {("payload_damaged", "evolution_send"), ("message_index", "message 2"), ("message_range", "message 2")},
    ),
    "the final content is no text": (
        lambda turn: turn.put("streaming_complete", "final_content", {"unserializable": "str"}),
        {("payload_damaged", "streaming_complete")},
    ),
    "the chunks are gone": (
        lambda turn: turn.lose("streaming_chunks"),
        {("chunk_count", "streaming_complete.total_chunks")},
    ),
    "the chunks are there twice": (
        lambda turn: turn.repeat("streaming_chunks"),
        {
            ("chunk_index", "streaming_chunks"),
            ("chunk_offset", "streaming_chunks"),
            ("chunk_count", "streaming_complete.total_chunks"),
            ("content", "streaming_complete.final_content"),
        },
    ),
    "a chunk is gone": (
        lambda turn: turn.change("streaming_chunks", lose_a_chunk),
        {
            ("chunk_index", "streaming_chunks"),
            ("chunk_count", "streaming_complete.total_chunks"),
            ("content", "streaming_complete.final_content"),
        },
    ),
    "two chunks changed places": (
        lambda turn: turn.change("streaming_chunks", swap_first_chunks),
        {("content", "streaming_complete.final_content")},
    ),
    "a size is wrong": (
        lambda turn: turn.change("streaming_chunks", lambda payload: payload["sizes"].__setitem__(0, 1)),
        {("chunk_columns", "streaming_chunks")},
    ),
    "a size is below zero": (
        lambda turn: turn.change("streaming_chunks", lambda payload: payload["sizes"].__setitem__(3, -1)),
        {("chunk_columns", "streaming_chunks")},
    ),
    "a size is no number": (
        lambda turn: turn.change("streaming_chunks", lambda payload: payload["sizes"].__setitem__(0, "9")),
        {("chunk_columns", "streaming_chunks")},
    ),
    "a gap is missing": (
        lambda turn: turn.change("streaming_chunks", lambda payload: payload["gaps_us"].pop()),
        {("chunk_columns", "streaming_chunks")},
    ),
    "the event types do not reach": (
        lambda turn: turn.put("streaming_chunks", "event_types", [["RunContent", 5]]),
        {("chunk_columns", "streaming_chunks")},
    ),
    "the event types are unreadable": (
        lambda turn: turn.put("streaming_chunks", "event_types", [["RunContent"]]),
        {("chunk_columns", "streaming_chunks")},
    ),
    "the columns have another version": (
        lambda turn: turn.put("streaming_chunks", "version", 9),
        {("chunk_columns", "streaming_chunks")},
    ),
    "the columns have no beginning": (
        lambda turn: turn.put("streaming_chunks", "first_offset_us", None),
        {("chunk_columns", "streaming_chunks")},
    ),
    "an index is skipped": (
        lambda turn: turn.change("streaming_chunks", say_indexes([0, 1, 2, 4, 5, 6])),
        {("chunk_index", "streaming_chunks")},
    ),
    "an index is repeated": (
        lambda turn: turn.change("streaming_chunks", say_indexes([0, 1, 1, 2, 3, 4])),
        {("chunk_index", "streaming_chunks")},
    ),
    "the count starts at one": (
        lambda turn: turn.put("streaming_chunks", "first_index", 1),
        {("chunk_index", "streaming_chunks")},
    ),
    "time runs back": (
        lambda turn: turn.change("streaming_chunks", lambda payload: payload["gaps_us"].__setitem__(2, -1)),
        {("chunk_offset", "streaming_chunks")},
    ),
    "the digest is another's": (
        lambda turn: turn.put("streaming_chunks", "text_sha256", "0" * 64),
        {("content_digest", "streaming_chunks")},
    ),
    "a character of the answer changed": (
        lambda turn: turn.put("streaming_complete", "final_content", CONTENT.replace("saiu", "caiu")),
        {("content_digest", "streaming_chunks"), ("content", "agent_response.message"), ("message_text", "message 0")},
    ),
    "the answer lost its end": (
        lambda turn: turn.put("streaming_complete", "final_content", CONTENT[:-10]),
        {
            ("content_digest", "streaming_chunks"),
            ("content", "agent_response.message"),
            ("figure", "streaming_complete.total_content_length"),
            ("figure", "agent_response_length"),
            ("message_range", "message 2"),
        },
    ),
    "the stream's end is gone": (
        lambda turn: turn.lose("streaming_complete"),
        {
            ("stage_missing", "streaming_chunks"),
            ("stage_missing", "agent_response"),
            ("figure", "agent_response_at"),
            ("figure", "agent_response_success"),
            ("figure", "agent_response_length"),
        },
    ),
    "the stream ended twice": (
        lambda turn: turn.repeat("streaming_complete"),
        {("stage_repeated", "streaming_complete"), ("figure", "agent_tools_used")},
    ),
    "the number of chunks is wrong": (
        lambda turn: turn.put("streaming_complete", "total_chunks", 7),
        {
            ("chunk_count", "streaming_complete.total_chunks"),
            ("figure", "streaming_complete.streaming_events_count"),
            ("figure", "agent_response.metrics.total_chunks"),
        },
    ),
    "a loss is told that did not happen": (
        lambda turn: turn.add("streaming_chunks", {"dropped_chunks": 3, "omni": {}}, payload_type="error"),
        {("chunk_count", "streaming_complete.total_chunks")},
    ),
    "the verdict on the content is wrong": (
        lambda turn: turn.put("streaming_complete", "content_verified", False),
        {("figure", "streaming_complete.content_verified")},
    ),
    "the answer's length is wrong": (
        lambda turn: turn.put("streaming_complete", "total_content_length", 1),
        {("figure", "streaming_complete.total_content_length")},
    ),
    "a latency was edited": (
        lambda turn: turn.put("first_token", "first_token_latency_ms", 5),
        {("figure", "first_token.first_token_latency_ms")},
    ),
    "a time of the stream was edited": (
        lambda turn: turn.put("streaming_complete", "total_streaming_time_ms", 5),
        {("figure", "streaming_complete.total_streaming_time_ms")},
    ),
    "the response has other metrics": (
        lambda turn: turn.put("agent_response", "metrics.first_token_latency_ms", 0),
        {("figure", "agent_response.metrics.first_token_latency_ms")},
    ),
    "the response has another text": (
        lambda turn: turn.put("agent_response", "message", "outra coisa"),
        {("content", "agent_response.message")},
    ),
    "a message is gone": (
        lambda turn: turn.lose("evolution_send", nth=1),
        {("message_index", "message 2"), ("message_range", "message 2")},
    ),
    "the last message is gone": (
        lambda turn: turn.lose("evolution_send", nth=2),
        {("message_range", "messages"), ("figure", "evolution_send_at")},
    ),
    "all messages are gone": (
        lambda turn: turn.lose_all("evolution_send"),
        {("figure", "evolution_send_at"), ("figure", "evolution_success"), ("figure", "evolution_response_code")},
    ),
    "a message is there twice": (
        lambda turn: turn.repeat("evolution_send", nth=1),
        {("message_index", "message 1"), ("message_range", "message 1"), ("figure", "evolution_send_at")},
    ),
    "a message's text changed": (
        lambda turn: turn.put("evolution_send", "text", "Chega amanhã. 🚚", nth=1),
        {("message_text", "message 1")},
    ),
    "a message's text is gone": (
        lambda turn: turn.put("evolution_send", "text", "", nth=1),
        {("message_text", "message 1")},
    ),
    "a message begins too early": (
        lambda turn: turn.put("evolution_send", "start", 20, nth=1),
        {("message_range", "message 1"), ("message_text", "message 1"), ("message_chunks", "message 1")},
    ),
    "a message leaves a gap": (
        lambda turn: turn.put("evolution_send", "start", 28, nth=1),
        {("message_range", "message 1"), ("message_text", "message 1")},
    ),
    "a message's range is gone": (
        lambda turn: turn.change("evolution_send", lambda payload: payload.update(start=None, end=None), nth=1),
        {("message_range", "message 1")},
    ),
    "a message reaches beyond the answer": (
        lambda turn: turn.put("evolution_send", "end", 500, nth=2),
        {("message_range", "message 2")},
    ),
    "a message names other chunks": (
        lambda turn: turn.put("evolution_send", "first_chunk", 1),
        {("message_chunks", "message 0")},
    ),
    "a message of the answer calls itself a notice": (
        lambda turn: turn.put("evolution_send", "is_notice", True, nth=1),
        {("message_range", "message 1"), ("message_range", "message 2")},
    ),
    "messages overtook each other": (
        lambda turn: turn.put("evolution_send", "omni.accepted_us", 1, nth=2),
        {("message_order", "message 2")},
    ),
    "a message was not accepted after all": (
        lambda turn: turn.put("evolution_send", "omni.status", "failed", nth=1),
        {("ending", "status"), ("figure", "evolution_success")},
    ),
    "a receipt is another message's": (
        lambda turn: turn.add("message_receipt", {"key_id": "3EB0FFFF", "omni": {}}),
        {("receipt", "message_receipt")},
    ),
    "the row says another length": (
        lambda turn: turn.set(agent_response_length=0),
        {("figure", "agent_response_length")},
    ),
    "the row says another agent time": (
        lambda turn: turn.set(agent_processing_time_ms=5),
        {("figure", "agent_processing_time_ms")},
    ),
    "the row says another total": (
        lambda turn: turn.set(total_processing_time_ms=None),
        {("figure", "total_processing_time_ms")},
    ),
    "the row counts other tokens": (
        lambda turn: turn.set(agent_request_tokens=4, agent_response_tokens=9),
        {("figure", "agent_request_tokens"), ("figure", "agent_response_tokens")},
    ),
    "the row counts other tools": (
        lambda turn: turn.set(agent_tools_used=0),
        {("figure", "agent_tools_used")},
    ),
    "the row says that the agent failed": (
        lambda turn: turn.set(agent_response_success=False),
        {("figure", "agent_response_success")},
    ),
    "the row says that sending failed": (
        lambda turn: turn.set(evolution_success=False, evolution_response_code=500),
        {("figure", "evolution_success"), ("figure", "evolution_response_code")},
    ),
    "a completed turn has a cause of failure": (
        lambda turn: turn.set(error_stage="streaming_error", error_message="cause"),
        {("ending", "error_stage"), ("ending", "error_message")},
    ),
    "a closed turn has an open status": (
        lambda turn: turn.set(status="processing"),
        {("ending", "status")},
    ),
    "a closed turn has no end": (
        lambda turn: turn.set(completed_at=None),
        {("ending", "status")},
    ),
    "sending failed and every message was accepted": (
        lambda turn: turn.set(status="failed", error_stage="evolution_send"),
        {("ending", "error_stage")},
    ),
}  # fmt: skip

BROKEN_DAMAGES: dict[str, tuple[Damage, set[tuple[str, str]]]] = {
    "a broken turn calls itself completed": (
        lambda turn: turn.set(status="completed", error_stage=None, error_message=None),
        {("ending", "status")},
    ),
    "a broken stream says it completed": (
        lambda turn: turn.put("streaming_error", "ending", "completed"),
        {("ending", "streaming_error.ending")},
    ),
    "the partial text was cut": (
        lambda turn: turn.put("streaming_error", "partial_content", CONTENT[:200][:-10]),
        {("content_digest", "streaming_chunks"), ("message_range", "message 2"), ("figure", "agent_response_length")},
    ),
    "the number of chunks received is wrong": (
        lambda turn: turn.put("streaming_error", "chunks_received", 0),
        {("chunk_count", "streaming_error.chunks_received")},
    ),
    "a notice claims a part of the answer": (
        lambda turn: turn.put("evolution_send", "start", 0, nth=3),
        {("message_range", "message 3")},
    ),
    "the notice is gone and its place with it": (
        lambda turn: turn.lose("evolution_send", nth=3),
        {("figure", "evolution_send_at")},
    ),
}  # fmt: skip

RUNNING_DAMAGES: dict[str, tuple[Damage, set[tuple[str, str]]]] = {
    "a segment is there twice": (
        lambda turn: turn.repeat("streaming_chunks", nth=0),
        {("chunk_index", "streaming_chunks"), ("chunk_offset", "streaming_chunks")},
    ),
    "a segment is unreadable": (
        lambda turn: turn.scribble("streaming_chunks", "", nth=0),
        {("payload_damaged", "streaming_chunks")},
    ),
    "a segment lost a part of its text": (
        lambda turn: turn.put("streaming_chunks", "text", "Bom"),
        {("chunk_columns", "streaming_chunks")},
    ),
    "an open turn calls itself failed": (
        lambda turn: turn.set(status="failed"),
        {("ending", "status")},
    ),
}  # fmt: skip


def test_undamaged_turns_agree_with_themselves(answered: StoredTurn, broken: StoredTurn, running: StoredTurn) -> None:
    reports = [turn.report() for turn in (answered, broken, running)]
    assert [(report.state, found(report)) for report in reports] == [("closed", []), ("closed", []), ("open", [])]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_an_answered_turn_is_named(answered: StoredTurn, damage: str) -> None:
    spoil, expected = DAMAGES[damage]
    spoil(answered)
    assert set(found(answered.report())) == expected


@pytest.mark.parametrize("damage", BROKEN_DAMAGES)
def test_damage_to_a_broken_turn_is_named(broken: StoredTurn, damage: str) -> None:
    spoil, expected = BROKEN_DAMAGES[damage]
    spoil(broken)
    assert set(found(broken.report())) == expected


@pytest.mark.parametrize("damage", RUNNING_DAMAGES)
def test_damage_to_a_running_turn_is_named(running: StoredTurn, damage: str) -> None:
    spoil, expected = RUNNING_DAMAGES[damage]
    spoil(running)
    assert set(found(running.report())) == expected


def test_every_kind_of_disagreement_is_shown_by_a_damage() -> None:
    everything = (*DAMAGES.values(), *BROKEN_DAMAGES.values(), *RUNNING_DAMAGES.values())
    assert {kind for _, expected in everything for kind, _ in expected} == set(KINDS)
