"""Fenced code blocks, one line at a time: which line opens one, which line closes it.

A fence is three or more backticks or tildes at the start of a line, indented or not. Pure; used by the splitter, which keeps
a code block in one message, and by ``cutting``, which closes and reopens one that is longer than a message may be.
"""

from msgspec import Struct

MAX_FENCE_LINE_CHARS = 256
"""A longer line opens or closes nothing: the splitter can tell after this many characters, however long the line grows."""

_MIN_MARKER_CHARS = 3
# Besides opener and closer, a part of a cut block holds two newlines and at least one character of code.
_ROOM_FOR_CODE_CHARS = 3


class Fence(Struct):
    """One fenced block. ``start`` is where its opening line begins, ``end`` is behind its closing line, None while open."""

    start: int
    opener: str
    closer: str
    end: int | None = None

    def ends_by(self, position: int) -> bool:
        """Whether the block's closing line ends at or before ``position``."""
        return self.end is not None and self.end - 1 <= position


def read_opener(line: str, *, start: int, max_chars: int) -> Fence | None:
    """The fence this whole line opens at ``start``, or None.

    A line whose repetition would leave no room for code in a message of ``max_chars`` opens nothing.
    """
    if len(line) > MAX_FENCE_LINE_CHARS:
        return None
    opener = line.rstrip()
    marker = _marker(opener)
    if len(marker) < _MIN_MARKER_CHARS:
        return None
    indent = opener[: opener.index(marker[0])]
    info = opener[len(indent) + len(marker) :]
    if marker[0] == "`" and "`" in info:
        # Backticks behind backticks are code inside a line, as in ```x = 1```.
        return None
    closer = indent + marker
    if len(opener) + len(closer) + _ROOM_FOR_CODE_CHARS > max_chars:
        return None
    return Fence(start=start, opener=opener, closer=closer)


def may_open(part: str) -> bool:
    """Whether the beginning of a line could still turn out to open a fence."""
    if len(part) > MAX_FENCE_LINE_CHARS:
        return False
    stripped = part.lstrip(" \t")
    marker = _marker(stripped)
    if len(marker) == len(stripped):
        return True
    return len(marker) >= _MIN_MARKER_CHARS and not (marker[0] == "`" and "`" in stripped[len(marker) :])


def closes(line: str, fence: Fence) -> bool:
    """Whether this whole line closes ``fence``: its marker, as long or longer, and nothing else."""
    if len(line) > MAX_FENCE_LINE_CHARS:
        return False
    marker = fence.closer.lstrip()
    stripped = line.strip()
    return stripped.startswith(marker) and not stripped.strip(marker[0])


def may_close(part: str, fence: Fence) -> bool:
    """Whether the beginning of a line could still turn out to close ``fence``."""
    return len(part) <= MAX_FENCE_LINE_CHARS and not part.strip().strip(fence.closer.lstrip()[0])


def _marker(line: str) -> str:
    """The run of backticks or tildes a line begins with behind its indentation; "" when there is none."""
    stripped = line.lstrip(" \t")
    if not stripped or stripped[0] not in "`~":
        return ""
    return stripped[: len(stripped) - len(stripped.lstrip(stripped[0]))]
