"""The ledger's reader of a running server: it knows which processes are dead and stores what they spooled before it takes their work.

A process whose spool cannot be stored now is left alone, work and all, until the next call: what its spool says decides whether a
message went out, and without it a message might go out twice.
"""

import logging
from collections.abc import Collection
from datetime import datetime

from omni.errors import StoreError
from omni.ports import LeftWork
from omni.records import OutboxRecord
from omni.store.database import Database
from omni.store.draining import Drain
from omni.store.ledger_reader import SqlLedgerReader
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.processes import ProcessRegistry
from omni.store.spool import Spool
from omni.store.writes import SqlTraceSink

log = logging.getLogger(__name__)


class ProcessLedgerReader:
    """A ``LedgerReader`` for the process of a registry. Safe from any thread but for ``take_over``, one at a time."""

    def __init__(
        self, database: Database, *, registry: ProcessRegistry, reader: SqlLedgerReader, spool_max_bytes: int
    ) -> None:
        self._database = database
        self._registry = registry
        self._reader = reader
        self._spool_max_bytes = spool_max_bytes
        self._has_receipts = False

    def take_over(self) -> LeftWork:
        """Make what dead processes left ours, and return it. Spools they left are stored first. Raises StoreError.

        May be called again while the process runs. Receipts come the first time only: later, those that wait do so here.
        """
        found = self._registry.find_dead()
        dead = [process_id for process_id in found if self._is_drained(process_id)]
        left = self._reader.take_over(
            dead,
            self._registry.process_id,
            not_of=set(found) - set(dead),
            with_receipts=not self._has_receipts,
        )
        self._has_receipts = True
        for process_id in dead:
            self._forget(process_id)
        return left

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """As ``SqlLedgerReader``."""
        return self._reader.recent_message_ids(received_from=received_from, limit=limit)

    def find_outbound(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], OutboxRecord]:
        """As ``SqlLedgerReader``."""
        return self._reader.find_outbound(keys)

    def forget_texts(self, cutoff: datetime) -> int:
        """As ``SqlLedgerReader``."""
        return self._reader.forget_texts(cutoff)

    def delete_older_than(self, cutoff: datetime) -> int:
        """As ``SqlLedgerReader``."""
        return self._reader.delete_older_than(cutoff)

    def _forget(self, process_id: str) -> None:
        try:
            self._registry.forget(process_id)
        except StoreError as exc:
            # The work is ours by now and must be returned. What is left of its owner is found again by the next call.
            log.error("process_not_removed", extra={"process_id": process_id, "cause": exc.sentence})  # noqa: TRY400 - the cause says it

    def _is_drained(self, process_id: str) -> bool:
        path = self._registry.spool_path(process_id)
        if not path.exists():
            return True
        try:
            spool = Spool(path, max_bytes=self._spool_max_bytes)
            try:
                drain = Drain(
                    spool,
                    traces=SqlTraceSink(self._database),
                    # In the name of the dead: what is taken over afterwards is what stands under theirs.
                    ledger=SqlLedgerSink(self._database, process_id=process_id),
                    process_id=process_id,
                )
                report = drain.move_all()
            finally:
                spool.close()
        except StoreError as exc:
            log.error("spool_not_stored", extra={"process_id": process_id, "cause": exc.sentence})  # noqa: TRY400 - the cause says it
            return False
        log.warning(
            "spool_stored",
            extra={
                "process_id": process_id,
                "num_entries": report.num_moved,
                "num_rows_lost": report.num_lost,
                "num_entries_unreadable": report.num_unreadable,
            },
        )
        return True
