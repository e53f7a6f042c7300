"""The book of receipts: durable first, joined to the right trace with the right times, nothing kept without bound."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from omni.channels.whatsapp.webhook import WebhookEvent, parse_event
from omni.clock import NS_PER_MS, NS_PER_S, Anchor, take_anchor, wall_datetime
from omni.errors import StoreError
from omni.gateway import receipts as book_module
from omni.gateway.receipts import ReceiptBook
from omni.model import Receipt
from omni.records import OutboxRecord, ReceiptRecord
from omni.testing import FakeClock, MemoryLedger
from omni.tracing.events import ReceiptSeen

CAPTURES = Path(__file__).parents[2] / "captures" / "evolution"
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


class World:
    """A book with everything it works with: the ledger, the outbox it finds messages in, and the traces it writes to."""

    def __init__(self):
        self.clock = FakeClock()
        self.ledger = MemoryLedger()
        self.turns = {}
        self.failures = []
        self.reads = []
        self.logged = []
        self.becomes_known_at_read = None
        self.book = ReceiptBook(
            ledger=self.ledger,
            reader=self,
            find_turns=lambda ids: {trace_id: self.turns[trace_id] for trace_id in ids if trace_id in self.turns},
            log_receipt=lambda trace_id, turn, event: self.logged.append((trace_id, turn, event)),
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    def find_outbound(self, keys):
        """The LedgerReader's part the book uses, in a worker thread."""
        self.reads.append(sorted(keys))
        if len(self.reads) == self.becomes_known_at_read:
            self.sent_before("K")
        if self.failures:
            raise self.failures.pop(0)
        rows = {(row.instance_name, row.key_id): row for row in self.ledger.outbox.values() if row.key_id}
        return {key: rows[key] for key in keys if key in rows}

    def sent_before(self, key_id, *, trace_id="T", turn=None):
        """A message another process sent: the outbox knows it, and so does the store its trace."""
        self.ledger.outbox[key_id] = OutboxRecord(
            message_uid=key_id,
            answer_id="a",
            trace_id=trace_id,
            instance_name="shop",
            chat_key="c",
            recipient="r",
            index=0,
            text=None,
            text_sha256=sha256(b"").hexdigest(),
            state="accepted",
            queued_at=NOW,
            key_id=key_id,
        )
        if trace_id is not None:
            self.turns[trace_id] = turn or Anchor(wall_ns=0, mono_ns=0)

    async def hear(self, *told, instance_name="shop"):
        """Take receipts given as (key id, status), all in one webhook."""
        receipts = [Receipt(instance_name=instance_name, key_id=key_id, status=status) for key_id, status in told]
        return await self.book.take(receipts, arrived=take_anchor(self.clock))

    async def settle(self):
        """Let the book look until nothing is left to look for."""
        looking = self.book._looking
        if looking is not None:
            await asyncio.wait_for(looking, 5)

    @property
    def joined(self):
        return [(trace_id, event.key_id, event.status) for trace_id, _, event in self.logged]


@pytest.fixture
async def world():
    world = World()
    yield world
    await world.book.aclose()


def wall_ns(moment):
    return int(moment.timestamp()) * NS_PER_S


async def test_a_receipt_of_a_message_sent_here_joins_at_once_with_exact_times(world):
    turn = take_anchor(world.clock)
    world.book.note_sent("shop", "K", trace_id="T", turn=turn)
    world.clock.advance_ms(6_000)
    world.clock.step_wall_s(3_600)  # changes no duration (truth rule 1)
    assert await world.hear(("K", "read")) == [True]
    assert world.logged == [
        ("T", turn, ReceiptSeen(mono_ns=turn.mono_ns + 6_000 * NS_PER_MS, key_id="K", status="read"))
    ]
    assert world.ledger.receipts == {
        ("shop", "K", "read"): ReceiptRecord(
            instance_name="shop",
            key_id="K",
            status="read",
            received_at=NOW + timedelta(seconds=3_606),
            trace_id="T",
            version=2,
        )
    }
    assert (world.reads, world.book.num_joined, world.book.num_waiting) == ([], 1, 0)


