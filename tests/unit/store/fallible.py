"""Databases in memory that fail on demand, for tests of what stands in front of them."""

import threading

from omni.errors import StoreError
from omni.store.spool import Spool, SpoolError
from omni.testing import MemoryLedger, MemoryStore

LOCKED = StoreError("locked", retryable=True)


class FallibleDatabase:
    """Takes traces and ledger operations as the real one does: numbered batches once each, all of a batch or nothing.

    ``mode``: "up"; "away" (refuses for now); "deaf" (stores, and its answer is lost); "hangs" until ``released`` is set. Traces named in
    ``poison`` and stages in it are refused for good.
    """

    def __init__(self):
        self.store = MemoryStore()
        self.ledger = MemoryLedger()
        self.mode = "up"
        self.poison = set()
        self.last_batch = {}
        self.applied = []
        self.num_tries = 0
        self.entered = threading.Event()
        self.released = threading.Event()

    def probe(self):
        self._enter()

    def write(self, ops, *, batch_no=None, process_id=None):
        self._enter()
        for op in ops:
            if op.trace_id in self.poison or getattr(op, "stage", None) in self.poison:
                raise StoreError("this row is not acceptable")
        owner = process_id or "own"
        if batch_no is not None and batch_no <= self.last_batch.get(owner, 0):
            return
        self.store.write(ops)
        if batch_no is not None:
            self.last_batch[owner] = batch_no
            self.applied.append((owner, batch_no))
        self._leave()

    def _enter(self):
        self.num_tries += 1
        self.entered.set()
        if self.mode == "hangs":
            assert self.released.wait(30)
        if self.mode == "away":
            raise StoreError("the database is away", retryable=True)

    def _leave(self):
        if self.mode == "deaf":
            raise StoreError("no answer", retryable=True)


class FallibleLedger:
    """The ledger's side of a FallibleDatabase."""

    def __init__(self, database):
        self._database = database
        self.groups = []

    def write(self, ops):
        database = self._database
        database._enter()
        if any(op.record.instance_name in database.poison for op in ops):
            raise StoreError("this row is not acceptable")
        self.groups.append(list(ops))
        verdicts = [database.ledger._apply(op) for op in ops]
        database._leave()
        return verdicts


class FallibleSpool(Spool):
    """A spool whose disk refuses while ``is_broken``."""

    is_broken = False

    def _append(self, *args, **kwargs):
        if self.is_broken:
            raise SpoolError("The spool's disk answered SQLITE_FULL.", retryable=True)
        super()._append(*args, **kwargs)
