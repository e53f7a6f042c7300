"""A process that died is found at once on its own machine, its work goes to one of those who look, and a living one is left alone."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from tests.contracts.store.ledger_examples import NOON, inbound, outbound, receipt

from omni.errors import StoreError
from omni.ports import InsertTrace, LedgerReader, LeftWork, PutInbound, PutOutbound, PutReceipt, TraceRow, UpdateTrace
from omni.store.database import Database
from omni.store.ledger_reader import SqlLedgerReader
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.process_locks import ProcessLocks
from omni.store.processes import HEARTBEAT_MAX_AGE_S, SILENT_FOR_S, ProcessRegistry
from omni.store.queries import SqlTraceReader
from omni.store.schema import omni_processes
from omni.store.spool import Spool
from omni.store.taking_over import ProcessLedgerReader
from omni.store.writes import SqlTraceSink
from omni.testing import FakeClock

SPOOL_BYTES = 8_000_000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

# A server process as far as the store is concerned: it registers, leaves work, says so, and waits to be killed.
CHILD = """
import sys
from pathlib import Path
from omni.clock import SystemClock
from omni.ports import InsertTrace, PutInbound
from omni.store.database import Database
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.processes import ProcessRegistry
from omni.store.writes import SqlTraceSink
from tests.contracts.store.ledger_examples import inbound

database = Database.open(sys.argv[1])
registry = ProcessRegistry(database, folder=Path(sys.argv[2]), clock=SystemClock())
process_id = registry.register()
SqlLedgerSink(database, process_id=process_id).write([PutInbound(inbound(f"of-{process_id}"))])
SqlTraceSink(database, process_id=process_id).write([InsertTrace(f"trace-{process_id}", {})], batch_no=1)
print(process_id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=NOON)


@pytest.fixture
def new_registry(database: Database, folder: Path, clock: FakeClock) -> Iterator[Callable[..., ProcessRegistry]]:
    """Makes registries of processes that all run in this one; they are stopped at the end."""
    made: list[ProcessRegistry] = []

    def make(in_folder: Path = folder) -> ProcessRegistry:
        made.append(ProcessRegistry(database, folder=in_folder, clock=clock))
        made[-1].register()
        return made[-1]

    yield make
    for registry in made:
        registry.stop()


def reader_of(database: Database, registry: ProcessRegistry) -> ProcessLedgerReader:
    return ProcessLedgerReader(
        database,
        registry=registry,
        reader=SqlLedgerReader(database, clock=FakeClock(wall=NOON)),
        spool_max_bytes=SPOOL_BYTES,
    )


def rows(database: Database) -> dict[str, bool]:
    """The processes that have a row, and whether they have stopped."""
    with database.reading("reading processes") as connection:
        found = connection.execute(select(omni_processes.c.process_id, omni_processes.c.stopped_at)).all()
    return {process_id: stopped_at is not None for process_id, stopped_at in found}


