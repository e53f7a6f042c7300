"""Walking through all traces meets each of them once, with its payloads, in memory for one page."""

from datetime import UTC, datetime, timedelta

import pytest

from omni.errors import StoreError
from omni.ports import InsertPayload, InsertTrace
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.trace_pages import SqlTracePages
from omni.store.writes import SqlTraceSink

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def put(sink: SqlTraceSink, number: int, *, instance_name: str = "shop", num_payloads: int = 2) -> None:
    trace_id = f"trace-{number:03}"
    columns = {"received_at": NOON + timedelta(minutes=number), "instance_name": instance_name}
    payloads = [
        InsertPayload(
            trace_id=trace_id,
            stage="webhook_received",
            payload_type="webhook",
            payload={"number": number, "row": row},
            timestamp=NOON,
        )
        for row in range(num_payloads)
    ]
    sink.write([InsertTrace(trace_id, columns), *payloads])


@pytest.fixture
def sink(database: Database) -> SqlTraceSink:
    instances = SqlInstanceStore(database)
    instances.create({"name": "shop"})
    instances.create({"name": "other"})
    return SqlTraceSink(database)


def walked(pages: SqlTracePages, page_size: int) -> list[list[tuple[str, list[object]]]]:
    return [
        [(row.trace_id, [payload.payload for payload in payloads]) for row, payloads in page]
        for page in pages.walk(page_size=page_size)
    ]


def test_every_trace_comes_once_with_its_own_payloads(database: Database, sink: SqlTraceSink) -> None:
    for number in (4, 1, 3, 0, 2):
        put(sink, number, num_payloads=number % 3)
    pages = SqlTracePages(database)
    assert pages.count() == 5
    assert walked(pages, 2) == [
        [("trace-000", []), ("trace-001", [{"number": 1, "row": 0}])],
        [("trace-002", [{"number": 2, "row": 0}, {"number": 2, "row": 1}]), ("trace-003", [])],
        [("trace-004", [{"number": 4, "row": 0}])],
    ]


def test_what_comes_in_meanwhile_shifts_nothing(database: Database, sink: SqlTraceSink) -> None:
    """Offsets into a growing list would show traces twice or leave some out."""
    for number in (1, 3, 5, 7):
        put(sink, number)
    seen: list[str] = []
    for page in SqlTracePages(database).walk(page_size=2):
        seen += [row.trace_id for row, _ in page]
        if len(seen) == 2:
            put(sink, 0)
            put(sink, 6)
    assert seen == ["trace-001", "trace-003", "trace-005", "trace-006", "trace-007"]


def test_an_instance_and_a_moment_narrow_the_walk(database: Database, sink: SqlTraceSink) -> None:
    for number in range(4):
        put(sink, number, instance_name="shop" if number % 2 else "other", num_payloads=0)
    of_shop = SqlTracePages(database, instance_name="shop")
    late = SqlTracePages(database, received_from=NOON + timedelta(minutes=2))
    assert (of_shop.count(), walked(of_shop, 9)) == (2, [[("trace-001", []), ("trace-003", [])]])
    assert (late.count(), walked(late, 9)) == (2, [[("trace-002", []), ("trace-003", [])]])


def test_an_empty_database_has_no_pages(database: Database) -> None:
    assert list(SqlTracePages(database).walk()) == []


def test_a_closed_database_is_a_store_error(database: Database, sink: SqlTraceSink) -> None:
    put(sink, 1)
    with database.writing("breaking the table") as connection:
        connection.exec_driver_sql("ALTER TABLE trace_payloads RENAME TO elsewhere")
    with pytest.raises(StoreError):
        list(SqlTracePages(database).walk())
