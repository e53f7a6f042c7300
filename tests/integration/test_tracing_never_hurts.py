"""Truth rule 8: whatever happens to the store, answers flow unchanged; what was lost is counted."""

import asyncio
import sqlite3
import threading

import pytest
from sqlalchemy import event, text
from tests.unit.gateway.scripts import JOKE, telling
from tests.unit.store.fallible import FallibleSpool
from tests.unit.store.records import inbound

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.clock import SystemClock
from omni.gateway.hive_streamer import AnswerStreamer, Question
from omni.model import AgentRequest, InboundMessage, InstanceConfig
from omni.settings import Settings
from omni.store.database import Database
from omni.store.ledger import LedgerWriter
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.queries import SqlTraceReader
from omni.store.spooling import SpooledLedgerSink, SpooledTraceSink, StoreGate
from omni.store.writes import SqlTraceSink
from omni.testing import RecordingChannel, ScriptedAgent
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer

ANSWER = ["Why do programmers prefer dark mode?", "Because light attracts bugs! 🐛"]
INSTANCE = InstanceConfig(name="shop", agent_instance_type="hive", agent_stream_mode=True)


class Paused:
    """A clock whose scripted pauses take no time."""

    mono_ns = staticmethod(SystemClock.mono_ns)

    def advance_ms(self, _duration_ms):
        return None


@pytest.fixture
def settings():
    return Settings(_env_file=None, trace_flush_ms=1, message_spacing_ms=0, stop_deadline_ms=100)


@pytest.fixture
def database(tmp_path):
    database = Database.open(f"sqlite:///{tmp_path / 'omni.db'}")
    yield database
    database.close()


@pytest.fixture
def recorder(database, settings):
    return Recorder(SqlTraceSink(database), clock=SystemClock(), settings=settings)


@pytest.fixture
def tracer(database, recorder):
    return Tracer(clock=SystemClock(), recorder=recorder, reader=SqlTraceReader(database))


async def answer_once(tracer, settings, message_id="M1"):
    """One turn through streamer and delivery; the trace and the texts that went out."""
    channel, clock = RecordingChannel(), SystemClock()
    delivery = Delivery(channel, clock=clock, settings=settings)
    typing = TypingIndicator(channel, is_enabled=False)
    streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en")
    message = InboundMessage(
        instance_name="shop",
        message_id=message_id,
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name="Maria",
        text="oi",
        message_type="text",
    )
    request = AgentRequest(
        base_url="http://hive.test",
        api_key=None,
        agent_kind="agent",
        agent_id="a",
        message="oi",
        session_id="s",
        user_id="u",
    )
    trace = tracer.open_turn(message, is_streaming=True)
    question = Question(instance=INSTANCE, request=request, recipient=message.reply_to, chat_key=message.chat_key)
    is_delivered = await asyncio.wait_for(streamer.answer(question, ScriptedAgent(telling(Paused(), JOKE)), trace), 10)
    await delivery.aclose(1)
    return trace, channel.texts if is_delivered else None


async def test_a_locked_database_delays_nothing_and_loses_nothing(tracer, recorder, database, settings, tmp_path):
    recorder.start()
    holder = sqlite3.connect(tmp_path / "omni.db", isolation_level=None)
    holder.execute("begin exclusive")
    trace, texts = await answer_once(tracer, settings)
    assert texts == ANSWER
    assert trace.get_streaming_summary()["total_chunks"] == 5
    holder.execute("rollback")
    holder.close()
    assert recorder.flush(deadline_s=20)
    assert SqlTraceReader(database).get_trace(trace.trace_id).status == "completed"
    assert recorder.stop(deadline_s=20)
    assert recorder.num_lost == 0


async def test_a_full_disk_costs_records_not_answers(tracer, recorder, database, settings):
    """SQLite's own "database or disk is full", from a limit on its pages: what nobody takes is counted at the end."""
    reader = SqlTraceReader(database)

    @event.listens_for(database.engine, "checkout")
    def _fill(connection, _record, _proxy):
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages}")

    recorder.start()
    texts = [(await answer_once(tracer, settings, f"M{number}"))[1] for number in range(30)]
    assert texts == [ANSWER] * 30
    assert not recorder.stop(deadline_s=0.2)
    assert recorder.num_lost > 0
    assert recorder.counts().num_held == 0
    assert reader.count_older_than(tracer.now()) < 30


