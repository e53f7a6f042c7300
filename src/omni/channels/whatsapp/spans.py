"""Places inside a text where a message must not be cut: links, and the characters people see as one.

Pure; used by ``cutting``. A link is a bare address or a Markdown ``[text](address)`` on one line. What people see as one character
(a family emoji, a flag, a letter with its accents) is Unicode's extended grapheme cluster.
"""

from collections.abc import Iterator

import regex

Span = tuple[int, int]
"""A range of positions; a cut strictly between the two would break what stands there."""

LINK_SCHEME_CHARS = len("https://")
"""This many characters behind a position are enough to tell whether a bare address began before it."""

# An address ends at white space and at the punctuation Chinese and Japanese sentences put right behind it.
_BARE_LINK = regex.compile(r"(?:https?://|www\.)[^\s<>\u3000-\u303F\uFF00-\uFF0F\uFF1A-\uFF20]+", regex.IGNORECASE)
# Possessive throughout: what was read is never read again, so that a line full of brackets costs no more than its length.
_MARKDOWN_LINK = regex.compile(
    r"""\[(?:[^\[\]\n]++|\[[^\[\]\n]*+\](?:\([^()\s]*+\))?)*+\]
        \((?:[^()\s]++|\([^()\s]*+\))*+(?:[ \t]++"[^"\n]*+")?\)""",
    regex.VERBOSE,
)
# Flags come first: left to itself, \X looks back over the whole run of them for every single one.
_GRAPHEME = regex.compile(r"\p{RI}{2}[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]*+|\X")
# Two neighbours that never join anything: reading clusters may start between them without knowing what came before.
_SAFE_PAIR = regex.compile(
    r"[\x20-\x7E\p{Latin}\p{Cyrillic}\p{Greek}\p{Han}\p{Hiragana}&&\p{L}\x20-\x7E]{2}",
    regex.REVERSE | regex.VERSION1,
)


def link_spans(text: str, start: int, end: int, *, max_chars: int) -> list[Span]:
    """Where links stand in ``text[start:end]``. Markdown links longer than ``max_chars`` are left out: they cannot be kept whole."""
    found = [match.span() for match in _BARE_LINK.finditer(text, start, end)]
    found += [
        match.span() for match in _MARKDOWN_LINK.finditer(text, start, end) if match.end() - match.start() <= max_chars
    ]
    return found


def has_unfinished_link(text: str, start: int, before: int, *, end: int, max_chars: int) -> bool:
    """Whether a Markdown link begins in ``text[start:before]`` that is still open at ``end`` and that more text could complete."""
    position = text.find("[", max(start, end - max_chars), before)
    while position >= 0:
        match = _MARKDOWN_LINK.match(text, position, end, partial=True)
        if match is not None and match.partial:
            return True
        position = text.find("[", position + 1, before)
    return False


def last_boundary(text: str, floor: int, position: int) -> int:
    """The last place at or before ``position``, and not before ``floor``, that cuts no visible character in two.

    ``floor`` must be such a place itself.
    """
    if position >= len(text) or (text[position - 1 : position + 1].isascii() and text[position] != "\n"):
        return position
    last = floor
    for end in _cluster_ends(text, floor, position):
        if end > position:
            break
        last = end
    return last


def _cluster_ends(text: str, floor: int, position: int) -> Iterator[int]:
    pair: regex.Match[str] | None = _SAFE_PAIR.search(text, floor, position)
    start = floor if pair is None else pair.start() + 1
    yield start
    # A slice, because \X looks at what stands before its start, which may have been sent already. One character behind
    # the position decides whether the cluster goes on; reading further could cost the whole text.
    for match in _GRAPHEME.finditer(text[start : position + 1]):
        yield start + match.end()
