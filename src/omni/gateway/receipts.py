"""Takes receipts: makes each durable, finds the turn whose message it confirms, and puts it on that turn's trace.

Receipts come long after the answer, or before Evolution's own answer to the send, or for a message another process sent. Those of
messages sent here lately join at once and are timed by the monotonic clock. The others wait for a second, in which the message usually
becomes known, and are then looked up in the outbox, all that are due in one read; their times are counted by the wall clock. One whose
message is not known then is looked for a few times more. What is never found stays in the ledger and is given back at the next start.

Nothing here grows without bound: so many recent sends and so many waiting receipts are kept, the oldest go first, and the ledger has all.
Runs on the event loop; reads happen in worker threads.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count

from msgspec import Struct, structs

from omni.channels.whatsapp.event_time import EventClocks
from omni.channels.whatsapp.webhook import WebhookEvent
from omni.clock import NS_PER_S, Anchor, Clock, wall_datetime
from omni.errors import StoreError
from omni.faults import fault_facts
from omni.model import Receipt
from omni.ports import Ledger, LedgerReader, PutReceipt
from omni.records import OutboxRecord, ReceiptRecord
from omni.tracing.events import ReceiptSeen

log = logging.getLogger(__name__)

LogReceipt = Callable[[str, Anchor, ReceiptSeen], None]
"""Appends a receipt to a trace: its id, the turn's start to which the receipt's times belong, the event. Must not block or raise."""
FindTurns = Callable[[Collection[str]], Mapping[str, Anchor]]
"""The starts of stored turns by trace id (``stored.stored_anchor``); ids nobody knows are left out. Blocks; may raise StoreError."""

Sleep = Callable[[float], Awaitable[object]]

# Sends remembered for exact times: some 250 bytes each. Older ones are found in the outbox.
_MAX_RECENT = 20_000
# Receipts kept in memory while their message is not known.
_MAX_WAITING = 10_000
# Looks planned at most; a receipt that puts its message's look off leaves the old one behind.
_MAX_LOOKS = 4 * _MAX_WAITING
# Seconds before each look for a message that is not known. The first leaves time for Evolution's answer to a send.
_LOOK_AFTER_S = (1.0, 10.0, 60.0, 600.0)
# Keys asked for in one read.
_BATCH = 500
# A look that becomes due while another is waited for is late by this at most.
_TICK_S = 1.0

_Key = tuple[str, str]


class _Sent(Struct, frozen=True):
    trace_id: str
    turn: Anchor


class _Taken(Struct, frozen=True):
    """A stored receipt; ``arrived`` is None when an earlier process took it."""

    record: ReceiptRecord
    arrived: Anchor | None


class _Unknown(Struct):
    """The receipts of one message that is not known yet."""

    taken: list[_Taken]
    due_ns: int
    num_looks: int = 0


class ReceiptBook:
    """All receipts of one process. Used on the event loop only; close it with ``aclose``.

    ``num_waiting`` counts receipts whose message is not known yet, ``num_joined`` those put on a trace, ``num_left`` those left to the ledger
    because their message was not found, or too many were waiting, ``num_by_status`` those taken.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        reader: LedgerReader,
        find_turns: FindTurns,
        log_receipt: LogReceipt,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._reader = reader
        self._find_turns = find_turns
        self._log_receipt = log_receipt
        self._clock = clock
        self._sleep = sleep
        self._event_clocks = EventClocks()
        self._recent: OrderedDict[_Key, _Sent] = OrderedDict()
        self._unknown: OrderedDict[_Key, _Unknown] = OrderedDict()
        self._due: list[tuple[int, int, _Key]] = []
        self._counter = count()
        self._looking: asyncio.Task[None] | None = None
        self._is_read_failing = False
        self._is_closing = False
        self.num_by_status: Counter[str] = Counter()
        self.num_waiting = 0
        self.num_joined = 0
        self.num_left = 0

    def note_event(self, instance_name: str, event: WebhookEvent, arrived: Anchor) -> None:
        """Learn from any webhook of an instance how its clock and zone stand to ours. Call it before ``take``. Never blocks."""
        if event.claimed_wall_ns is not None:
            self._event_clocks.note(instance_name, event.claimed_wall_ns, arrived, stamped_s=event.stamped_s)

    async def take(self, receipts: Sequence[Receipt], *, arrived: Anchor) -> list[bool]:
        """Store receipts of one webhook; returns when all would survive the process. For each, False when it was known already.

        Raises StoreError when one could not be stored; the others are, and all may be brought again. They are joined to their traces
        also when the caller hangs up.
        """
        puts = [self._put(receipt, arrived) for receipt in receipts]
        if puts:
            await asyncio.wait(puts)
        return [put.result() for put in puts]

    def note_sent(self, instance_name: str, key_id: str, *, trace_id: str, turn: Anchor) -> None:
        """A message's key became known; receipts that waited for it join its trace. Never blocks.

        ``turn`` is the turn's start on this process's monotonic clock.
        """
        key = (instance_name, key_id)
        sent = self._recent[key] = _Sent(trace_id, turn)
        self._recent.move_to_end(key)
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        for taken in self._forget(key):
            self._join(taken, sent, is_of_here=True)

    def resume(self, records: Iterable[ReceiptRecord]) -> None:
        """Take up receipts whose message was not known when the process before ended. Never blocks."""
        for record in records:
            self._place(_Taken(record, None), look_after_s=0)

    async def aclose(self) -> None:
        """Look no further; what waits stays in the ledger for the next start."""
        self._is_closing = True
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _put(self, receipt: Receipt, arrived: Anchor) -> asyncio.Future[bool]:
        happened = None
        if receipt.claimed_wall_ns is not None:
            happened = self._event_clocks.place(receipt.instance_name, receipt.claimed_wall_ns, arrived)
        record = ReceiptRecord(
            instance_name=receipt.instance_name,
            key_id=receipt.key_id,
            status=receipt.status,
            received_at=wall_datetime(arrived.wall_ns),
            event_at=None if happened is None else wall_datetime(happened.wall_ns),
            event_uncertainty_ms=None if happened is None else happened.uncertainty_ms,
        )
        put = self._ledger.put(PutReceipt(record))
        put.add_done_callback(partial(self._note_stored, _Taken(record, arrived)))
        return put

    def _note_stored(self, taken: _Taken, put: asyncio.Future[bool]) -> None:
        if not put.cancelled() and put.exception() is None and put.result():
            self.num_by_status[taken.record.status] += 1
            self._place(taken, look_after_s=_LOOK_AFTER_S[0])

    def _place(self, taken: _Taken, *, look_after_s: float) -> None:
        key = (taken.record.instance_name, taken.record.key_id)
        sent = self._recent.get(key)
        if sent is not None:
            self._join(taken, sent, is_of_here=True)
            return
        unknown = self._unknown.setdefault(key, _Unknown([], 0))
        unknown.taken.append(taken)
        unknown.num_looks = 0
        self.num_waiting += 1
        while self.num_waiting > _MAX_WAITING:
            self.num_left += len(self._forget(next(iter(self._unknown))))
        self._schedule(key, look_after_s)

    def _join(self, taken: _Taken, sent: _Sent, *, is_of_here: bool) -> None:
        arrived = taken.arrived if is_of_here else None
        self._log_receipt(sent.trace_id, sent.turn, _seen(taken.record, sent.turn, arrived))
        joined = structs.replace(taken.record, trace_id=sent.trace_id, version=taken.record.version + 1)
        self._ledger.post(PutReceipt(joined))
        self.num_joined += 1

    def _forget(self, key: _Key) -> list[_Taken]:
        unknown = self._unknown.pop(key, None)
        if unknown is None:
            return []
        self.num_waiting -= len(unknown.taken)
        return unknown.taken

    def _schedule(self, key: _Key, look_after_s: float) -> None:
        unknown = self._unknown.get(key)
        if unknown is None or self._is_closing:
            return
        unknown.due_ns = self._clock.mono_ns() + int(look_after_s * NS_PER_S)
        if len(self._due) >= _MAX_LOOKS:  # what stands for keys that are gone
            looks = ((unknown.due_ns, next(self._counter), key) for key, unknown in self._unknown.items())
            self._due = sorted(looks)
        else:
            heappush(self._due, (unknown.due_ns, next(self._counter), key))
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="omni-receipts")
            self._looking.add_done_callback(_note_end)

    async def _look(self) -> None:
        while self._due:
            wait_ns = self._due[0][0] - self._clock.mono_ns()
            if wait_ns > 0:
                await self._sleep(min(wait_ns / NS_PER_S, _TICK_S))
                continue
            keys = self._take_due()
            if keys:
                await self._look_up(keys)

    def _take_due(self) -> list[_Key]:
        now_ns = self._clock.mono_ns()
        keys: dict[_Key, None] = {}
        while self._due and self._due[0][0] <= now_ns and len(keys) < _BATCH:
            due_ns, _, key = heappop(self._due)
            unknown = self._unknown.get(key)
            # Joined since, or put off by a later receipt of the same message.
            if unknown is not None and unknown.due_ns == due_ns:
                keys[key] = None
        return list(keys)

    async def _look_up(self, keys: Sequence[_Key]) -> None:
        try:
            found, turns = await asyncio.to_thread(self._read, keys)
        except StoreError as exc:
            if not self._is_read_failing:
                log.warning("receipt_lookup_failed", extra={"num_waiting": self.num_waiting, "cause": exc.sentence})
            self._is_read_failing = True
            for key in keys:  # not a look: nobody said that the message is unknown
                self._schedule(key, _LOOK_AFTER_S[1])
            return
        self._is_read_failing = False
        for key in keys:
            outbound = found.get(key)
            trace_id = None if outbound is None else outbound.trace_id
            turn = None if trace_id is None else turns.get(trace_id)
            if trace_id is not None and turn is not None:
                for taken in self._forget(key):
                    self._join(taken, _Sent(trace_id, turn), is_of_here=False)
            else:
                self._look_later(key)

    def _read(self, keys: Sequence[_Key]) -> tuple[dict[_Key, OutboxRecord], Mapping[str, Anchor]]:
        found = self._reader.find_outbound(keys)
        trace_ids = {outbound.trace_id for outbound in found.values() if outbound.trace_id is not None}
        return found, self._find_turns(trace_ids) if trace_ids else {}

    def _look_later(self, key: _Key) -> None:
        unknown = self._unknown.get(key)
        if unknown is None:
            return
        unknown.num_looks += 1
        if unknown.num_looks < len(_LOOK_AFTER_S):
            self._schedule(key, _LOOK_AFTER_S[unknown.num_looks])
        else:
            self.num_left += len(self._forget(key))


def _note_end(looking: asyncio.Task[None]) -> None:
    error = None if looking.cancelled() else looking.exception()
    if error is not None:  # a fault of ours: what waits is looked for again with the next receipt, or at the next start
        log.error("receipt_lookup_broke", extra=fault_facts(error))


def _seen(record: ReceiptRecord, turn: Anchor, arrived: Anchor | None) -> ReceiptSeen:
    """The receipt as an event of its turn. Without ``arrived`` on the turn's own monotonic line it is timed by the wall clock."""
    # A wall clock that was set back must not put it before the turn.
    mono_ns = max(turn.mono_at(record.received_at), turn.mono_ns) if arrived is None else arrived.mono_ns
    event_ns = None
    if record.event_at is not None:
        event_ns = mono_ns - max((record.received_at - record.event_at) // timedelta(microseconds=1), 0) * 1_000
    return ReceiptSeen(
        mono_ns=mono_ns,
        key_id=record.key_id,
        status=record.status,
        event_ns=event_ns,
        event_uncertainty_ms=record.event_uncertainty_ms,
        is_wall_timed=arrived is None,
    )
