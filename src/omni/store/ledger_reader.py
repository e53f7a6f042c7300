"""Reads the ledger: what processes that are gone left undone, repeats to recognise, messages that receipts belong to; removes old rows.

What is unfinished is never removed. Taking work over is one transaction: of two processes that start at once, each piece goes to one.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    Table,
    TextClause,
    bindparam,
    delete,
    or_,
    select,
    text,
    tuple_,
    update,
)

from omni.clock import Clock, SystemClock, wall_datetime
from omni.ports import LeftWork
from omni.records import OutboxRecord
from omni.store.database import Database, in_portions
from omni.store.ledger_rows import inbox_record, outbox_record, receipt_record
from omni.store.schema import (
    INBOX_IS_DONE,
    INBOX_IS_OPEN,
    OUTBOX_IS_OPEN,
    OUTBOX_IS_SETTLED,
    RECEIPT_IS_UNJOINED,
    omni_inbox,
    omni_open_traces,
    omni_outbox,
    omni_processes,
    omni_receipts,
)

# A receipt whose message is not known after so long belongs to none of ours.
_UNJOINED_FOR = timedelta(hours=24)
# Rows removed per transaction: some milliseconds, in which writers wait.
_DELETE_BATCH = 500
# Written out, not as parameters: that is how the databases see that their partial indexes hold all the rows asked for.
_INBOX_IS_OPEN, _OUTBOX_IS_OPEN, _RECEIPT_IS_UNJOINED = map(text, (INBOX_IS_OPEN, OUTBOX_IS_OPEN, RECEIPT_IS_UNJOINED))


class SqlLedgerReader:
    """Reads the ledger on SQLite or PostgreSQL. Safe from any thread; methods block and raise StoreError."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()

    def take_over(
        self, dead: Collection[str], by: str, *, not_of: Collection[str] = (), with_receipts: bool = True
    ) -> LeftWork:
        """Give what the ``dead`` left undone to the process ``by``, and return it.

        So goes what is left of processes that were stopped in order, before their work was done; but nothing of those ``not_of``. Receipts
        belong to nobody: ``with_receipts``, those of the last day whose message is not known come from whoever stored them.
        """
        owner = _Change(dead=dead, not_of=not_of, by=by)
        with self._database.writing("taking work over") as connection:
            inbox = _take(connection, omni_inbox, _INBOX_IS_OPEN, owner, in_order_of=omni_inbox.c.received_at)
            outbox = _take(connection, omni_outbox, _OUTBOX_IS_OPEN, owner)
            open_traces = _take(connection, omni_open_traces, None, owner)
            answer_ids = {row["answer_id"] for row in outbox}
            # Of open traces too: a turn can be done in the ledger before its trace has heard of its last message.
            trace_ids = {row["trace_id"] for row in (*inbox, *open_traces)}
            messages = [
                *_rows_with(connection, omni_outbox.c.answer_id, answer_ids),
                *_rows_with(connection, omni_outbox.c.trace_id, trace_ids),
            ]
            receipts = self._unjoined_receipts(connection) if with_receipts else []
        by_uid = {row["message_uid"]: outbox_record(row) for row in messages}
        return LeftWork(
            inbox=[inbox_record(row) for row in inbox],
            outbox=sorted(by_uid.values(), key=lambda record: (record.answer_id, record.index)),
            open_traces=[row["trace_id"] for row in open_traces],
            receipts=[receipt_record(row) for row in receipts],
        )

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """(instance_name, message_id) of the newest inbound messages, newest first."""
        inbox = omni_inbox.c
        newest = (
            select(inbox.instance_name, inbox.message_id)
            .where(inbox.received_at >= received_from)
            .order_by(inbox.received_at.desc(), inbox.instance_name, inbox.message_id)
            .limit(limit)
        )
        with self._database.reading("reading recent message ids") as connection:
            return [(name, message_id) for name, message_id in connection.execute(newest)]

    def find_outbound(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], OutboxRecord]:
        """The outgoing messages known by these (instance_name, key_id) pairs; pairs nobody knows are left out.

        Of several messages with one key, which no channel gives out, the newest is taken.
        """
        keys_by_instance: dict[str, set[str]] = {}
        for instance_name, key_id in keys:
            keys_by_instance.setdefault(instance_name, set()).add(key_id)
        found: list[OutboxRecord] = []
        with self._database.reading("finding outgoing messages") as connection:
            for instance_name, key_ids in keys_by_instance.items():
                is_theirs = omni_outbox.c.instance_name == instance_name
                found += map(outbox_record, _rows_with(connection, omni_outbox.c.key_id, key_ids, is_theirs))
        found.sort(key=lambda record: (record.queued_at, record.message_uid))
        return {(record.instance_name, str(record.key_id)): record for record in found}

    def forget_texts(self, cutoff: datetime) -> int:
        """Remove the texts of settled messages queued before ``cutoff``, in small transactions; how many went."""
        outbox = omni_outbox.c
        some = (
            select(outbox.message_uid)
            .where(outbox.queued_at < cutoff, outbox.text.is_not(None), text(OUTBOX_IS_SETTLED))
            .limit(_DELETE_BATCH)
        )
        num_forgotten = 0
        while True:
            with self._database.writing("removing texts from the outbox") as connection:
                forgotten = update(omni_outbox).where(outbox.message_uid.in_(some)).values(text=None)
                num_now = connection.execute(forgotten).rowcount
            num_forgotten += num_now
            if num_now < _DELETE_BATCH:
                return num_forgotten

    def delete_older_than(self, cutoff: datetime) -> int:
        """Remove finished rows older than ``cutoff``; how many went.

        Works in small transactions so that writers never wait long; when it raises, what was removed before stays removed.
        """
        return (
            self._delete(omni_inbox, omni_inbox.c.received_at < cutoff, text(INBOX_IS_DONE))
            + self._delete(omni_outbox, omni_outbox.c.queued_at < cutoff, text(OUTBOX_IS_SETTLED))
            + self._delete(omni_receipts, omni_receipts.c.received_at < cutoff)
            + self._delete(omni_processes, omni_processes.c.stopped_at < cutoff)
        )

    def _unjoined_receipts(self, connection: Connection) -> Sequence[RowMapping]:
        receipts = omni_receipts.c
        since = wall_datetime(self._clock.wall_ns()) - _UNJOINED_FOR
        wanted = select(omni_receipts).where(_RECEIPT_IS_UNJOINED, receipts.received_at >= since)
        return connection.execute(wanted.order_by(receipts.received_at, *omni_receipts.primary_key)).mappings().all()

    def _delete(self, table: Table, *conditions: ColumnElement[bool] | TextClause) -> int:
        key = tuple_(*table.primary_key)
        some = select(*table.primary_key).where(*conditions).limit(_DELETE_BATCH)
        num_deleted = 0
        while True:
            with self._database.writing("removing old rows of the ledger") as connection:
                num_now = connection.execute(delete(table).where(key.in_(some))).rowcount
            num_deleted += num_now
            if num_now < _DELETE_BATCH:
                return num_deleted


