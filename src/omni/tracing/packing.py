"""Chunks as columns: the compact form in which a stream is stored, and back. Pure.

A thousand chunks are one payload: the joined text, the sizes in code points, the time between neighbours in microseconds and the
event types run-length coded. Inside the store's zlib and base64 that is 6 to 9 bytes per chunk of an ordinary answer, and
nothing is thinned out. Times are cut to the microsecond before they are subtracted, so the sum never drifts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from omni.clock import Anchor
from omni.tracing.events import ChunkReceived

PACKING_VERSION = 1


def pack_chunks(chunks: Sequence[ChunkReceived], anchor: Anchor, *, is_segment: bool) -> dict[str, Any]:
    """The payload for ``chunks``; offsets count from the turn's start. ``is_segment`` marks a part of a running stream."""
    zero = anchor.mono_ns
    offsets_us = [(chunk.mono_ns - zero) // 1_000 for chunk in chunks]
    gaps_us = [later - earlier for earlier, later in pairwise(offsets_us)]
    payload: dict[str, Any] = {
        "version": PACKING_VERSION,
        "count": len(chunks),
        "first_index": chunks[0].index,
        "text": "".join([chunk.text for chunk in chunks]),
        "sizes": [len(chunk.text) for chunk in chunks],
        "first_offset_us": offsets_us[0],
        "gaps_us": gaps_us,
        "event_types": _run_lengths([chunk.event_type for chunk in chunks]),
    }
    indexes = [chunk.index for chunk in chunks]
    if indexes != list(range(indexes[0], indexes[0] + len(indexes))):
        payload["indexes"] = indexes
    if is_segment:
        payload["is_segment"] = True
    return payload


def unpack_chunks(payload: dict[str, Any], anchor: Anchor) -> list[ChunkReceived]:
    """The chunks of a packed payload, times as monotonic readings relative to ``anchor``. Raises ValueError when damaged."""
    if payload.get("version") != PACKING_VERSION:
        raise ValueError(f"unknown chunk packing {payload.get('version')!r}")
    sizes: list[int] = payload["sizes"]
    text: str = payload["text"]
    types = [kind for kind, times in payload["event_types"] for _ in range(times)]
    if sum(sizes) != len(text) or len(types) != len(sizes) or len(payload["gaps_us"]) + 1 != len(sizes):
        raise ValueError("chunk columns do not fit together")
    first_index = payload["first_index"]
    indexes = payload.get("indexes") or range(first_index, first_index + len(sizes))
    chunks: list[ChunkReceived] = []
    position, offset_us = 0, payload["first_offset_us"]
    for index, size, kind, gap_us in zip(indexes, sizes, types, [0, *payload["gaps_us"]], strict=True):
        offset_us += gap_us
        chunks.append(ChunkReceived(anchor.mono_ns + offset_us * 1_000, index, text[position : position + size], kind))
        position += size
    return chunks


def _run_lengths(values: Sequence[str | None]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs
