"""After a kill: begun answers are finished, waiting questions asked again, and every trace says what became of its turn."""

import asyncio
from datetime import timedelta
from hashlib import sha256

import pytest
from msgspec import structs

from omni.channels.whatsapp.delivery import Delivery
from omni.clock import wall_datetime
from omni.errors import StoreError
from omni.gateway.chat_queues import ChatQueues
from omni.gateway.inbox import Inbox
from omni.gateway.notices import NOTICES, NoticeBook
from omni.gateway.recovery import Recovery, RecoveryParts
from omni.model import InboundMessage, MessageOutcome, OutboundMessage, SendResult, SentSearch
from omni.ports import LeftWork, PutInbound, PutOutbound
from omni.records import InboxRecord, OutboxRecord
from omni.testing import MemoryLedger
from omni.tracing.document import streaming_document
from omni.tracing.interrupted import DIED
from omni.tracing.service import Tracer
from omni.tracing.stored import read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.verify import check_trace

JID = "5511999990001@s.whatsapp.net"
CHUNKS = ("One", ".\n\nTwo.", "\n\nThr")
"""Two messages and the beginning of a third."""
TEXTS = ("One.", "Two.", "Thr")
RANGES = ((0, 6), (6, 12), (12, 15))
CUT_SHORT, NO_ANSWER = NOTICES["en"]["cut_short"], NOTICES["en"]["no_answer"]


class LeftBehind:
    """A ledger reader that finds all who wrote to the ledger and the store dead. ``failures`` are raised by the next calls."""

    def __init__(self, ledger, store):
        self._ledger = ledger
        self._store = store
        self.failures = []

    def take_over(self):
        if self.failures:
            raise self.failures.pop(0)
        inbox = [record for record in self._ledger.inbox.values() if record.state != "done"]
        rows = self._store.rows.items()
        return LeftWork(
            inbox=sorted(inbox, key=lambda record: record.received_at),
            outbox=sorted(self._ledger.outbox.values(), key=lambda row: (row.answer_id, row.index)),
            open_traces=[trace_id for trace_id, row in rows if row.get("completed_at") is None],
            receipts=[],
        )


class Process:
    """A server process after a kill, as far as recovery is concerned. ``asked`` are the turns it begins; it answers with their ids."""

    def __init__(self, world, delivery, parts):
        self.asked = []
        self.recovery = Recovery(parts(self))
        self._delivery = delivery
        self._world = world

    async def answer(self, turn):
        self.asked.append(turn)
        trace_id = turn.trace.trace_id
        answer = self._delivery.open_answer(
            turn.instance, JID, chat_key=JID, on_outcome=lambda _: None, answer_id=trace_id, trace_id=trace_id
        )
        answer.feed(f"Answer to {turn.message.message_id}.", 0)
        answer.finish()
        await answer.wait_done()
        turn.trace.end_turn("completed")
        turn.on_closed("completed")

    async def recover(self):
        await self.recovery.begin()
        await self.recovery.finish()
        await self.recovery.settled()
        async with asyncio.timeout(5):
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "omni-chat"))
        assert self._world.tracer.flush()


class World:
    """What survives a kill, and the parts the processes on both sides of it share."""

    def __init__(self, *, ledger, store, tracer, channel, clock):
        self.ledger, self.store, self.tracer, self.channel, self.clock = ledger, store, tracer, channel, clock
        self.reader = LeftBehind(ledger, store)
        self.sent_keys = []

    def receive(self, message_id="M1", *, state="running", num_takes=1, has_trace=True, is_streaming=True, **changes):
        """A message the dead process took; its row, and its trace unless that was not stored."""
        message = InboundMessage(
            instance_name="shop",
            message_id=message_id,
            chat_key=JID,
            reply_to=JID,
            sender_phone="5511999990001",
            sender_name="Maria",
            text="oi",
            message_type="text",
        )
        record = InboxRecord(
            instance_name="shop",
            message_id=message_id,
            chat_key=JID,
            trace_id=f"trace-{message_id}",
            received_at=wall_datetime(self.clock.wall_ns()),
            state=state,
            version=2,
            num_takes=num_takes,
            message=message,
        )
        record = structs.replace(record, **changes)
        self.ledger.post(PutInbound(record))
        if not has_trace:
            return None
        trace = self.tracer.open_turn(message, is_streaming=is_streaming, trace_id=record.trace_id)
        trace.await_delivery()
        assert self.tracer.flush()
        return trace

    def stream(self, trace, chunks=CHUNKS):
        """The agent is asked and has said this much."""
        StreamingTraceContext.upgrade(trace)
        trace.log_processing_start()
        self.clock.advance_ms(10)
        trace.log_agent_request({"message": "oi"}, is_streaming=True)
        trace.mark_request_written(self.clock.mono_ns())
        trace.log_streaming_start({"agent_id": "genie"})
        for index, chunk in enumerate(chunks):
            self.clock.advance_ms(100)
            trace.log_streaming_chunk(chunk, index, event_type="RunContent")
        assert self.tracer.flush()

    def queue(self, index, state, *, message_id="M1", answer=None, notice=None, on_trace=None):
        """A message of the answer as the outbox has it, and as the trace has it where it has."""
        trace_id = f"trace-{message_id}"
        start, end = RANGES[index] if notice is None else (15, 15)
        now = wall_datetime(self.clock.wall_ns())
        text = notice or TEXTS[index]
        row = OutboxRecord(
            message_uid=f"{answer or trace_id}/{index}",
            answer_id=answer or trace_id,
            trace_id=trace_id,
            instance_name="shop",
            chat_key=JID,
            recipient=JID,
            index=index,
            text=text,
            text_sha256=sha256(text.encode()).hexdigest(),
            start=start,
            end=end,
            first_chunk=None if notice else index,
            last_chunk=None if notice else index + 1,
            is_notice=notice is not None,
            state=state,
            version=2,
            attempts=1 if state == "accepted" else 0,
            queued_at=now,
            started_at=None if state == "queued" else now,
            ended_at=now if state in ("accepted", "not_sent") else None,
            key_id=f"KEY{index}" if state == "accepted" else None,
            status_code=201 if state == "accepted" else None,
        )
        self.ledger.post(PutOutbound(row))
        if on_trace is not None:
            message = OutboundMessage(
                index=index, recipient=JID, text=text, start=start, end=end, first_chunk=index, last_chunk=index + 1
            )
            at_ns = self.clock.mono_ns()
            on_trace.log_message(
                MessageOutcome(
                    message=message,
                    status="accepted",
                    attempts=1,
                    queued_ns=at_ns,
                    started_ns=at_ns,
                    ended_ns=at_ns,
                    key_id=row.key_id,
                    status_code=201,
                )
            )
            assert self.tracer.flush()

    def kill(self):
        """What is stored is all there is; ten minutes pass."""
        self.clock.advance_ms(600_000)

    def books(self):
        """All that is kept, to go back to: what a kill at this moment leaves."""
        assert self.tracer.flush()
        return dict(self.ledger.inbox), dict(self.ledger.outbox), self.store.rows, self.store.payloads

    def go_back_to(self, books):
        assert self.tracer.flush()
        self.ledger.inbox, self.ledger.outbox, self.store.rows, self.store.payloads = books

    def document(self, trace_id="trace-M1"):
        return streaming_document(read_stored_trace(self.store.get_trace(trace_id), self.store.get_payloads(trace_id)))

    def told(self, trace_id="trace-M1"):
        """Each message of a trace: its text, what became of it, and whether it is a notice."""
        messages = self.document(trace_id)["delivery"]["messages"]
        return [(message["text"], message["status"], message["is_notice"]) for message in messages]

    def disagreements(self, trace_id="trace-M1"):
        return check_trace(self.store.get_trace(trace_id), self.store.get_payloads(trace_id)).disagreements

    def state(self, message_id="M1"):
        return self.ledger.inbox["shop", message_id].state


