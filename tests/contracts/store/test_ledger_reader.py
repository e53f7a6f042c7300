"""What processes that are gone left undone is handed over whole, in order, and once; old rows go when they are finished."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from msgspec import structs
from sqlalchemy import func, insert, select, text
from tests.contracts.store.ledger_examples import NOON, inbound, outbound, put, receipt

from omni.ports import InsertTrace, LeftWork, PutInbound, PutOutbound, PutReceipt
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord
from omni.store.database import Database
from omni.store.ledger_reader import SqlLedgerReader
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.schema import omni_inbox, omni_outbox, omni_processes, omni_receipts
from omni.store.writes import SqlTraceSink
from omni.testing import FakeClock

Records = list[InboxRecord | OutboxRecord | ReceiptRecord]
NOTHING = LeftWork(inbox=[], outbox=[], open_traces=[], receipts=[])


@pytest.fixture
def reader(database: Database) -> SqlLedgerReader:
    return SqlLedgerReader(database, clock=FakeClock(wall=NOON))


def of(database: Database, process_id: str) -> SqlLedgerSink:
    return SqlLedgerSink(database, process_id=process_id)


def later(seconds: float) -> dict[str, object]:
    return {"received_at": NOON + timedelta(seconds=seconds)}


def enter(database: Database, process_id: str, *, is_stopped: bool) -> None:
    row = {
        "process_id": process_id,
        "started_at": NOON,
        "heartbeat_at": NOON,
        "stopped_at": NOON if is_stopped else None,
    }
    with database.writing("entering a process") as connection:
        connection.execute(insert(omni_processes).values(row))


def num_rows(database: Database, tables: Iterable[object]) -> list[int]:
    with database.reading("counting") as connection:
        return [int(connection.scalar(select(func.count()).select_from(table)) or 0) for table in tables]  # type: ignore[arg-type]


def test_unfinished_work_of_the_dead_becomes_ours_and_that_of_the_living_stays_theirs(
    database: Database, reader: SqlLedgerReader
) -> None:
    waiting, running = inbound("1", **later(2)), inbound("2", state="running", num_takes=1, version=2, **later(1))
    done = inbound("3", state="done", version=3, message=None)
    queued, sending = (
        outbound("u1", answer_id="trace-2", trace_id="trace-2"),
        outbound("u2", state="sending", version=2),
    )
    of(database, "dead").write([put(record) for record in (waiting, running, done, queued, sending)])
    of(database, "living").write([PutInbound(inbound("4")), PutOutbound(outbound("u4", answer_id="a4", trace_id="t4"))])
    SqlTraceSink(database, process_id="dead").write([InsertTrace("trace-2", {}), InsertTrace("trace-1", {})])
    SqlTraceSink(database, process_id="living").write([InsertTrace("trace-4", {})])
    left = LeftWork(inbox=[running, waiting], outbox=[queued, sending], open_traces=["trace-1", "trace-2"], receipts=[])
    assert reader.take_over(["dead"], "us") == left
    assert reader.take_over(["dead"], "us") == NOTHING
    # What we have now is left again when we die in turn.
    assert reader.take_over(["us"], "next") == left


def test_what_a_process_stopped_in_order_did_not_finish_is_taken_over_too(
    database: Database, reader: SqlLedgerReader
) -> None:
    enter(database, "stopped", is_stopped=True)
    enter(database, "living", is_stopped=False)
    of(database, "stopped").write([PutInbound(inbound("1"))])
    of(database, "living").write([PutInbound(inbound("2"))])
    SqlTraceSink(database, process_id="stopped").write([InsertTrace("trace-1", {})])
    assert reader.take_over([], "us") == LeftWork(inbox=[inbound("1")], outbox=[], open_traces=["trace-1"], receipts=[])


def test_all_messages_of_an_unfinished_answer_come_with_it_in_their_order(
    database: Database, reader: SqlLedgerReader
) -> None:
    final = {"state": "accepted", "text": None, "version": 3}
    of_a = [
        outbound("u3", answer_id="a", trace_id="t-a", index=0, **final),
        outbound("u1", answer_id="a", trace_id="t-a", index=1, **final),
        outbound("u2", answer_id="a", trace_id="t-a", index=2),
    ]
    by_request = outbound("u4", answer_id="b", trace_id=None)
    finished = outbound("u5", answer_id="c", trace_id="t-c", **final)
    of_inbox = outbound("u6", answer_id="trace-1", trace_id="trace-1", **final)
    records: Records = [by_request, *reversed(of_a), finished, of_inbox, inbound("1", state="delivering")]
    of(database, "dead").write([put(record) for record in records])
    assert reader.take_over(["dead"], "us").outbox == [*of_a, by_request, of_inbox]


def test_work_of_many_processes_and_thousands_of_pieces_is_handed_over_whole(
    database: Database, reader: SqlLedgerReader
) -> None:
    messages = [inbound(f"{number:04}", message=None, **later(number)) for number in range(1_200)]
    answers = [outbound(f"u{number:04}", answer_id=f"trace-{number:04}", trace_id=None) for number in range(1_200)]
    dead = [f"p{number}" for number in range(3)]
    for number, process_id in enumerate(dead):
        mine = slice(number, None, 3)
        of(database, process_id).write([*map(PutInbound, messages[mine]), *map(PutOutbound, answers[mine])])
    left = reader.take_over(dead, "us")
    assert (left.inbox, left.outbox) == (messages, answers)


def test_of_two_that_take_over_at_once_each_piece_goes_to_one(database: Database, reader: SqlLedgerReader) -> None:
    of(database, "dead").write([PutInbound(inbound(f"{number:03}", message=None)) for number in range(300)])
    start = threading.Barrier(2)

    def take(name: str) -> list[str]:
        start.wait(timeout=30)
        return [record.message_id for record in reader.take_over(["dead"], name).inbox]

    with ThreadPoolExecutor(2) as pool:
        first, second = [future.result(timeout=60) for future in [pool.submit(take, name) for name in ("us", "them")]]
    assert sorted(first + second) == [f"{number:03}" for number in range(300)]


def test_a_message_that_cannot_be_read_back_is_handed_over_without_its_text(
    database: Database, reader: SqlLedgerReader
) -> None:
    of(database, "dead").write([PutInbound(inbound("1"))])
    with database.writing("damaging it") as connection:
        connection.execute(text("UPDATE omni_inbox SET message_json = '{\"instance_name\":'"))
    assert reader.take_over(["dead"], "us").inbox == [inbound("1", message=None)]


def test_receipts_of_the_last_day_without_a_message_come_from_whoever_stored_them(
    database: Database, reader: SqlLedgerReader
) -> None:
    hours = timedelta(hours=1)
    read, delivered = receipt("k1", status="read"), receipt("k1", received_at=NOON - 23 * hours)
    joined, too_old = receipt("k2", trace_id="t"), receipt("k3", received_at=NOON - 25 * hours)
    of(database, "living").write([PutReceipt(record) for record in (read, delivered, joined, too_old)])
    assert reader.take_over([], "us").receipts == [delivered, read]


def test_recent_messages_are_listed_newest_first(database: Database, reader: SqlLedgerReader) -> None:
    of(database, "p").write(
        [
            PutInbound(inbound("old", **later(-100))),
            PutInbound(inbound("1", **later(1))),
            PutInbound(inbound("3", instance_name="other", **later(3))),
            PutInbound(inbound("2", state="done", message=None, **later(2))),
        ]
    )
    assert reader.recent_message_ids(received_from=NOON, limit=10) == [("other", "3"), ("flash", "2"), ("flash", "1")]
    assert reader.recent_message_ids(received_from=NOON, limit=1) == [("other", "3")]


def test_messages_are_found_by_their_keys_ten_thousand_at_a_time(database: Database, reader: SqlLedgerReader) -> None:
    sent = [outbound(f"u{number}", key_id=f"k{number}", state="accepted") for number in range(1_000)]
    of(database, "p").write([*map(PutOutbound, sent), PutOutbound(outbound("v", key_id="k1", instance_name="other"))])
    found = reader.find_outbound([("flash", f"k{number}") for number in range(10_000)])
    assert found == {("flash", str(record.key_id)): record for record in sent}
    assert reader.find_outbound([("other", "k1"), ("other", "k2"), ("nobody", "k1")]) == {
        ("other", "k1"): outbound("v", key_id="k1", instance_name="other")
    }
    assert reader.find_outbound([]) == {}


def test_of_two_messages_with_one_key_the_newer_is_found(database: Database, reader: SqlLedgerReader) -> None:
    newer = outbound("u1", key_id="k", queued_at=NOON + timedelta(seconds=1))
    of(database, "p").write([PutOutbound(newer), PutOutbound(outbound("u2", key_id="k"))])
    assert reader.find_outbound([("flash", "k")]) == {("flash", "k"): newer}


def test_old_rows_go_when_they_are_finished_and_unfinished_ones_stay(
    database: Database, reader: SqlLedgerReader
) -> None:
    old = NOON - timedelta(days=40)
    kept: Records = [
        inbound("waiting", received_at=old),
        inbound("new", state="done", message=None),
        outbound("queued", queued_at=old),
        outbound("sending", state="sending", queued_at=old),
        outbound("new", state="accepted"),
        receipt("new"),
    ]
    gone: Records = [
        inbound("done", received_at=old, state="done", message=None),
        *(outbound(state, queued_at=old, state=state, text=None) for state in ("accepted", "failed", "not_sent")),
        receipt("old", received_at=old),
        receipt("old", status="read", received_at=old, trace_id="t"),
    ]
    of(database, "p").write([put(record) for record in (*kept, *gone)])
    enter(database, "living", is_stopped=False)
    assert reader.delete_older_than(NOON - timedelta(days=35)) == len(gone)
    assert num_rows(database, (omni_inbox, omni_outbox, omni_receipts, omni_processes)) == [2, 3, 1, 1]
    assert reader.delete_older_than(NOON - timedelta(days=35)) == 0
    assert reader.take_over(["p"], "us").inbox == [inbound("waiting", received_at=old)]


def test_more_rows_than_fit_into_one_transaction_go(database: Database, reader: SqlLedgerReader) -> None:
    of(database, "p").write([PutReceipt(receipt(f"k{number}")) for number in range(1_203)])
    assert reader.delete_older_than(NOON + timedelta(days=1)) == 1_203
    assert num_rows(database, [omni_receipts]) == [0]


def test_the_entry_of_a_process_that_stopped_long_ago_goes(database: Database, reader: SqlLedgerReader) -> None:
    enter(database, "stopped", is_stopped=True)
    assert reader.delete_older_than(NOON + timedelta(days=35)) == 1
    assert num_rows(database, [omni_processes]) == [0]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM omni_inbox WHERE process_id IN ('a', 'b') AND state <> 'done'", "ix_omni_inbox_open"),
        (
            "SELECT * FROM omni_outbox WHERE process_id IN ('a') AND state IN ('queued', 'sending')",
            "ix_omni_outbox_open",
        ),
        (
            "SELECT * FROM omni_outbox WHERE instance_name = 'flash' AND key_id IN ('a', 'b')",
            "ix_omni_outbox_key",
        ),
        (
            "SELECT * FROM omni_receipts WHERE trace_id IS NULL AND received_at >= '2026-11-22'",
            "ix_omni_receipts_unjoined",
        ),
    ],
)
def test_recovery_and_receipts_find_their_rows_by_an_index(database: Database, query: str, index: str) -> None:
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.reading("explaining") as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = " ".join(str(row) for row in connection.execute(text(f"{explain} {query}")))
    assert index in plan


def test_a_record_taken_over_can_be_put_on(database: Database, reader: SqlLedgerReader) -> None:
    of(database, "dead").write([PutInbound(inbound("1"))])
    (record,) = reader.take_over(["dead"], "us").inbox
    done = structs.replace(record, state="done", version=record.version + 1, message=None)
    assert of(database, "us").write([PutInbound(done)]) == [True]
    assert reader.take_over(["us"], "next") == NOTHING
