"""The ledger keeps the newest version of every row and says exactly, for each operation, whether it changed anything."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import select
from tests.contracts.store.ledger_examples import NOON, WHOLE_OUTBOUND, inbound, message, outbound, put, receipt

from omni.errors import StoreError
from omni.ports import LedgerOp, PutInbound, PutOutbound, PutReceipt
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord
from omni.store.database import Database
from omni.store.ledger_rows import inbox_record, outbox_record, receipt_record
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.schema import omni_inbox, omni_outbox, omni_receipts
from omni.testing import MemoryLedger

Records = list[InboxRecord | OutboxRecord | ReceiptRecord]


@pytest.fixture
def sink(database: Database) -> SqlLedgerSink:
    return SqlLedgerSink(database, process_id="p1")


def stored(database: Database) -> Records:
    """Every record of the ledger: messages in, messages out, receipts, each by identity."""
    with database.reading("reading the ledger") as connection:
        inbox = connection.execute(select(omni_inbox).order_by(*omni_inbox.primary_key)).mappings().all()
        outbox = connection.execute(select(omni_outbox).order_by(*omni_outbox.primary_key)).mappings().all()
        receipts = connection.execute(select(omni_receipts).order_by(*omni_receipts.primary_key)).mappings().all()
    return [*map(inbox_record, inbox), *map(outbox_record, outbox), *map(receipt_record, receipts)]


def test_every_field_of_every_record_comes_back(database: Database, sink: SqlLedgerSink) -> None:
    records: Records = [
        inbound("1"),
        inbound("2", state="done", version=5, num_takes=2, message=None),
        outbound("uid-1"),
        WHOLE_OUTBOUND,
        receipt("3EB0B"),
        receipt("3EB0C", event_at=NOON, event_uncertainty_ms=1000, trace_id="trace-1", version=2),
    ]
    assert sink.write([put(record) for record in records]) == [True] * 6
    assert stored(database) == records


def test_rows_name_the_process_they_belong_to(database: Database, sink: SqlLedgerSink) -> None:
    sink.write([PutInbound(inbound()), PutOutbound(outbound()), PutOutbound(outbound("uid-2"))])
    SqlLedgerSink(database, process_id="p2").write([PutOutbound(outbound("uid-2", state="sending", version=2))])
    with database.reading("reading owners") as connection:
        owners = [
            *connection.scalars(select(omni_inbox.c.process_id)),
            *connection.scalars(select(omni_outbox.c.process_id).order_by(omni_outbox.c.message_uid)),
        ]
    assert owners == ["p1", "p1", "p2"]


def test_a_repeat_is_told_and_changes_nothing(database: Database, sink: SqlLedgerSink) -> None:
    first = inbound(trace_id="first")
    assert sink.write([PutInbound(first)]) == [True]
    assert sink.write([PutInbound(inbound(trace_id="again"))]) == [False]
    assert stored(database) == [first]


def test_an_older_version_after_a_newer_one_changes_nothing(database: Database, sink: SqlLedgerSink) -> None:
    newer = outbound(state="accepted", version=3, text=None, key_id="3EB0B")
    assert sink.write([PutOutbound(newer)]) == [True]
    assert sink.write([PutOutbound(outbound(state="sending", version=2))]) == [False]
    assert stored(database) == [newer]


def test_several_versions_in_one_batch_are_answered_as_if_they_came_one_by_one(
    database: Database, sink: SqlLedgerSink
) -> None:
    sink.write([PutOutbound(outbound("uid-2", version=2))])
    ops = [
        PutOutbound(outbound("uid-1", version=1)),
        PutOutbound(outbound("uid-2", version=1)),
        PutOutbound(outbound("uid-1", version=3, state="accepted")),
        PutOutbound(outbound("uid-1", version=2, state="sending")),
        PutOutbound(outbound("uid-2", version=3, state="sending")),
        PutOutbound(outbound("uid-2", version=3, state="failed")),
    ]
    assert sink.write(ops) == [True, False, True, False, True, False]
    assert stored(database) == [
        outbound("uid-1", version=3, state="accepted"),
        outbound("uid-2", version=3, state="sending"),
    ]


def test_one_message_id_of_two_instances_is_two_messages(database: Database, sink: SqlLedgerSink) -> None:
    assert sink.write([PutInbound(inbound()), PutInbound(inbound(instance_name="other"))]) == [True, True]
    assert len(stored(database)) == 2


def test_each_status_of_a_key_is_a_receipt_and_its_first_arrival_stays(database: Database, sink: SqlLedgerSink) -> None:
    delivered, read = receipt(), receipt(status="read")
    assert sink.write([PutReceipt(delivered), PutReceipt(read)]) == [True, True]
    again = structs.replace(delivered, received_at=NOON.replace(hour=13))
    assert sink.write([PutReceipt(again)]) == [False]
    assert stored(database) == [delivered, read]


@pytest.mark.parametrize(
    "raw",
    [
        {"text": "half an emoji \ud83d, a NUL \0 and “quotes”"},
        {"number": 2**70},
        {"deep": [[[[{"a": []}]]]]},
    ],
)
def test_a_message_comes_back_as_it_was_whatever_its_webhook_held(
    database: Database, sink: SqlLedgerSink, raw: dict[str, object]
) -> None:
    record = inbound(message=message(text="NUL \0 and half \ud83d", sender_name="A\0na", raw=raw))
    sink.write([PutInbound(record)])
    assert stored(database) == [record]


def test_an_envelope_json_has_no_form_for_is_left_out_and_the_message_stays(
    database: Database, sink: SqlLedgerSink
) -> None:
    sink.write([PutInbound(inbound(message=message(message_id="3EB0A", raw={"a": {1, 2}, "b": "\ud83d"})))])
    assert stored(database) == [inbound(message=message(message_id="3EB0A", raw={}))]


def test_text_no_database_can_hold_is_marked_not_refused(database: Database, sink: SqlLedgerSink) -> None:
    sink.write([PutOutbound(outbound(text="a\0b \ud83d", error="e\0"))])
    assert stored(database) == [outbound(text="a\ufffdb \ufffd", error="e\ufffd")]


def test_a_value_no_column_takes_refuses_the_whole_batch_in_clear_words(
    database: Database, sink: SqlLedgerSink
) -> None:
    with pytest.raises(StoreError) as refused:
        sink.write([PutInbound(inbound()), PutOutbound(outbound(attempts=2**40))])
    assert (
        refused.value.sentence
        == "PutOutbound holds a value that is not a whole number of 32 bits (writing the ledger)."
    )
    assert refused.value.retryable is False
    assert stored(database) == []


def test_one_row_the_database_refuses_undoes_the_batch_and_leaves_the_next_write_working(
    database: Database, sink: SqlLedgerSink
) -> None:
    with pytest.raises(StoreError) as refused:
        sink.write([PutInbound(inbound()), PutOutbound(structs.replace(outbound(), text_sha256=None))])
    assert refused.value.retryable is False
    assert stored(database) == []
    assert sink.write([PutInbound(inbound())]) == [True]


def test_nothing_to_write_is_no_transaction(sink: SqlLedgerSink) -> None:
    assert sink.write([]) == []


def test_of_writers_that_put_the_same_messages_at_once_each_message_is_new_to_one(database: Database) -> None:
    records = [inbound(f"id-{number}") for number in range(40)]
    start = threading.Barrier(4)

    def write(number: int) -> list[bool]:
        sink = SqlLedgerSink(database, process_id=f"p{number}")
        mine = [PutInbound(structs.replace(record, trace_id=f"of-p{number}")) for record in records]
        # Each in another order, as webhooks come.
        start.wait(timeout=30)
        told = sink.write(mine if number % 2 else mine[::-1])
        return told if number % 2 else told[::-1]

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result(timeout=60) for future in [pool.submit(write, number) for number in range(4)]]
    assert [sum(told) for told in zip(*answers, strict=True)] == [1] * 40
    owners = {record.message_id: record.trace_id for record in stored(database) if isinstance(record, InboxRecord)}
    expected = {
        record.message_id: next(f"of-p{number}" for number in range(4) if answers[number][at])
        for at, record in enumerate(records)
    }
    assert owners == expected


versions = st.integers(1, 4)
names = st.sampled_from(["a", "b", "c"])


def versioned_inbound(name: str, version: int) -> LedgerOp:
    return PutInbound(inbound(name, version=version, num_takes=version, message=None))


def versioned_outbound(name: str, version: int) -> LedgerOp:
    return PutOutbound(outbound(name, version=version, attempts=version))


def versioned_receipt(name: str, version: int) -> LedgerOp:
    return PutReceipt(receipt(name, version=version, trace_id=f"trace-{version}"))


operations = st.one_of(
    st.builds(versioned_inbound, names, versions),
    st.builds(versioned_outbound, names, versions),
    st.builds(versioned_receipt, names, versions),
)
batches = st.lists(st.lists(operations, max_size=8), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_any_order_repetition_and_grouping_leaves_the_newest_of_each_and_tells_what_was_new(
    database: Database, sink: SqlLedgerSink, groups: Sequence[Sequence[LedgerOp]]
) -> None:
    with database.writing("starting afresh") as connection:
        for table in (omni_inbox, omni_outbox, omni_receipts):
            connection.execute(table.delete())
    memory = MemoryLedger()
    expected = [[memory._apply(op) for op in group] for group in groups]
    assert [sink.write(group) for group in groups] == expected
    by_name: Records = [
        *(memory.inbox[key] for key in sorted(memory.inbox)),
        *(memory.outbox[key] for key in sorted(memory.outbox)),
        *(memory.receipts[key] for key in sorted(memory.receipts)),
    ]
    assert stored(database) == by_name