@pytest.fixture
def ledger():
    return MemoryLedger()


@pytest.fixture
def world(ledger, store, tracer, channel, clock):
    return World(ledger=ledger, store=store, tracer=tracer, channel=channel, clock=clock)


@pytest.fixture
def instances(instance):
    return {"shop": instance}


@pytest.fixture
async def start(world, instances, settings, make_delivery):
    """Starts another process on what is left; several are several kills."""
    begun = []

    def begin(*, tracer=None):
        delivery = make_delivery()
        tracer = tracer or world.tracer

        def parts(process):
            inbox = Inbox(
                ChatQueues(process.answer, ledger=world.ledger),
                tracer=tracer,
                ledger=world.ledger,
                clock=world.clock,
                settings=settings,
                receipts=None,
                note_echo=None,
                stop_chat=None,
            )
            return RecoveryParts(
                ledger=world.ledger,
                ledger_reader=world.reader,
                traces=world.store,
                tracer=tracer,
                instances=instances,
                inbox=inbox,
                delivery=delivery,
                notices=NoticeBook("en"),
                note_sent=lambda name, key_id, trace: world.sent_keys.append((name, key_id, trace.trace_id)),
                clock=world.clock,
                settings=settings,
            )

        begun.append(Process(world, delivery, parts))
        return begun[-1]

    yield begin
    for process in begun:
        await process.recovery.aclose()


@pytest.fixture
async def make_delivery(channel, clock, settings, ledger):
    made = []

    def make():
        made.append(Delivery(channel, clock=clock, settings=settings, ledger=ledger, sleep=clock.sleep))
        return made[-1]

    yield make
    for delivery in made:
        await delivery.aclose(0)


async def test_what_is_left_of_a_begun_answer_is_sent_with_one_notice(world, start, channel):
    world.stream(world.receive())
    world.queue(0, "accepted")
    world.queue(1, "queued")
    world.kill()
    process = start()
    await process.recover()
    assert process.asked == []
    assert channel.texts == ["Two.", "Thr", CUT_SHORT]
    assert world.told() == [
        ("One.", "accepted", False),
        ("Two.", "accepted", False),
        ("Thr", "accepted", False),
        (CUT_SHORT, "accepted", True),
    ]
    document = world.document()
    assert (document["ending"], document["error_message"]) == (
        "interrupted",
        f"{DIED}; what was left of its answer was sent after the restart",
    )
    assert world.disagreements() == []
    assert world.state() == "done"
    assert world.sent_keys == [("shop", channel_key, "trace-M1") for channel_key in keys_of(channel)]


def keys_of(channel):
    return [f"3EB0{number:018X}" for number in range(1, len(channel.sent) + 1)]


@pytest.mark.parametrize("has_trace", [True, False], ids=["nothing but the webhook", "nothing"])
async def test_text_the_trace_had_not_heard_of_is_recovered_from_the_outbox(world, start, channel, has_trace):
    """Messages are stored before they are sent, requests and chunks a moment later: the kill came in between."""
    world.receive(has_trace=has_trace)
    world.clock.advance_ms(120)
    world.queue(0, "accepted")
    world.queue(1, "queued")
    world.kill()
    await start().recover()
    assert channel.texts == ["Two.", CUT_SHORT]
    assert world.told() == [("One.", "accepted", False), ("Two.", "accepted", False), (CUT_SHORT, "accepted", True)]
    document = world.document()
    assert [(chunk["content"], chunk["offset_ms"]) for chunk in document["streaming_chunks"]] == [
        ("One.\n\nTwo.\n\n", 120.0)
    ]
    assert document["ending"] == "interrupted"
    assert world.disagreements() == []


async def test_an_answer_is_finished_where_no_traces_are_kept(world, start, channel, clock, store):
    world.receive(has_trace=False)
    world.queue(0, "accepted")
    world.queue(1, "queued")
    world.kill()
    process = start(tracer=Tracer(clock=clock, recorder=None, reader=store))
    await process.recover()
    assert channel.texts == ["Two.", CUT_SHORT]
    assert (world.state(), [row.state for row in world.ledger.outbox.values()]) == ("done", ["accepted"] * 3)
    assert store.rows == {}


@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "switched off"])
async def test_nothing_is_sent_for_an_instance_that_answers_no_more(world, start, channel, instances, is_removed):
    world.stream(world.receive())
    world.queue(0, "accepted")
    world.queue(1, "queued")
    world.receive("M2", state="stored", has_trace=False)
    world.kill()
    if is_removed:
        instances.clear()
    else:
        instances["shop"] = structs.replace(instances["shop"], is_active=False)
    process = start()
    await process.recover()
    assert (process.asked, channel.texts) == ([], [])
    note = f"{DIED}, and its instance was removed or switched off"
    assert [world.document(trace_id)["error_message"] for trace_id in ("trace-M1", "trace-M2")] == [note, note]
    assert world.told() == [("One.", "accepted", False), ("Two.", "not_sent", False), ("Thr", "not_sent", False)]
    assert world.disagreements() == []
    assert [row.state for row in world.ledger.outbox.values()] == ["accepted", "not_sent"]


async def test_a_question_nobody_saw_an_answer_to_is_asked_again_on_a_trace_of_its_own(world, start, channel):
    world.stream(world.receive(), ("On",))
    world.kill()
    process = start()
    await process.recover()
    (turn,) = process.asked
    assert channel.texts == ["Answer to M1."]
    assert (turn.record.num_takes, turn.message.text) == (1, "oi")
    assert world.ledger.inbox["shop", "M1"].num_takes == 2
    row = world.store.get_trace("trace-M1")
    assert (row.status, row.error_stage, row.error_message) == (
        "failed",
        "interrupted",
        f"{DIED}; the message was taken up again as trace {turn.trace.trace_id}",
    )
    # The text that had come is on record, and the turn is over since then: nobody worked on it for ten minutes.
    assert world.told() == [("On", "not_sent", False)]
    assert row.total_processing_time_ms == 110
    assert world.store.get_trace(turn.trace.trace_id).total_processing_time_ms >= 600_000
    assert world.disagreements() == []


async def test_a_message_begun_too_often_is_told_of_once_and_on_its_trace(world, start, channel):
    world.stream(world.receive(num_takes=3), ())
    world.kill()
    process = start()
    await process.recover()
    await start().recover()
    assert (process.asked, channel.texts) == ([], [NO_ANSWER])
    assert world.told() == [(NO_ANSWER, "accepted", True)]
    assert world.document()["error_message"] == (
        f"{DIED}; not asked again: taken_too_often; nothing of its answer was left to send"
    )
    assert world.state() == "done"


@pytest.mark.parametrize("is_begun", [True, False], ids=["begun", "waiting"])
async def test_a_message_that_cannot_be_read_back_is_finished_as_far_as_it_can(world, start, channel, is_begun):
    """Its row in the ledger is damaged: the chat is known, and somebody waits in it."""
    world.receive(message=None, has_trace=False)
    if is_begun:
        world.queue(0, "accepted")
        world.queue(1, "queued")
    world.kill()
    await start().recover()
    assert channel.texts == (["Two.", CUT_SHORT] if is_begun else [NO_ANSWER])
    assert {message.recipient for message in channel.sent} == {JID}
    assert world.document()["ending"] == "interrupted"
    assert world.disagreements() == []


async def test_a_message_that_is_too_old_by_now_is_on_record_and_nobody_is_told(world, start, channel):
    world.receive(has_trace=False, received_at=wall_datetime(world.clock.wall_ns()) - timedelta(hours=2))
    world.queue(0, "queued")
    world.kill()
    process = start()
    await process.recover()
    assert (process.asked, channel.texts) == ([], [])
    assert world.document()["error_message"] == f"{DIED}; not asked again: too_old"
    assert [row.state for row in world.ledger.outbox.values()] == ["not_sent"]


