"""Chunks as columns: the compact form in which a stream is stored, and back. Pure.

A thousand chunks are one payload: the joined text, the sizes in code points, the time between neighbours in microseconds and the
event types run-length coded. Nothing is thinned out. Times are cut to the microsecond before they are subtracted, so the sum never drifts.

When the stage that closes the stream holds the same text anyway, as it almost always does, the columns name that stage and the text's
SHA-256 instead of repeating it; reading checks the digest, so a text that was changed is noticed. Inside the store's zlib and
base64 the columns are then 4 to 6 bytes per chunk of an ordinary answer.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

from omni.clock import Anchor
from omni.tracing.events import ChunkReceived

PACKING_VERSION = 1
TEXT_KEYS = {"streaming_complete": "final_content", "streaming_error": "partial_content"}
"""Which key of which closing stage holds the text of all chunks."""


def pack_chunks(
    chunks: Sequence[ChunkReceived], anchor: Anchor, *, is_segment: bool = False, text_stage: str | None = None
) -> dict[str, Any]:
    """The payload for ``chunks``; offsets count from the turn's start.

    ``is_segment`` marks a part of a running stream; ``text_stage`` is the stage that holds the very same text, None to keep it here.
    """
    text = "".join([chunk.text for chunk in chunks])
    zero = anchor.mono_ns
    offsets_us = [(chunk.mono_ns - zero) // 1_000 for chunk in chunks]
    gaps_us = [later - earlier for earlier, later in pairwise(offsets_us)]
    payload: dict[str, Any] = {
        "version": PACKING_VERSION,
        "count": len(chunks),
        "first_index": chunks[0].index,
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
    if text_stage is None:
        payload["text"] = text
    else:
        payload |= {"text_stage": text_stage, "text_sha256": _digest(text)}
    return payload


def unpack_chunks(payload: dict[str, Any], anchor: Anchor, *, text_by_stage: Mapping[str, str]) -> list[ChunkReceived]:
    """The chunks of a packed payload, times as monotonic readings relative to ``anchor``.

    ``text_by_stage`` holds the texts of the closing stages. Raises ValueError when the columns or the text are damaged.
    """
    if payload.get("version") != PACKING_VERSION:
        raise ValueError(f"unknown chunk packing {payload.get('version')!r}")
    sizes: list[int] = payload["sizes"]
    text = _text_of(payload, text_by_stage)
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


def _text_of(payload: dict[str, Any], text_by_stage: Mapping[str, str]) -> str:
    if "text_stage" not in payload:
        text: str = payload["text"]
        return text
    text = text_by_stage.get(payload["text_stage"], "")
    if _digest(text) != payload["text_sha256"]:
        raise ValueError("the text of the closing stage is not the one the chunks were joined to")
    return text


def _digest(text: str) -> str:
    # Half a character cannot be UTF-8; two different halves are told apart all the same.
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _run_lengths(values: Sequence[str | None]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs
