"""Where to cut a paragraph that is longer than one message may be.

Called by the splitter, once for every message but the last of such a paragraph. The choice goes by what a reader minds least: a
blank line (where paragraphs are not split already), the end of a line, of a sentence, of a word, and a place between two
visible characters only when there is nothing else. A link or a code block is not cut when it fits into a message; a code
block that does not is closed and opened again.

Pure, and independent of how the text arrived: ``choose_cut`` answers None while text still to come could change its answer, and
never changes it afterwards.
"""

import re
from collections.abc import Iterator, Sequence

import regex
from msgspec import Struct

from omni.channels.whatsapp.fences import Fence, closes, may_close, may_open
from omni.channels.whatsapp.spans import (
    LINK_SCHEME_CHARS,
    Span,
    has_unfinished_link,
    last_boundary,
    link_spans,
)

INK = re.compile(r"\S")

_BLANK_LINE = regex.compile(r"\n[^\S\n]*\n", regex.REVERSE)
_LINE = regex.compile(r"\n", regex.REVERSE)
_SENTENCE = regex.compile(r"[.!?…]+[\"'”’»)\]*_~]*\s|[。！？]+[”’」』）]*", regex.REVERSE)
_WORD = regex.compile(r"\s", regex.REVERSE)
# A full stop behind these ends no sentence: list numbers, initials, short titles.
_NO_SENTENCE = regex.compile(
    r"(?:\b(?:\d{1,3}|\p{L}|Drs?|Dra|Sra?|Mrs?|Ms|Prof|etc|vs|ex|p\.ex|e\.g|i\.e))\Z", regex.IGNORECASE
)
_LONGEST_ABBREVIATION_CHARS = 6


class Passage(Struct, frozen=True, kw_only=True):
    """The rest of a paragraph, ``text[at:limit]``, of which a message may take ``room`` characters.

    ``fences`` are the code blocks in it, in order; the first may have begun before ``at``. ``open_line`` is where the line begins that
    has not ended yet, None when its beginning was cut off already.
    """

    text: str
    at: int
    limit: int
    is_ended: bool
    room: int
    max_chars: int
    fences: Sequence[Fence]
    open_line: int | None


class Cut(Struct, frozen=True, kw_only=True):
    """One cut: the message's text ends at ``text_end``, its range at ``range_end``.

    ``closer`` is the line to add when the cut is inside a code block; ``reopened`` is that block when it goes on behind the cut.
    """

    text_end: int
    range_end: int
    closer: str = ""
    reopened: Fence | None = None


def choose_cut(passage: Passage) -> Cut | None:
    """The place to cut a passage with more visible text than room; None while text to come could change it."""
    fence = passage.fences[0] if passage.fences else None
    window_end = passage.at + passage.room
    if fence is not None and fence.start <= passage.at and not fence.ends_by(window_end):
        return _cut_code(passage, fence)
    return _cut_prose(passage, window_end)


def _cut_prose(passage: Passage, window_end: int) -> Cut | None:
    ink = _first_ink(passage.text, passage.at)
    blocks = [
        (fence.start, fence.end if fence.end is not None and fence.ends_by(window_end) else passage.limit + 1)
        for fence in passage.fences
    ]
    # A message less than half full is worth it only when everything behind is one link or code block.
    floors = (max(ink + 1, passage.at + passage.room // 2), ink + 1)
    position = _place(passage, floors, window_end, kinds=(_BLANK_LINE, _LINE, _SENTENCE, _WORD), blocks=blocks)
    return None if position is None else Cut(text_end=position, range_end=position)


def _cut_code(passage: Passage, fence: Fence) -> Cut | None:
    text, closer = passage.text, "\n" + fence.closer
    code_start = text.index("\n", fence.start) + 1 if fence.start == passage.at else passage.at
    floor = _first_ink(text, code_start) + 1
    position = _place(passage, (floor,), passage.at + passage.room - len(closer), kinds=(_LINE, _WORD), blocks=())
    if position is None:
        return None
    if text[position - 1] != "\n":
        return Cut(text_end=position, range_end=position, closer=closer, reopened=fence)
    # The block may be over right behind the cut: then its own closing line belongs here, not to an empty block of its own.
    ink = _first_ink(text, position)
    line_start = text.rfind("\n", 0, ink) + 1
    newline = text.find("\n", ink, passage.limit)
    line_end = passage.limit if newline < 0 else newline
    line = text[line_start : min(line_end, line_start + 2 * passage.max_chars)]
    if newline < 0 and not passage.is_ended and may_close(line, fence):
        return None
    if closes(line, fence):
        return Cut(text_end=position, range_end=min(line_end + 1, passage.limit), closer=closer)
    return Cut(text_end=position, range_end=position, closer=closer, reopened=fence)


def _place(
    passage: Passage,
    floors: Sequence[int],
    window_end: int,
    *,
    kinds: Sequence["regex.Pattern[str]"],
    blocks: Sequence[Span],
) -> int | None:
    text, limit = passage.text, passage.limit
    if not passage.is_ended and limit < window_end + LINK_SCHEME_CHARS:
        return None
    links_end = min(limit, window_end + passage.max_chars)
    spans = [*blocks, *link_spans(text, passage.at, links_end, max_chars=passage.max_chars)]
    position = next(
        (
            place
            for floor in floors
            for kind in kinds
            for place in _breaks(text, floor, window_end, kind=kind, at=passage.at)
            if not _inside(place, spans) and last_boundary(text, passage.at, place) == place
        ),
        None,
    )
    if position is None:
        position = _hard_break(text, floors[-1], window_end, spans=spans)
    if not passage.is_ended and _is_open(passage, position):
        return None
    return position


def _is_open(passage: Passage, position: int) -> bool:
    """Whether text to come could put ``position`` inside a link or a code block that has begun before it."""
    line = passage.open_line
    if (
        line is not None
        and line < position
        and may_open(passage.text[line : min(passage.limit, line + passage.max_chars)])
    ):
        return True
    return has_unfinished_link(passage.text, passage.at, position, end=passage.limit, max_chars=passage.max_chars)


def _breaks(text: str, floor: int, window_end: int, *, kind: "regex.Pattern[str]", at: int) -> Iterator[int]:
    """The ends of all breaks of one kind, last first. White space may stand one place behind the window: it is not sent."""
    for match in kind.finditer(text, floor, window_end + 1):
        position: int = match.end()
        if position > window_end and not text[position - 1].isspace():
            continue
        if kind is _SENTENCE and text[match.start()] == "." and _ends_no_sentence(text, at, match.start()):
            continue
        yield position


def _ends_no_sentence(text: str, at: int, stop: int) -> bool:
    # A slice: what stands before the passage may be gone already, and must not matter.
    return _NO_SENTENCE.search(text[max(at, stop - _LONGEST_ABBREVIATION_CHARS) : stop]) is not None


def _hard_break(text: str, floor: int, window_end: int, *, spans: Sequence[Span]) -> int:
    """The last place from ``floor`` on, between two visible characters, that breaks nothing; the window's end when there is none."""
    position = window_end
    while position >= floor:
        start = min((a for a, b in spans if floor <= a < position < b), default=position)
        start = last_boundary(text, floor - 1, start)
        if start == position:
            return position
        position = start
    return window_end


def _inside(position: int, spans: Sequence[Span]) -> bool:
    return any(start < position < end for start, end in spans)


def _first_ink(text: str, start: int) -> int:
    match = INK.search(text, start)
    return start if match is None else match.start()