def age(database: Database, process_id: str, *, max_age_s: int = HEARTBEAT_MAX_AGE_S) -> None:
    """Let a process's last heartbeat be as old as it may be, and a second."""
    with database.writing("ageing a heartbeat") as connection:
        one = omni_processes.c.process_id == process_id
        heartbeat_at = connection.scalar(select(omni_processes.c.heartbeat_at).where(one))
        assert heartbeat_at is not None
        older = heartbeat_at - timedelta(seconds=max_age_s + 1)
        connection.execute(update(omni_processes).where(one).values(heartbeat_at=older))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def running_child(url: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real process that has registered and left work; yields its id."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_a_process_that_registers_has_a_row_and_holds_its_lock(
    database: Database, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    assert rows(database) == {registry.process_id: False}
    assert files(folder) == {f"{registry.process_id}.lock"}
    assert ProcessLocks(folder).claim(registry.process_id) is False
    assert registry.spool_path("p1") == folder / "p1.db"
    assert registry.find_dead() == []


def test_a_process_that_stops_leaves_a_row_that_says_so_and_no_file(
    database: Database, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    first, second = new_registry(), new_registry()
    process_id = first.process_id
    first.stop()
    first.stop()
    assert rows(database) == {process_id: True, second.process_id: False}
    assert files(folder) == {f"{second.process_id}.lock"}
    assert second.find_dead() == []
    with pytest.raises(StoreError, match="not registered"):
        first.heartbeat()


def test_a_killed_process_is_dead_at_once_and_a_running_one_is_not(
    database: Database, database_url: str, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    with running_child(database_url, folder) as (process_id, process):
        assert registry.find_dead() == []
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert registry.find_dead() == [process_id]
    assert reader_of(database, registry).take_over() == LeftWork(
        inbox=[inbound(f"of-{process_id}")], outbox=[], open_traces=[f"trace-{process_id}"], receipts=[]
    )
    assert rows(database) == {registry.process_id: False}
    assert files(folder) == {f"{registry.process_id}.lock"}


def test_of_two_that_look_at_once_one_finds_each_dead_process(
    folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    first, second = new_registry(), new_registry()
    dead = sorted(f"dead-{number:02}" for number in range(50))
    for process_id in dead:
        (folder / f"{process_id}.lock").touch()
    with ThreadPoolExecutor(2) as pool:
        found = [future.result(timeout=30) for future in [pool.submit(one.find_dead) for one in (first, second)]]
    assert sorted(found[0] + found[1]) == dead
    # Who has found one keeps it until it is forgotten, however often he looks.
    assert [first.find_dead(), second.find_dead()] == found


def test_the_dead_of_one_who_dies_before_taking_over_are_found_by_the_next(
    folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    first, second = new_registry(), new_registry()
    (folder / "dead.lock").touch()
    assert (first.find_dead(), second.find_dead()) == (["dead"], [])
    first.stop()
    assert second.find_dead() == ["dead"]


def test_a_spool_without_lock_or_row_belongs_to_a_dead_process(
    folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    for name in ("dead.db", "dead.db-wal", "dead.db-shm", "other.db.damaged"):
        (folder / name).touch()
    assert registry.find_dead() == ["dead"]
    registry.forget("dead")
    assert files(folder) == {f"{registry.process_id}.lock", "other.db.damaged"}


def test_a_process_of_another_machine_is_dead_when_its_heartbeat_is_too_old(
    database: Database, tmp_path: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    here, elsewhere = new_registry(), new_registry(tmp_path / "another machine")
    age(database, elsewhere.process_id)
    assert here.find_dead() == [elsewhere.process_id]
    elsewhere.heartbeat()
    assert here.find_dead() == []


def test_a_process_that_runs_has_more_patience_with_heartbeats_than_one_that_starts(
    database: Database, tmp_path: Path, clock: FakeClock, new_registry: Callable[..., ProcessRegistry]
) -> None:
    here, elsewhere = new_registry(), new_registry(tmp_path / "another machine")
    assert here.find_dead() == []
    age(database, elsewhere.process_id)
    clock.advance_ms(30_000)
    assert here.find_dead() == []
    age(database, elsewhere.process_id, max_age_s=SILENT_FOR_S)
    clock.advance_ms(30_000)
    assert here.find_dead() == []
    clock.advance_ms(30_000)
    assert here.find_dead() == [elsewhere.process_id]


def test_a_database_that_was_away_for_everybody_kills_nobody(
    database: Database, tmp_path: Path, clock: FakeClock, new_registry: Callable[..., ProcessRegistry]
) -> None:
    """No heartbeat could be written meanwhile; who looks first afterwards must not take the living for dead."""
    here, elsewhere = new_registry(), new_registry(tmp_path / "another machine")
    assert here.find_dead() == []
    age(database, elsewhere.process_id, max_age_s=SILENT_FOR_S)
    clock.advance_ms(600_000)
    assert here.find_dead() == []
    elsewhere.heartbeat()
    clock.advance_ms(30_000)
    assert here.find_dead() == []


def test_an_old_heartbeat_does_not_kill_a_process_whose_lock_is_held_here(
    database: Database, new_registry: Callable[..., ProcessRegistry]
) -> None:
    here, busy = new_registry(), new_registry()
    age(database, busy.process_id)
    assert here.find_dead() == []


def test_a_process_of_another_machine_that_was_taken_for_dead_enters_itself_again(
    database: Database, tmp_path: Path, new_registry: Callable[..., ProcessRegistry], caplog: pytest.LogCaptureFixture
) -> None:
    here, elsewhere = new_registry(), new_registry(tmp_path / "another machine")
    sink = SqlTraceSink(database, process_id=elsewhere.process_id)
    sink.write([InsertTrace("t1", {})], batch_no=4)
    here.forget(elsewhere.process_id)
    assert rows(database) == {here.process_id: False, elsewhere.process_id: True}
    elsewhere.heartbeat()
    assert rows(database) == {here.process_id: False, elsewhere.process_id: False}
    assert [record.message for record in caplog.records] == ["process_was_taken_for_dead"]
    # It goes on where it was: what was stored before is not stored again.
    sink.write([InsertTrace("t1", {})], batch_no=4)
    sink.write([UpdateTrace("t1", {"status": "completed"})], batch_no=5)
    assert SqlTraceReader(database).get_trace("t1") == TraceRow(trace_id="t1", status="completed")


def test_a_row_that_is_gone_is_made_again_by_the_heartbeat(
    database: Database, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    with database.writing("losing it") as connection:
        connection.execute(omni_processes.delete())
    registry.heartbeat()
    assert rows(database) == {registry.process_id: False}


def test_a_clock_that_is_wrong_by_hours_kills_nobody(
    database: Database, tmp_path: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    elsewhere = new_registry(tmp_path / "another machine")
    ahead = ProcessRegistry(database, folder=tmp_path / "here", clock=FakeClock(wall=LONG_AGO + timedelta(days=9_999)))
    ahead.register()
    assert ahead.find_dead() == []
    assert elsewhere.find_dead() == []
    ahead.stop()


def test_registering_in_a_folder_that_cannot_be_made_is_refused_in_clear_words(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    registry = ProcessRegistry(database, folder=tmp_path / "file" / "spool", clock=FakeClock())
    with pytest.raises(
        StoreError,
        match=r"/file/spool cannot hold the locks of processes \(Not a directory\); AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH",
    ):
        registry.register()


def test_registering_without_a_database_leaves_no_lock_behind(database: Database, folder: Path) -> None:
    with database.writing("losing the table") as connection:
        omni_processes.drop(connection)
    with pytest.raises(StoreError):
        ProcessRegistry(database, folder=folder, clock=FakeClock()).register()
    assert files(folder) == set()


def leave_spool(registry: ProcessRegistry, process_id: str, database: Database) -> None:
    """What a process leaves that was killed while the database was away: its last records are in its spool only."""
    with database.writing("entering the dead process") as connection:
        row = {"process_id": process_id, "started_at": NOON, "heartbeat_at": NOON, "last_batch": 1}
        connection.execute(insert(omni_processes).values(row))
    SqlTraceSink(database).write([InsertTrace("t1", {"status": "received"})])
    spool = Spool(registry.spool_path(process_id), max_bytes=SPOOL_BYTES)
    spool.append_traces([InsertTrace("t1", {"status": "received"})], batch_no=1)
    spool.append_traces([UpdateTrace("t1", {"status": "processing"}), InsertTrace("t2", {})], batch_no=2)
    spool.append_ledger([PutInbound(inbound("waiting")), PutOutbound(outbound("u1", state="sending", version=2))])
    spool.append_ledger([PutReceipt(receipt("k1"))])
    spool.close()


def test_what_a_dead_process_spooled_is_stored_once_and_taken_over_with_the_rest(
    database: Database, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    leave_spool(registry, "dead", database)
    reader: LedgerReader = reader_of(database, registry)
    assert reader.take_over() == LeftWork(
        inbox=[inbound("waiting")],
        outbox=[outbound("u1", state="sending", version=2)],
        open_traces=["t2"],
        receipts=[receipt("k1")],
    )
    traces = SqlTraceReader(database)
    assert [traces.get_trace("t1"), traces.get_trace("t2")] == [
        TraceRow(trace_id="t1", status="processing"),
        TraceRow(trace_id="t2"),
    ]
    assert rows(database) == {registry.process_id: False}
    assert files(folder) == {f"{registry.process_id}.lock"}
    # Receipts belong to nobody, and wait here by now.
    assert reader.take_over() == LeftWork(inbox=[], outbox=[], open_traces=[], receipts=[])


def test_what_a_process_leaves_that_stops_beside_a_running_one_is_taken_over_by_it(
    database: Database, new_registry: Callable[..., ProcessRegistry]
) -> None:
    """A deployment starts the new process before it stops the old one."""
    new, old = new_registry(), new_registry()
    reader = reader_of(database, new)
    SqlLedgerSink(database, process_id=old.process_id).write([PutInbound(inbound("waiting"))])
    assert reader.take_over().inbox == []
    old.stop()
    assert reader.take_over().inbox == [inbound("waiting")]


def test_a_process_taken_for_dead_is_at_work_again_with_its_next_batch(
    database: Database, tmp_path: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    """A script has no heartbeat beside its batches; what it does then must not look left."""
    here, script = new_registry(), new_registry(tmp_path / "another machine")
    here.forget(script.process_id)
    SqlTraceSink(database, process_id=script.process_id).write([InsertTrace("t1", {})], batch_no=1)
    assert rows(database) == {here.process_id: False, script.process_id: False}
    assert reader_of(database, here).take_over().open_traces == []


def test_a_process_whose_spool_cannot_be_read_keeps_its_work_until_it_can(
    database: Database, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    leave_spool(registry, "dead", database)
    SqlLedgerSink(database, process_id="dead").write([PutInbound(inbound("stored"))])
    reader = reader_of(database, registry)
    connection = sqlite3.connect(registry.spool_path("dead"), isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    nothing: dict[str, Any] = {"inbox": [], "outbox": [], "open_traces": [], "receipts": []}
    assert reader.take_over() == LeftWork(**nothing)
    connection.close()
    assert [record.message_id for record in reader.take_over().inbox] == ["stored", "waiting"]


def test_so_does_one_that_had_stopped_in_order(
    database: Database, folder: Path, new_registry: Callable[..., ProcessRegistry]
) -> None:
    registry = new_registry()
    leave_spool(registry, "stopped", database)
    with database.writing("stopping it") as connection:
        one = omni_processes.c.process_id == "stopped"
        connection.execute(update(omni_processes).where(one).values(stopped_at=NOON))
    SqlLedgerSink(database, process_id="stopped").write([PutInbound(inbound("stored"))])
    reader = reader_of(database, registry)
    holder = sqlite3.connect(registry.spool_path("stopped"), isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    assert reader.take_over().inbox == []
    holder.close()
    assert [record.message_id for record in reader.take_over().inbox] == ["stored", "waiting"]


def test_the_ports_other_questions_are_answered_too(
    database: Database, new_registry: Callable[..., ProcessRegistry]
) -> None:
    sent = outbound(key_id="k1", state="accepted", text=None)
    SqlLedgerSink(database, process_id="p").write([PutInbound(inbound("1")), PutOutbound(sent)])
    reader: LedgerReader = reader_of(database, new_registry())
    assert reader.recent_message_ids(received_from=NOON, limit=5) == [("flash", "1")]
    assert reader.find_outbound([("flash", "k1")]) == {("flash", "k1"): sent}
    assert reader.delete_older_than(NOON + timedelta(days=1)) == 1
