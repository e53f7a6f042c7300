"""Derives a stream anew from its stored columns: is every chunk there once, in order, and do they join to the stored answer? Pure.

Part of ``verify``. It reads the payloads themselves and not the timeline, because reading a trace for people passes over what is damaged,
and this is where damage has to be named. Chunks that were dropped when too much was waiting leave gaps; these are agreed to when the trace
tells the same number.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any

from msgspec import Struct

from omni.ports import PayloadRow
from omni.tracing.disagreements import Findings
from omni.tracing.lost_text import RECOVERED
from omni.tracing.packing import PACKING_VERSION, TEXT_KEYS

CHUNKS_STAGE = "streaming_chunks"

# Enough to tell two texts apart, too little to tell by trial which short text it was.
_DIGEST_CHARS = 6


class Closing(Struct, frozen=True, kw_only=True):
    """The stage that closed the agent's part. ``text`` is the answer it holds, None when that is no text."""

    stage: str
    row_id: int
    payload: Mapping[str, Any]
    meta: Mapping[str, Any]
    text: str | None

    @property
    def is_stream(self) -> bool:
        """Whether it closed a stream, and not an answer that came whole."""
        return self.stage in TEXT_KEYS


class Losses(Struct, frozen=True, kw_only=True):
    """What the trace itself says was not kept."""

    dropped_chunks: int = 0
    lost_rows: int = 0


class StoredStream(Struct, frozen=True, kw_only=True):
    """The chunks as stored, in order. ``text`` is None when a part of it cannot be known.

    ``is_end_recovered``: the last one stands for several, whose text was found in the outbox after the process had died.
    """

    indexes: Sequence[int] = ()
    sizes: Sequence[int] = ()
    offsets_us: Sequence[int] = ()
    text: str | None = ""
    is_damaged: bool = False
    is_end_recovered: bool = False


class _Columns(Struct, frozen=True, kw_only=True):
    where: str
    indexes: Sequence[int]
    sizes: Sequence[int]
    offsets_us: Sequence[int]
    text: str | None
    text_stage: str | None
    digest: str | None
    is_end_recovered: bool


class _Misfit(ValueError):
    """Columns that are no chunk columns; the sentence says why."""


def read_closing(payloads: Iterable[PayloadRow], findings: Findings) -> Closing | None:
    """The stage that closed the agent's part, None while it is open. A second one is a disagreement."""
    closings: list[Closing] = []
    for row in payloads:
        payload = row.payload
        if not isinstance(payload, dict):
            continue
        if row.stage in TEXT_KEYS:
            text = payload.get(TEXT_KEYS[row.stage])
            if text is None and row.stage == "streaming_error":
                text = ""  # nothing had arrived
        elif row.stage == "agent_response" and not payload.get("streaming"):
            text = payload.get("message") or ""
        else:
            continue
        if not isinstance(text, str):
            findings.add("payload_damaged", _at(row), stored=text, derived="text")
        meta = payload.get("omni")
        closings.append(
            Closing(
                stage=row.stage,
                row_id=row.id,
                payload=payload,
                meta=meta if isinstance(meta, dict) else {},
                text=text if isinstance(text, str) else None,
            )
        )
    if sum(closing.is_stream for closing in closings) > 1:
        findings.add("stage_repeated", closings[1].stage, stored=len(closings), derived=1)
    return closings[0] if closings else None


def read_losses(payloads: Iterable[PayloadRow]) -> Losses:
    """What the trace says was not kept."""
    told = [
        row.payload
        for row in payloads
        if row.stage == CHUNKS_STAGE and row.payload_type == "error" and isinstance(row.payload, dict)
    ]
    return Losses(
        dropped_chunks=max((_count(payload.get("dropped_chunks")) for payload in told), default=0),
        lost_rows=max((_count(payload.get("lost_rows")) for payload in told), default=0),
    )


def read_stream(
    payloads: Iterable[PayloadRow], closing: Closing | None, losses: Losses, findings: Findings
) -> StoredStream:
    """The chunks of all rows together; rows that do not hold together are named and left out."""
    parts: list[_Columns] = []
    is_damaged = False
    for row in payloads:
        if row.stage != CHUNKS_STAGE or row.payload_type == "error":
            continue
        if not isinstance(row.payload, dict):
            is_damaged = True  # named with the other payloads
            continue
        try:
            parts.append(_read_columns(row, row.payload))
        except _Misfit as exc:
            is_damaged = True
            findings.add("chunk_columns", _at(row), stored=str(exc), derived="columns that fit together")
    known: list[str] = []
    for part in parts:
        text = _text_of(part, closing, losses, findings)
        if text is not None and len(text) != sum(part.sizes):
            is_damaged = True
            findings.add("chunk_columns", part.where, stored=sum(part.sizes), derived=len(text))
        elif text is not None:
            known.append(text)
    return StoredStream(
        indexes=[index for part in parts for index in part.indexes],
        sizes=[size for part in parts for size in part.sizes],
        offsets_us=[offset for part in parts for offset in part.offsets_us],
        text="".join(known) if len(known) == len(parts) and not is_damaged else None,
        is_damaged=is_damaged,
        is_end_recovered=any(part.is_end_recovered for part in parts),
    )


def num_dropped(closing: Closing | None, losses: Losses) -> int:
    """How many chunks the trace says are missing: those nobody noted, and those whose record was given up later."""
    noted = 0 if closing is None or not closing.is_stream else _count(closing.meta.get("dropped_chunks"))
    return max(losses.dropped_chunks, noted)


def check_stream(
    stream: StoredStream, closing: Closing | None, losses: Losses, findings: Findings, *, is_open: bool
) -> None:
    """Indexes without gap or repeat, times that do not run back, sums that add up, and text that is the answer's."""
    dropped = num_dropped(closing, losses)
    _check_indexes(stream, findings, dropped=dropped, is_open=is_open)
    for earlier, later in pairwise(stream.offsets_us):
        if later < earlier:
            findings.add("chunk_offset", CHUNKS_STAGE, stored=later, derived=f"at least {earlier}")
            break
    if closing is None or not closing.is_stream or stream.is_damaged:
        return
    _check_count(stream, closing, findings, dropped=dropped)
    if stream.text is not None and closing.text is not None:
        _check_content(stream, closing.text, f"{closing.stage}.{TEXT_KEYS[closing.stage]}", findings, dropped=dropped)


def _check_indexes(stream: StoredStream, findings: Findings, *, dropped: int, is_open: bool) -> None:
    expected = -1
    for index in stream.indexes:
        expected += 1
        # While a trace is open, and where chunks were dropped, a gap is no news; going back always is.
        if index == expected or (index > expected and (dropped or is_open or stream.is_damaged)):
            expected = index
            continue
        findings.add("chunk_index", CHUNKS_STAGE, stored=index, derived=expected)
        return


def _check_count(stream: StoredStream, closing: Closing, findings: Findings, *, dropped: int) -> None:
    key = "total_chunks" if closing.stage == "streaming_complete" else "chunks_received"
    total = len(stream.indexes) + dropped
    findings.compare("chunk_count", f"{closing.stage}.{key}", stored=closing.payload.get(key), derived=total)
    if stream.indexes and stream.indexes[-1] >= total:
        findings.add("chunk_index", CHUNKS_STAGE, stored=stream.indexes[-1], derived=f"below {total}")


def _check_content(stream: StoredStream, content: str, where: str, findings: Findings, *, dropped: int) -> None:
    text = stream.text or ""
    if not dropped:
        # An answer whose server sent no pieces has no chunks, and its text stands in the closing stage alone.
        if stream.indexes and text != content:
            findings.add(
                "content", where, stored=_told(content), derived=f"{_told(text)}, {_first_difference(text, content)}"
            )
        return
    position = 0
    for start, size in zip(accumulate(stream.sizes, initial=0), stream.sizes, strict=False):
        found = content.find(text[start : start + size], position)
        if found < 0:
            findings.add("content", where, stored=_told(content), derived="all kept chunks, in their order")
            return
        position = found + size


def _text_of(part: _Columns, closing: Closing | None, losses: Losses, findings: Findings) -> str | None:
    if part.text_stage is None:
        return part.text
    if closing is None or closing.stage != part.text_stage:
        if not losses.lost_rows:
            stage = None if closing is None else closing.stage
            findings.add("stage_missing", part.where, stored=part.text_stage, derived=stage)
        return None
    if closing.text is None:
        return None
    digest = sha256(closing.text.encode("utf-8", "surrogatepass")).hexdigest()
    if digest != part.digest:
        # Which of the two was changed cannot be said; the chunks' own text is not stored a second time.
        stored = None if part.digest is None else part.digest[:_DIGEST_CHARS]
        findings.add("content_digest", part.where, stored=stored, derived=digest[:_DIGEST_CHARS])
        return None
    return closing.text


def _read_columns(row: PayloadRow, payload: Mapping[str, Any]) -> _Columns:
    if payload.get("version") != PACKING_VERSION:
        raise _Misfit("an unknown version")
    sizes, gaps = _counts(payload, "sizes"), _counts(payload, "gaps_us", may_be_negative=True)
    first_offset, first_index = payload.get("first_offset_us"), payload.get("first_index")
    if not isinstance(first_offset, int) or not isinstance(first_index, int):
        raise _Misfit("no first index or no first offset")
    indexes = _counts(payload, "indexes") if "indexes" in payload else range(first_index, first_index + len(sizes))
    if {len(gaps) + 1, len(indexes), payload.get("count"), _num_typed(payload)} != {len(sizes)}:
        raise _Misfit("columns of different lengths")
    text, text_stage, digest = payload.get("text"), payload.get("text_stage"), payload.get("text_sha256")
    if text_stage is None and not (isinstance(text, str) and len(text) == sum(sizes)):
        raise _Misfit("a text that is not as long as its chunks")
    return _Columns(
        where=_at(row),
        indexes=indexes,
        sizes=sizes,
        offsets_us=list(accumulate(gaps, initial=first_offset)),
        text=text,
        text_stage=text_stage,
        digest=digest if isinstance(digest, str) else None,
        is_end_recovered=payload["event_types"][-1:] == [[RECOVERED, 1]],
    )


def _counts(payload: Mapping[str, Any], key: str, *, may_be_negative: bool = False) -> list[int]:
    values = payload.get(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise _Misfit(f"{key} are no whole numbers")
    if not may_be_negative and values and min(values) < 0:
        raise _Misfit(f"{key} below zero")
    return values


def _num_typed(payload: Mapping[str, Any]) -> int:
    try:
        return sum(times for _, times in payload["event_types"])
    except (KeyError, TypeError, ValueError):
        raise _Misfit("event types that cannot be read") from None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _told(text: str) -> str:
    return f"{len(text)} characters"


def _first_difference(text: str, other: str) -> str:
    pairs = enumerate(zip(text, other, strict=False))
    position = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(text), len(other)))
    return f"different from character {position} on"


def _at(row: PayloadRow) -> str:
    return f"{row.stage} (row {row.id})"
