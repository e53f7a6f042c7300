"""Derives each message anew from the part of the answer it stands for: nothing missing, nothing twice, nothing changed. Pure.

Part of ``verify``. The rule of the splitter is stated here a second time, in its own way: a message is its range of the answer without
what shows nothing around it, and a part of a code block that was cut has the block's opening and closing lines added. How
the splitter came to its cuts is not repeated; whether what it sent is the answer, whole and in order, is what counts.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import regex
from msgspec import Struct

from omni.ports import PayloadRow
from omni.tracing.disagreements import Findings
from omni.tracing.verify_stream import Losses, StoredStream

MESSAGES_STAGE = "evolution_send"

# White space, control and formatting characters: a message of only those would look empty, so none is sent.
_SHOWS_NOTHING = r"[\s\p{Cc}\p{Cf}\p{Z}\p{Default_Ignorable_Code_Point}]"
_BLANK_EDGES = regex.compile(rf"\A{_SHOWS_NOTHING}+|{_SHOWS_NOTHING}+\Z")
_FENCE_LINE = re.compile(r"[ \t]*(`{3,}|~{3,})[^\n]*")
_CLOSING_LINE = re.compile(r"\s*(`{3,}|~{3,})\s*")


class StoredMessage(Struct, frozen=True, kw_only=True):
    """One outgoing message as stored. Ranges are None where nobody kept them."""

    row: PayloadRow
    index: int | None
    text: str
    status: str | None
    is_notice: bool
    start: int | None
    end: int | None
    first_chunk: int | None
    last_chunk: int | None
    accepted_us: int | None

    @property
    def where(self) -> str:
        """The message in a disagreement's words."""
        return f"message {self.row.id if self.index is None else self.index}"

    @property
    def is_accepted(self) -> bool:
        """Whether Evolution took it."""
        return self.status in ("accepted", "delivered", "read")


def read_messages(payloads: Iterable[PayloadRow], findings: Findings) -> list[StoredMessage]:
    """The outgoing messages in the order they were written; what is no message is named and left out."""
    messages: list[StoredMessage] = []
    for row in payloads:
        payload = row.payload
        if row.stage != MESSAGES_STAGE or not isinstance(payload, dict):
            continue
        meta = payload.get("omni")
        if not isinstance(meta, dict):
            findings.add("payload_damaged", f"{row.stage} (row {row.id})", stored=None, derived="our own bookkeeping")
            continue
        if not isinstance(payload.get("text", ""), str):
            findings.add("payload_damaged", f"{row.stage} (row {row.id})", stored=payload["text"], derived="text")
            continue
        messages.append(_read_message(row, payload, meta))
    return messages


def check_messages(
    messages: Sequence[StoredMessage],
    content: str | None,
    stream: StoredStream,
    losses: Losses,
    findings: Findings,
    *,
    is_open: bool,
) -> None:
    """All checks of a trace's messages. ``content`` is the agent's answer, None when it is not known or there was no agent."""
    # Texts older callers send themselves have no place in the answer; only messages of an answer have an index.
    placed = sorted((one for one in messages if one.index is not None), key=lambda one: (one.index, one.row.id))
    if not placed or len(placed) != len(messages):
        return
    is_whole = not is_open and not losses.lost_rows
    _check_indexes(placed, findings, is_whole=is_whole)
    _check_order(placed, findings)
    for notice in (one for one in placed if one.is_notice and one.start != one.end):
        findings.add("message_range", notice.where, stored=_span(notice), derived="no part of the answer")
    parts = [one for one in placed if not one.is_notice]
    if all((one.start, one.end) in ((None, None), (0, 0)) for one in parts):
        return  # stored before ranges were kept, or by a caller that knows none
    ranged = [one for one in parts if one.start is not None and one.end is not None]
    for one in parts:
        if one.start is None or one.end is None:
            findings.add("message_range", one.where, stored=_span(one), derived="a range, as its neighbours have")
    _check_tiling(ranged, content, findings, is_whole=is_whole and len(ranged) == len(parts))
    # With a gap among the chunks nobody can say which of them a character came from.
    has_all_chunks = bool(stream.indexes) and not stream.is_damaged and len(stream.indexes) == stream.indexes[-1] + 1
    ends = list(accumulate(stream.sizes)) if has_all_chunks else []
    for one in ranged:
        if content is not None:
            _check_text(one, content, findings)
        if ends:
            _check_chunks(one, ends, findings, recovered=len(ends) - 1 if stream.is_end_recovered else None)


def shows_nothing(text: str) -> bool:
    """Whether a reader would see none of it."""
    return _BLANK_EDGES.sub("", text) == ""


def is_text_of_range(text: str, content: str, start: int, end: int) -> bool:
    """Whether ``text`` is what a message for ``content[start:end]`` says."""
    part = content[start:end]
    lines = text.split("\n")
    bodies = [(text, False)]
    opens = len(lines) > 1 and _is_repeated_opener(lines[0], content[:start])
    closes = len(lines) > 1 and _is_added_closer(lines[-1], content[:end])
    if opens:
        bodies.append((text[len(lines[0]) + 1 :], False))
    if closes:
        bodies.append((text[: -len(lines[-1]) - 1], True))
    if opens and closes and len(lines) > 2:
        bodies.append(("\n".join(lines[1:-1]), True))
    return any(_covers(body, part, may_end_block=may_end_block) for body, may_end_block in bodies)