@pytest.mark.parametrize("is_response_stored", [True, False])
async def test_an_answer_that_came_whole_is_finished(world, start, channel, is_response_stored):
    """An agent that does not stream: no chunks, one response, and messages made of it."""
    trace = world.receive(state="delivering", is_streaming=False)
    trace.log_agent_request({"message": "oi"}, is_streaming=False)
    world.clock.advance_ms(900)
    if is_response_stored:
        trace.log_agent_response({"message": "".join(CHUNKS), "success": True, "streaming": False})
    world.queue(0, "accepted")
    world.queue(1, "queued")
    world.queue(2, "queued")
    assert world.tracer.flush()
    world.kill()
    await start().recover()
    assert channel.texts == ["Two.", "Thr"]
    assert world.told() == [(text, "accepted", False) for text in TEXTS]
    document = world.document()
    assert document["agent_response"]["message"] == "".join(CHUNKS)
    assert document["timeline"]["total_streaming_time_ms"] == 900
    assert {message["first_chunk"] for message in document["delivery"]["messages"]} == {None}
    assert world.disagreements() == []


async def test_an_answer_the_trace_knows_to_be_whole_gets_no_notice(world, start, channel):
    """The ledger hears of it a moment later than the trace."""
    trace = world.receive()
    world.stream(trace)
    trace.log_streaming_complete("".join(CHUNKS))
    world.queue(0, "accepted")
    assert world.tracer.flush()
    world.kill()
    await start().recover()
    assert channel.texts == ["Two.", "Thr"]
    assert world.disagreements() == []


async def test_the_notice_of_a_turn_that_was_refused_is_sent_once(world, start, channel):
    world.receive(state="delivering", is_streaming=False)
    notice = structs.replace(outbox_notice(world), start=0, end=0, message_uid="trace-M1/0", index=0)
    world.ledger.post(PutOutbound(notice))
    world.kill()
    await start().recover()
    assert channel.texts == [NO_ANSWER]
    assert world.told() == [(NO_ANSWER, "accepted", True)]


def outbox_notice(world):
    return OutboxRecord(
        message_uid="",
        answer_id="trace-M1",
        trace_id="trace-M1",
        instance_name="shop",
        chat_key=JID,
        recipient=JID,
        index=0,
        text=NO_ANSWER,
        text_sha256="",
        is_notice=True,
        state="queued",
        queued_at=wall_datetime(world.clock.wall_ns()),
    )


async def test_a_farewell_stands_behind_the_answer_it_ended(world, start, channel):
    """The user had asked to stop and was told so: two answers of one turn, each of which counts its messages from 0."""
    world.stream(world.receive(), CHUNKS[:2])
    world.queue(0, "accepted")
    world.queue(1, "not_sent")
    world.ledger.post(PutOutbound(farewell(world)))
    world.kill()
    process = start()
    await process.recover()
    assert (process.asked, channel.texts) == ([], [])
    assert world.told() == [("One.", "accepted", False), ("Two.", "not_sent", False), ("Bye.", "accepted", True)]
    assert world.document()["error_message"] == f"{DIED}; not asked again: stopped"
    assert world.disagreements() == []


def farewell(world):
    now = wall_datetime(world.clock.wall_ns())
    return structs.replace(
        outbox_notice(world),
        message_uid="trace-M1/stopped/0",
        answer_id="trace-M1/stopped",
        text="Bye.",
        state="accepted",
        started_at=now,
        ended_at=now,
        key_id="KEY9",
    )


class Gate(asyncio.Event):
    """A channel's gate that tells when a message waits at it."""

    def __init__(self):
        super().__init__()
        self.somebody_waits = asyncio.Event()

    async def wait(self):
        self.somebody_waits.set()
        return await super().wait()