async def test_a_recorded_receipt_is_stored_and_joined_with_its_own_time_corrected(world):
    """The recording's day, from a host in São Paulo: what it claims is three hours early."""
    (path,) = CAPTURES.glob("18_*.json")
    body = json.loads(path.read_text(encoding="utf-8"))["webhooks_in_arrival_order"][2]["body"]
    event = parse_event(body | {"date_time": "2026-11-22T07:00:04.000Z"}, instance_name="shop")
    world.book.note_sent("shop", "3EB0BF7CA49767CDACC1FE", trace_id="T", turn=take_anchor(world.clock))
    world.clock.advance_ms(4_200)
    arrived = take_anchor(world.clock)
    world.book.note_event("shop", event, arrived)
    assert await world.book.take(event.items, arrived=arrived) == [True]
    (record,) = world.ledger.receipts.values()
    assert (record.event_at, record.event_uncertainty_ms) == (NOW + timedelta(seconds=4), 1_000)
    (_, turn, seen) = world.logged[0]
    assert (seen.event_ns - turn.mono_ns, seen.event_uncertainty_ms) == (4_000 * NS_PER_MS, 1_000)


async def test_the_same_receipt_again_is_a_repeat_and_joins_nothing(world):
    world.book.note_sent("shop", "K", trace_id="T", turn=take_anchor(world.clock))
    assert await world.hear(("K", "read"), ("K", "read")) == [True, False]
    assert await world.hear(("K", "read"), ("K", "delivered")) == [False, True]
    assert world.joined == [("T", "K", "read"), ("T", "K", "delivered")]
    assert await world.hear() == []


async def test_a_receipt_is_taken_only_when_it_would_survive_the_process(world):
    world.book.note_sent("shop", "K", trace_id="T", turn=take_anchor(world.clock))
    world.ledger.is_held = True
    taking = asyncio.create_task(world.hear(("K", "read")))
    await asyncio.sleep(0)
    assert (taking.done(), world.logged) == (False, [])
    world.ledger.release()
    assert await asyncio.wait_for(taking, 5) == [True]
    assert world.joined == [("T", "K", "read")]


async def test_a_receipt_that_cannot_be_stored_is_refused_and_the_others_are_taken(world):
    world.book.note_sent("shop", "K", trace_id="T", turn=take_anchor(world.clock))
    world.ledger.failures = [StoreError("disk full")]
    with pytest.raises(StoreError):
        await world.hear(("K", "delivered"), ("K", "read"))
    assert world.joined == [("T", "K", "read")]
    assert await world.hear(("K", "delivered"), ("K", "read")) == [True, False]  # Evolution brings both again
    assert world.joined == [("T", "K", "read"), ("T", "K", "delivered")]


async def test_what_was_stored_is_joined_though_the_caller_hung_up(world):
    world.book.note_sent("shop", "K", trace_id="T", turn=take_anchor(world.clock))
    world.ledger.is_held = True
    taking = asyncio.create_task(world.hear(("K", "read")))
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    world.ledger.release()
    await asyncio.sleep(0)
    assert world.joined == [("T", "K", "read")]


async def test_a_receipt_before_the_sends_own_answer_joins_when_that_comes(world):
    world.book._sleep = asyncio.Event().wait  # no time passes
    turn = take_anchor(world.clock)
    world.clock.advance_ms(100)
    await world.hear(("K", "delivered"))
    assert (world.logged, world.book.num_waiting) == ([], 1)
    world.clock.advance_ms(30)
    world.book.note_sent("shop", "K", trace_id="T", turn=turn)
    assert world.logged == [
        ("T", turn, ReceiptSeen(mono_ns=turn.mono_ns + 100 * NS_PER_MS, key_id="K", status="delivered"))
    ]
    assert (world.book.num_waiting, world.reads) == (0, [])


async def test_a_receipt_of_another_processes_message_is_looked_up_and_timed_by_the_wall_clock(world):
    world.sent_before("K", turn=Anchor(wall_ns=wall_ns(NOW - timedelta(days=30)), mono_ns=0))
    await world.hear(("K", "delivered"), ("K", "read"), ("L", "read"))
    await world.settle()
    assert world.reads[0] == [("shop", "K"), ("shop", "L")]  # both in one read
    month_ns = 30 * 86_400 * NS_PER_S
    assert [event for _, _, event in world.logged] == [
        ReceiptSeen(mono_ns=month_ns, key_id="K", status=status, is_wall_timed=True) for status in ("delivered", "read")
    ]
    assert {record.trace_id for record in world.ledger.receipts.values()} == {"T", None}


async def test_the_instance_is_part_of_a_messages_name(world):
    world.book.note_sent("shop", "K", trace_id="T", turn=take_anchor(world.clock))
    await world.hear(("K", "read"), instance_name="other")
    await world.settle()
    assert (world.logged, world.book.num_left) == ([], 1)


async def test_a_message_nobody_knows_is_looked_for_a_few_times_and_left_to_the_ledger(world):
    began_ns = world.clock.mono_ns()
    await world.hear(("K", "read"))
    await world.settle()
    assert (len(world.reads), world.logged, world.book.num_waiting, world.book.num_left) == (4, [], 0, 1)
    assert (world.clock.mono_ns() - began_ns) // NS_PER_S == 671
    assert world.ledger.receipts["shop", "K", "read"].trace_id is None


async def test_a_message_that_becomes_known_later_is_found(world):
    """Sent by another living process, whose outbox told the key a moment after the receipt had come."""
    world.becomes_known_at_read = 2
    await world.hear(("K", "read"))
    await world.settle()
    assert world.joined == [("T", "K", "read")]


async def test_a_message_without_a_trace_waits_for_one(world):
    world.sent_before("K", trace_id=None)
    await world.hear(("K", "read"))
    await world.settle()
    assert (world.logged, world.book.num_left) == ([], 1)


async def test_a_database_that_is_away_is_asked_again_and_costs_no_look(world):
    world.failures = [StoreError("gone")] * 20
    world.sent_before("K")
    await world.hear(("K", "read"))
    await world.settle()
    assert world.joined == [("T", "K", "read")]
    assert len(world.reads) == 21


async def test_a_fault_in_the_look_up_is_logged_and_the_next_receipt_begins_anew(world, caplog):
    world.failures = [RuntimeError("a bug")]
    world.sent_before("K")
    await world.hear(("K", "read"))
    with pytest.raises(RuntimeError):
        await world.settle()
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "receipt_lookup_broke")]
    await world.hear(("K", "delivered"))
    await world.settle()
    assert world.joined == [("T", "K", "read"), ("T", "K", "delivered")]


async def test_receipts_of_an_earlier_process_are_taken_up(world):
    turn = Anchor(wall_ns=wall_ns(NOW - timedelta(seconds=90)), mono_ns=0)
    world.sent_before("K", turn=turn)
    record = ReceiptRecord(
        instance_name="shop",
        key_id="K",
        status="read",
        received_at=NOW - timedelta(seconds=60),
        event_at=NOW - timedelta(seconds=61),
        event_uncertainty_ms=1_000,
    )
    world.book.resume([record])
    await world.settle()
    assert world.logged == [
        (
            "T",
            turn,
            ReceiptSeen(
                mono_ns=30 * NS_PER_S,
                key_id="K",
                status="read",
                event_ns=29 * NS_PER_S,
                event_uncertainty_ms=1_000,
                is_wall_timed=True,
            ),
        )
    ]
    assert list(world.ledger.receipts.values()) == [structs.replace(record, trace_id="T", version=2)]


async def test_a_wall_clock_that_was_set_back_puts_no_receipt_before_its_turn(world):
    world.sent_before("K", turn=Anchor(wall_ns=wall_ns(NOW + timedelta(hours=1)), mono_ns=0))
    await world.hear(("K", "read"))
    await world.settle()
    assert [event.mono_ns for _, _, event in world.logged] == [0]