class _Change(Struct, frozen=True, kw_only=True):
    """Whose work changes hands, and who has it then."""

    dead: Collection[str]
    not_of: Collection[str]
    by: str


def _take(
    connection: Connection,
    table: Table,
    is_open: TextClause | None,
    change: _Change,
    *,
    in_order_of: Column[Any] | None = None,
) -> Sequence[RowMapping]:
    """Make rows ours and return them as they were."""
    owner, key = table.c.process_id, list(table.primary_key)
    stopped = select(omni_processes.c.process_id).where(omni_processes.c.stopped_at.is_not(None))
    is_left = or_(owner.in_(list(change.dead)), owner.in_(stopped))
    wanted = select(table).where(owner.not_in([change.by, *change.not_of]), is_left)
    if is_open is not None:
        wanted = wanted.where(is_open)
    # Locked where the database locks rows: who comes second waits and then finds them taken.
    in_order = wanted.order_by(*([] if in_order_of is None else [in_order_of]), *key).with_for_update()
    rows = connection.execute(in_order).mappings().all()
    if rows:
        is_row = [column == bindparam(f"key_{column.name}") for column in key]
        keys = [{f"key_{column.name}": row[column.name] for column in key} for row in rows]
        connection.execute(update(table).where(*is_row).values(process_id=change.by), keys)
    return rows


def _rows_with(
    connection: Connection, column: Column[Any], values: Collection[str], *conditions: ColumnElement[bool]
) -> Iterator[RowMapping]:
    for portion in in_portions(values):
        yield from connection.execute(select(column.table).where(column.in_(portion), *conditions)).mappings()
