"""All that makes this process's records durable, put together: database, spool, and the writers of traces and of the ledger.

The order of closing is the order in which work flows: the writers first, for what they still hold may go to the database or to the spool,
then the gate, which moves what it can, and last this process's entry, which others would take for a dead one's otherwise.
"""

import logging

from omni.clock import Clock
from omni.errors import StoreError
from omni.settings import Settings
from omni.store.database import Database
from omni.store.draining import RefusalListeners
from omni.store.ledger import LedgerWriter
from omni.store.ledger_reader import SqlLedgerReader
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.processes import ProcessRegistry
from omni.store.spool import Spool
from omni.store.spooling import SpooledLedgerSink, SpooledTraceSink, StoreGate
from omni.store.taking_over import ProcessLedgerReader
from omni.store.writes import SqlTraceSink
from omni.tracing.recorder import Recorder

log = logging.getLogger(__name__)

_BYTES_PER_MB = 1_000_000
_SPOOL_FOLDER = "spool"


class DurableStore:
    """The writers of one process, running, and its entry among the processes. Raises StoreError when it cannot be entered."""

    def __init__(self, database: Database, *, clock: Clock, settings: Settings) -> None:
        wait_ms, spool_bytes = settings.database_wait_ms, settings.spool_max_mb * _BYTES_PER_MB
        self._registry = ProcessRegistry(
            database, folder=settings.data_dir / _SPOOL_FOLDER, clock=clock, wait_ms=wait_ms
        )
        process_id = self._registry.register()
        traces = SqlTraceSink(database, process_id=process_id, clock=clock, wait_ms=wait_ms)
        self.gate = StoreGate(
            Spool(self._registry.spool_path(process_id), max_bytes=spool_bytes),
            traces=traces,
            ledger=SqlLedgerSink(database, process_id=process_id, wait_ms=wait_ms),
            probe=self._registry.heartbeat,
            clock=clock,
        )
        self.recorder = Recorder(SpooledTraceSink(self.gate), clock=clock, settings=settings, tiers=self.gate)
        self.ledger = LedgerWriter(SpooledLedgerSink(self.gate), clock=clock, settings=settings)
        self.reader = ProcessLedgerReader(
            database,
            registry=self._registry,
            reader=SqlLedgerReader(database, clock=clock),
            spool_max_bytes=spool_bytes,
        )
        self.gate.report_refusals(RefusalListeners(traces=self.recorder.note_refused, ledger=self.ledger.note_refused))
        self.gate.start()
        self.ledger.start()
        self.recorder.start()

    def heartbeat(self) -> None:
        """Say that this process lives. Blocks; raises StoreError while the database is away."""
        self._registry.heartbeat()

    def close(self, *, deadline_s: float) -> None:
        """Store what is in memory, each part within ``deadline_s`` seconds. Blocks, does not raise; safe to call twice."""
        if not self.ledger.stop(deadline_s=deadline_s):
            log.error("ledger_not_drained", extra={"num_waiting": self.ledger.num_waiting})
        if not self.recorder.stop(deadline_s=deadline_s):
            log.error("recorder_not_drained", extra={"num_pending": self.recorder.num_pending})
        if not self.gate.stop(deadline_s=deadline_s):
            log.warning("spool_left_for_the_next_start", extra={"num_entries": self.gate.num_spooled})
        try:
            self._registry.stop()
        except StoreError as exc:
            log.warning("process_not_signed_off", extra={"cause": exc.sentence})