class Spooled:
    """Recorder and ledger with a spool between them and the database, as a server has them."""

    def __init__(self, database, settings, folder):
        clock = SystemClock()
        self.database = database
        self.spool = FallibleSpool(folder / "spool" / "p1.db", max_bytes=8_000_000)
        self.gate = StoreGate(
            self.spool,
            traces=SqlTraceSink(database, process_id="p1", wait_ms=settings.database_wait_ms),
            ledger=SqlLedgerSink(database, process_id="p1", wait_ms=settings.database_wait_ms),
            probe=self.probe,
            clock=clock,
        )
        self.recorder = Recorder(SpooledTraceSink(self.gate), clock=clock, settings=settings, tiers=self.gate)
        self.ledger = LedgerWriter(SpooledLedgerSink(self.gate), clock=clock, settings=settings)
        self.tracer = Tracer(clock=clock, recorder=self.recorder, reader=SqlTraceReader(database))
        self.gate.start()
        self.recorder.start()
        self.ledger.start()

    def probe(self):
        with self.database.writing("probing", wait_ms=100):
            pass

    def stop(self):
        return [self.recorder.stop(), self.ledger.stop(), self.gate.stop()]


@pytest.fixture
def spooled(database, tmp_path):
    settings = Settings(
        _env_file=None, trace_flush_ms=1, message_spacing_ms=0, stop_deadline_ms=100, database_wait_ms=50
    )
    spooled = Spooled(database, settings, tmp_path)
    yield spooled
    assert spooled.stop() == [True, True, True]


async def test_what_a_locked_database_does_not_take_waits_in_the_spool_and_is_stored_once(spooled, settings, tmp_path):
    holder = sqlite3.connect(tmp_path / "omni.db", isolation_level=None)
    holder.execute("begin exclusive")
    traces = []
    for number in range(5):
        trace, texts = await answer_once(spooled.tracer, settings, f"M{number}")
        assert texts == ANSWER
        traces.append(trace)
        assert await asyncio.wait_for(spooled.ledger.put(inbound(number)), 10)
    assert await asyncio.to_thread(spooled.recorder.flush)
    counts = spooled.recorder.counts()
    assert (counts.is_database_up, counts.num_spooled > 0, counts.num_held) == (False, True, 0)
    holder.execute("rollback")
    holder.close()
    await asyncio.to_thread(wait_until_empty, spooled)
    reader = SqlTraceReader(spooled.database)
    assert [reader.get_trace(trace.trace_id).status for trace in traces] == ["completed"] * 5
    for trace in traces:
        stages = [row.stage for row in reader.get_payloads(trace.trace_id)]
        assert stages.count("streaming_chunks") == stages.count("streaming_complete") == 1
        assert stages.count("evolution_send") == len(ANSWER)
    with spooled.database.reading("counting") as connection:
        assert connection.scalar(text("SELECT count(*) FROM omni_inbox")) == 5
        assert connection.scalar(text("SELECT count(*) FROM omni_open_traces")) == 0
    assert not spooled.spool.path.exists()
    assert spooled.recorder.counts().num_lost == 0


async def test_a_disk_that_is_full_for_both_keeps_records_in_memory_until_there_is_room(spooled, settings):
    is_full = True

    @event.listens_for(spooled.database.engine, "checkout")
    def _fill(connection, _record, _proxy):
        pages = connection.execute("pragma page_count").fetchone()[0] if is_full else 1_000_000
        connection.execute(f"pragma max_page_count = {pages}")

    spooled.spool.is_broken = True
    traces = [(await answer_once(spooled.tracer, settings, f"M{number}"))[0] for number in range(30)]
    await asyncio.to_thread(spooled.recorder.flush, deadline_s=0.2)
    counts = spooled.recorder.counts()
    assert (counts.num_held > 0, counts.num_lost, counts.num_spooled) == (True, 0, 0)
    is_full = spooled.spool.is_broken = False
    assert await asyncio.to_thread(spooled.recorder.flush, deadline_s=20)
    await asyncio.to_thread(wait_until_empty, spooled)
    reader = SqlTraceReader(spooled.database)
    assert [reader.get_trace(trace.trace_id).status for trace in traces] == ["completed"] * 30
    assert (spooled.recorder.num_lost, spooled.recorder.num_shed) == (0, 0)


def wait_until_empty(spooled):
    """Until the gate's thread has moved everything; it wakes by itself about once a second."""
    looked = threading.Event()
    for _ in range(400):
        if spooled.spool.is_empty and spooled.gate.is_database_up:
            return
        looked.wait(0.05)
    raise AssertionError("the spool was not emptied")


async def test_a_payload_that_cannot_be_serialised_is_described_instead(tracer, recorder, database, settings):
    """F33."""
    recorder.start()
    trace, texts = await answer_once(tracer, settings)
    trace.log_stage("custom", {"what": object(), "kept": 1})
    assert texts == ANSWER
    assert recorder.stop(deadline_s=20)
    (row,) = [row for row in SqlTraceReader(database).get_payloads(trace.trace_id) if row.stage == "custom"]
    assert row.payload["kept"] == 1
    assert row.payload["what"] == {"unserializable": "object"}
    assert recorder.num_lost == 0


async def test_a_stopped_recorder_changes_no_answer(tracer, settings):
    """The recorder was never started: everything waits, nothing breaks."""
    _, texts = await answer_once(tracer, settings)
    assert texts == ANSWER