async def test_a_kill_during_recovery_leads_to_one_notice_all_the_same(world, start, channel):
    """The second process dies while it sends the rest: the third goes on with what the second had written down."""
    world.stream(world.receive())
    world.queue(0, "accepted")
    world.kill()
    channel.gate = gate = Gate()
    second = start()
    await second.recovery.begin()
    await second.recovery.finish()
    async with asyncio.timeout(5):
        await gate.somebody_waits.wait()
    books = world.books()
    channel.answers = [SendResult(is_accepted=False, error_kind="rejected")]
    gate.set()
    await second.recovery.settled()
    world.go_back_to(books)
    channel.sent.clear()
    channel.searches = [SentSearch(verdict="absent")] * 2

    world.kill()
    await start().recover()
    assert channel.texts == ["Two.", "Thr", CUT_SHORT]
    assert [text for text, _, is_notice in world.told() if is_notice] == [CUT_SHORT]
    assert world.disagreements() == []
    assert world.state() == "done"

    await start().recover()
    assert len(channel.texts) == 3


async def test_a_trace_that_was_closed_already_is_not_closed_again(world, start):
    """Only the ledger had not heard of it."""
    trace = world.receive(received_at=wall_datetime(world.clock.wall_ns()) - timedelta(hours=2))
    trace.end_turn("timeout", error_message="too slow", error_stage="streaming_error")
    assert world.tracer.flush()
    world.kill()
    await start().recover()
    assert (world.document()["error_message"], world.state()) == ("too slow", "done")


async def test_the_rest_of_an_answer_goes_out_before_the_next_one_of_its_chat(world, start, channel):
    world.stream(world.receive("M1"))
    world.queue(0, "accepted")
    world.clock.advance_ms(10)
    world.receive("M2", state="stored", num_takes=0)
    world.kill()
    await start().recover()
    assert channel.texts == ["Two.", "Thr", CUT_SHORT, "Answer to M2."]


async def test_a_text_sent_by_request_is_settled_on_its_trace_and_not_sent(world, start, channel):
    """Nobody asked an agent: the messages are all there is, and what they say was not said by one."""
    context = world.tracer.open_columns({"instance_name": "shop"}, is_streaming=False)
    assert world.tracer.flush()
    trace_id = context.trace_id
    rows = [structs.replace(world_row, trace_id=trace_id, answer_id=trace_id) for world_row in by_request(world)]
    for row in rows:
        world.ledger.post(PutOutbound(row))
    world.kill()
    await start().recover()
    assert channel.texts == []
    assert world.told(trace_id) == [("One.", "accepted", False), ("Two.", "failed", False), ("Thr", "not_sent", False)]
    document = world.document(trace_id)
    assert (document["streaming_chunks"], document["agent_response"], document["ending"]) == ([], None, "interrupted")


def by_request(world):
    for index, state in enumerate(("accepted", "sending", "queued")):
        world.queue(index, state)
    rows = list(world.ledger.outbox.values())
    world.ledger.outbox.clear()
    return rows


async def test_a_database_that_is_away_loses_nothing_that_was_taken_over(world, start, channel, store, monkeypatch):
    """The traces cannot be read now: what is ours already is begun by the next look."""
    world.stream(world.receive())
    world.queue(0, "accepted")
    world.kill()
    process = start()
    away = StoreError("The database is away.", retryable=True)
    world.reader.failures = [away]
    looks = []

    async def pause(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            monkeypatch.setattr(store, "get_traces", raising(away))
        if len(looks) == 3:
            monkeypatch.undo()
            world.reader.failures = [AssertionError("it is ours already")]
        if len(looks) == 4:
            await process.recovery.settled()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await process.recovery.watch(every_s=30, sleep=pause)
    assert looks == [30, 30, 30, 30]
    assert channel.texts == ["Two.", "Thr", CUT_SHORT]


def raising(error):
    def fail(_):
        raise error

    return fail