async def test_a_flood_of_unknown_receipts_is_bounded_and_the_ledger_keeps_all(world, monkeypatch):
    monkeypatch.setattr(book_module, "_MAX_WAITING", 10)
    monkeypatch.setattr(book_module, "_MAX_LOOKS", 40)
    for number in range(100):
        await world.hear((f"K{number}", "delivered"))
        assert (world.book.num_waiting <= 10, len(world.book._due) <= 41) == (True, True)
    assert (world.book.num_left, len(world.ledger.receipts)) == (90, 100)
    world.sent_before("K99")
    world.sent_before("K0")
    await world.settle()
    assert world.joined == [("T", "K99", "delivered")]


async def test_sends_long_ago_are_forgotten_and_found_in_the_outbox(world, monkeypatch):
    monkeypatch.setattr(book_module, "_MAX_RECENT", 2)
    for number in range(3):
        world.book.note_sent("shop", f"K{number}", trace_id=f"T{number}", turn=take_anchor(world.clock))
    world.sent_before("K0", trace_id="T0")
    await world.hear(("K0", "read"), ("K2", "read"))
    assert world.joined == [("T2", "K2", "read")]
    await world.settle()
    assert world.joined == [("T2", "K2", "read"), ("T0", "K0", "read")]


async def test_closing_leaves_what_waits_to_the_next_start(world):
    world.book._sleep = asyncio.Event().wait
    await world.hear(("K", "read"))
    await world.book.aclose()
    await world.hear(("L", "read"))  # stored, and looked for by nobody
    assert (world.reads, world.book.num_waiting) == ([], 2)
    assert [record.trace_id for record in world.ledger.receipts.values()] == [None, None]


async def test_any_event_teaches_the_instances_clock(world):
    arrived = take_anchor(world.clock)
    claimed_ns = arrived.wall_ns - 5 * 3_600 * NS_PER_S
    world.book.note_event("shop", WebhookEvent(event="call", items=(), claimed_wall_ns=claimed_ns), arrived)
    world.book.note_event("shop", WebhookEvent(event="call", items=()), arrived)
    late = Anchor(wall_ns=arrived.wall_ns + 600 * NS_PER_S, mono_ns=arrived.mono_ns + 600 * NS_PER_S)
    receipt = Receipt(instance_name="shop", key_id="K", status="read", claimed_wall_ns=claimed_ns)
    await world.book.take([receipt], arrived=late)
    assert world.ledger.receipts["shop", "K", "read"].event_at == wall_datetime(arrived.wall_ns)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.integers(0, 3)),
        st.tuples(st.just("sent_before"), st.integers(0, 3)),
        st.tuples(st.just("receipt"), st.integers(0, 3), st.sampled_from(["delivered", "read", "failed"])),
        st.tuples(st.just("look")),
    ),
    max_size=25,
)


@given(steps)
def test_every_receipt_of_a_known_message_is_joined_exactly_once(story):
    """Whatever comes first, and however often Evolution repeats itself."""
    asyncio.run(play(story))


async def play(story):
    world = World()
    heard, known = set(), set()
    for kind, *facts in story:
        if kind == "sent":
            known.add(facts[0])
            world.book.note_sent("shop", f"K{facts[0]}", trace_id=f"T{facts[0]}", turn=take_anchor(world.clock))
        elif kind == "sent_before":
            world.sent_before(f"K{facts[0]}", trace_id=f"T{facts[0]}")
        elif kind == "receipt":
            is_new = await world.hear((f"K{facts[0]}", facts[1]))
            assert is_new == [tuple(facts) not in heard]
            heard.add(tuple(facts))
        else:
            await world.settle()
    await world.settle()
    # At the next start the ledger gives back what was not joined, and by then the outbox knows all that was sent.
    for number in known:
        world.sent_before(f"K{number}", trace_id=f"T{number}")
    world.book.resume([record for record in world.ledger.receipts.values() if record.trace_id is None])
    await world.settle()
    await world.book.aclose()
    sent = {int(key[1:]) for key in world.ledger.outbox}
    expected = sorted((f"T{number}", f"K{number}", status) for number, status in heard if number in sent)
    assert sorted(world.joined) == expected
    unjoined = {key[1:] for key, record in world.ledger.receipts.items() if record.trace_id is None}
    assert unjoined == {(f"K{number}", status) for number, status in heard if number not in sent}
