"""Completes the text of a stream that was cut by the death of its process from the messages that were made of it. Pure.

Chunks are stored a few times a second, messages before they are sent: after a kill the outbox can hold text whose chunks were never
stored. That text was received, so it belongs to the trace; how it was divided into chunks is lost, and the one chunk that stands for it
says so by its event type.
"""

from collections.abc import Sequence

from omni.records import OutboxRecord
from omni.tracing.events import ChunkReceived

RECOVERED = "omni.recovered_from_outbox"
"""Event type of a chunk whose text is known from a message only."""


def missing_chunk(
    chunks: Sequence[ChunkReceived], outbox: Sequence[OutboxRecord], *, at_ns: int
) -> ChunkReceived | None:
    """The one chunk that stands for text of the answer's messages beyond the stored chunks; None when there is none."""
    known = sum(len(chunk.text) for chunk in chunks)
    parts: list[str] = []
    position = known
    for row in sorted(outbox, key=lambda row: row.index):
        if row.is_notice or row.end <= position:
            continue
        if row.text is None or row.start > position:
            break  # what stands in between is lost, and behind a gap nothing would be in its place
        # A range is the message's text and the white space behind it; white space before it is rare and cannot be told from that.
        whole = row.text.ljust(row.end - row.start, "\n")[: row.end - row.start]
        parts.append(whole[max(position - row.start, 0) :])
        position = row.end
    if not parts:
        return None
    index = chunks[-1].index + 1 if chunks else 0
    return ChunkReceived(at_ns, index, "".join(parts), RECOVERED)


def chunk_range(chunks: Sequence[ChunkReceived], start: int, end: int) -> tuple[int | None, int | None]:
    """The indexes of the first and the last chunk that have a part in the characters ``[start, end)``; None without any."""
    first: int | None = None
    last: int | None = None
    position = 0
    for chunk in chunks:
        behind = position + len(chunk.text)
        if behind > start and position < end and chunk.text:
            first = chunk.index if first is None else first
            last = chunk.index
        position = behind
    return first, last