def _covers(body: str, part: str, *, may_end_block: bool) -> bool:
    """Whether ``body`` stands in ``part`` and only what shows nothing stands around it, a block's own last line excepted."""
    core = _BLANK_EDGES.sub("", body)
    at = part.find(body)
    if not core or at < 0 or body != body.rstrip():
        return False
    before, behind = part[:at], part[at + len(body) :]
    indentation = body[: len(body) - len(body.lstrip())]
    if indentation and before and not before.endswith("\n"):
        return False
    is_end_clear = shows_nothing(behind) or (may_end_block and _CLOSING_LINE.fullmatch(behind) is not None)
    return is_end_clear and (shows_nothing(before) or _CLOSING_LINE.fullmatch(before) is not None)


def _is_repeated_opener(line: str, before: str) -> bool:
    """Whether the line is the opening line of a code block that begins further up in the answer."""
    if _FENCE_LINE.fullmatch(line) is None:
        return False
    return any(earlier.rstrip() == line for earlier in before.split("\n"))


def _is_added_closer(line: str, before: str) -> bool:
    """Whether the line closes a code block that begins further up in the answer or in the message."""
    marker = line.strip()
    if _CLOSING_LINE.fullmatch(line) is None:
        return False
    return any(earlier.lstrip(" \t").startswith(marker) for earlier in before.split("\n"))


def _check_indexes(placed: Sequence[StoredMessage], findings: Findings, *, is_whole: bool) -> None:
    for expected, one in enumerate(placed):
        if one.index != expected:
            is_repeat = expected > 0 and one.index == placed[expected - 1].index
            if is_whole or is_repeat:
                findings.add("message_index", one.where, stored=one.index, derived=expected)
            return


def _check_order(placed: Sequence[StoredMessage], findings: Findings) -> None:
    timed = [one for one in placed if one.accepted_us is not None]
    for earlier, later in pairwise(timed):
        assert earlier.accepted_us is not None
        assert later.accepted_us is not None
        if later.accepted_us < earlier.accepted_us:
            findings.add(
                "message_order", later.where, stored=later.accepted_us, derived=f"at least {earlier.accepted_us} us"
            )


def _check_tiling(ranged: Sequence[StoredMessage], content: str | None, findings: Findings, *, is_whole: bool) -> None:
    expected = 0
    for one in ranged:
        assert one.start is not None
        assert one.end is not None
        is_placed = one.start == expected or (one.start > expected and not is_whole)
        if not is_placed or one.end <= one.start:
            findings.add("message_range", one.where, stored=_span(one), derived=f"from {expected} on, and not empty")
        expected = max(expected, one.end)
    if content is None:
        return
    if expected > len(content):
        findings.add("message_range", ranged[-1].where, stored=_span(ranged[-1]), derived=f"up to {len(content)}")
    elif is_whole and not shows_nothing(content[expected:]):
        # Text nobody sent has a message of its own that says so.
        findings.add("message_range", "messages", stored=expected, derived=len(content))


def _check_text(one: StoredMessage, content: str, findings: Findings) -> None:
    assert one.start is not None
    assert one.end is not None
    if 0 <= one.start < one.end <= len(content) and not is_text_of_range(one.text, content, one.start, one.end):
        part = _BLANK_EDGES.sub("", content[one.start : one.end])
        findings.add(
            "message_text", one.where, stored=f"{len(one.text)} characters", derived=f"{len(part)} of {_span(one)}"
        )


def _check_chunks(one: StoredMessage, ends: Sequence[int], findings: Findings, *, recovered: int | None) -> None:
    if one.start is None or one.end is None or not 0 <= one.start < one.end <= ends[-1]:
        return
    # A chunk without characters is in no message: its end is its neighbour's.
    first, last = bisect_right(ends, one.start), bisect_left(ends, one.end)
    told = (one.first_chunk, one.last_chunk)
    if recovered is not None:
        # The message was made of chunks that are lost; the recovered one stands for them all.
        told = (_at_most(one.first_chunk, recovered), _at_most(one.last_chunk, recovered))
    if told != (first, last):
        findings.add(
            "message_chunks", one.where, stored=f"{one.first_chunk} to {one.last_chunk}", derived=f"{first} to {last}"
        )


def _read_message(row: PayloadRow, payload: Mapping[str, Any], meta: Mapping[str, Any]) -> StoredMessage:
    status = meta.get("status")
    return StoredMessage(
        row=row,
        index=_whole(payload.get("index")),
        text=payload.get("text") or "",
        status=status if isinstance(status, str) else None,
        is_notice=bool(payload.get("is_notice")),
        start=_whole(payload.get("start")),
        end=_whole(payload.get("end")),
        first_chunk=_whole(payload.get("first_chunk")),
        last_chunk=_whole(payload.get("last_chunk")),
        accepted_us=_whole(meta.get("accepted_us")),
    )


def _span(one: StoredMessage) -> str:
    return f"{one.start} to {one.end}"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _at_most(index: int | None, bound: int) -> int | None:
    return None if index is None else min(index, bound)
