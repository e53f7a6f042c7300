"""Batches of rows on their way to the store, in order: usually one, more when the store takes nothing at the moment.

This is the last tier, plain memory, and it is bounded. When it is full, bodies of chunks are left out of the oldest batches first, then
other payloads of the newest, and when not even headers and endings have room, the newest batch goes. The batch at the head is
never touched: it has been offered already, and the store may have taken it without being able to say so.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from msgspec import Struct, structs

from omni.ports import InsertTrace, WriteOp
from omni.tracing.losses import (
    LossCount,
    Stripped,
    holds_chunks,
    memory_bytes,
    num_chunks,
    num_rows,
    only_essentials,
    smallest_parts,
    without_chunks,
)

# A batch that waits takes in what comes behind it up to this many operations: fewer transactions later.
_JOIN_UP_TO = 500

CountLoss = Callable[[LossCount, int, int], None]
"""Counts what is not kept of a trace: chunks that the journal still holds, and rows."""


class Part(Struct, frozen=True):
    """One trace's operations in a batch.

    ``has_added_header``: the first is the trace's own row, which was refused once and goes along; ``is_bare``: that was tried, and the
    store refused the two together.
    """

    losses: LossCount
    ops: list[WriteOp]
    has_added_header: bool = False
    is_bare: bool = False

    @property
    def own_ops(self) -> list[WriteOp]:
        """Those that would be missing if the part were given up."""
        return self.ops[1:] if self.has_added_header else self.ops


class Batch:
    """Operations of some traces that are stored together or not at all."""

    __slots__ = ("is_bare", "is_offered", "is_stripped", "ops", "parts", "size_bytes")

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.ops: list[WriteOp] = [op for part in parts for op in part.ops]
        self.size_bytes: int | None = None
        self.is_stripped = False
        self.is_bare = False
        self.is_offered = False

    def replace_parts(self, parts: list[Part]) -> None:
        """Hold these operations instead."""
        self.parts = parts
        self.ops = [op for part in parts for op in part.ops]
        self.size_bytes = None


class HeldBatches:
    """The batches, oldest first. Used by the recorder's thread only; the figures may be read from any."""

    def __init__(self, count_loss: CountLoss) -> None:
        self._batches: deque[Batch] = deque()
        self._count_loss = count_loss
        self._measured_bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def size_bytes(self) -> int:
        """About how much memory the batches hold that had to wait."""
        return self._measured_bytes

    def offer_head(self) -> Sequence[WriteOp]:
        """The operations to offer next: from the first time on the same object, unchanged."""
        batch = self._batches[0]
        if not batch.is_offered:
            batch.is_offered = True
            self._add_headers(batch)
        return batch.ops

    def add(self, parts: list[Part]) -> None:
        """Put operations behind the others."""
        if len(self._batches) > 1 and len(self._batches[-1].ops) < _JOIN_UP_TO:
            last = self._batches[-1]
            self._forget_size(last)
            last.replace_parts([*last.parts, *parts])
            last.is_stripped = last.is_bare = False
        else:
            self._batches.append(Batch(parts))

    def drop_head(self) -> None:
        """The head is stored."""
        batch = self._batches.popleft()
        self._forget_size(batch)
        for part in batch.parts:
            part.losses.note_stored(part.ops)

    def split_head(self) -> bool:
        """The store refused the head for good: put smaller pieces in its place; what cannot be made smaller is lost and counted.

        False when the head was lost.
        """
        batch = self._batches.popleft()
        self._forget_size(batch)
        pieces = list(self._pieces(batch))
        self._batches.extendleft(reversed(pieces))
        return bool(pieces)

    def fit(self, max_bytes: int) -> None:
        """Leave out what exceeds the bound, and count it."""
        for batch in self._batches:
            if batch.size_bytes is None:
                batch.size_bytes = memory_bytes(batch.ops)
                self._measured_bytes += batch.size_bytes
        for batch in islice(self._batches, 1, None):
            if self._measured_bytes <= max_bytes:
                return
            if not batch.is_stripped:
                self._reduce(batch, without_chunks)
                batch.is_stripped = True
        for position in range(len(self._batches) - 1, 0, -1):
            if self._measured_bytes <= max_bytes:
                return
            batch = self._batches[position]
            if not batch.is_bare:
                self._reduce(batch, only_essentials)
                batch.is_bare = True
        while self._measured_bytes > max_bytes and len(self._batches) > 1:
            self._lose(self._batches[-1], is_for_room=True)
            self._forget_size(self._batches.pop())

    def lose_all(self) -> None:
        """Give everything up, and count it."""
        while self._batches:
            batch = self._batches.popleft()
            self._forget_size(batch)
            self._lose(batch)

    def _pieces(self, batch: Batch) -> Iterable[Batch]:
        if len(batch.parts) > 1:
            return [Batch([part]) for part in batch.parts]
        (part,) = batch.parts
        smaller = smallest_parts(part.own_ops)
        if len(smaller) > 1:
            return [Batch([Part(part.losses, ops)]) for ops in smaller]
        if part.has_added_header and smaller:
            # Perhaps the row is there, and only the answer that said so was lost.
            return [Batch([Part(part.losses, part.own_ops, is_bare=True)])]
        if any(holds_chunks(op) for op in part.ops):
            # The row that says how many they were may be acceptable.
            return [Batch([structs.replace(self._counted(part, without_chunks), is_bare=False)])]
        if num_chunks(part.own_ops) or num_rows(part.own_ops):
            self._lose(batch)
        else:
            # It was only to tell what is lost already.
            part.losses.is_mute = True
        return []

    def _lose(self, batch: Batch, *, is_for_room: bool = False) -> None:
        for part in batch.parts:
            losses = part.losses
            if any(isinstance(op, InsertTrace) for op in part.own_ops):
                losses.needs_header = True
                if is_for_room and not losses.is_open:
                    losses.header = None
            self._count_loss(losses, num_chunks(part.own_ops), num_rows(part.own_ops))

    def _add_headers(self, batch: Batch) -> None:
        """Put the rows of traces that lack theirs in front of what else is to be stored of them."""
        parts: list[Part] = []
        added: set[str] = set()
        for part in batch.parts:
            losses, header = part.losses, part.losses.header
            has_own = part.is_bare or part.has_added_header or any(isinstance(op, InsertTrace) for op in part.ops)
            if losses.needs_header and header is not None and not has_own and losses.trace_id not in added:
                added.add(losses.trace_id)
                part = Part(losses, [InsertTrace(losses.trace_id, dict(header)), *part.ops], has_added_header=True)  # noqa: PLW2901
            parts.append(part)
        if added:
            self._forget_size(batch)
            batch.replace_parts(parts)

    def _reduce(self, batch: Batch, strip: "Strip") -> None:
        self._forget_size(batch)
        batch.replace_parts([self._counted(part, strip) for part in batch.parts])
        batch.size_bytes = memory_bytes(batch.ops)
        self._measured_bytes += batch.size_bytes

    def _counted(self, part: Part, strip: "Strip") -> Part:
        stripped = strip(part.ops, part.losses)
        if stripped.num_shed or stripped.num_lost:
            self._count_loss(part.losses, stripped.num_shed, stripped.num_lost)
        return structs.replace(part, ops=stripped.ops)

    def _forget_size(self, batch: Batch) -> None:
        self._measured_bytes -= batch.size_bytes or 0
        batch.size_bytes = None


Strip = Callable[[Sequence[WriteOp], LossCount], Stripped]
