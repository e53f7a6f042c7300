"""Turns a growing answer into WhatsApp messages: one per paragraph, released as soon as the blank line behind it is there.

Part of the answer's way out: the streamer feeds every chunk, delivery sends every piece that comes back. Blank lines inside
fenced code part nothing. A paragraph longer than a message is cut where ``cutting`` says, and its parts are released while
it is still growing. However the text is divided into chunks, the pieces are the same.

The ranges of the pieces follow each other without gap or overlap. White space behind the last piece's blank line is in
none of them: the piece was sent before it came, and no message is ever blank.

Pure; the cost is linear in the length of the answer, whatever the size of the chunks.
"""

import regex
from msgspec import Struct

from omni.channels.whatsapp.cutting import INK, Cut, Passage, choose_cut
from omni.channels.whatsapp.fences import Fence, closes, read_opener

DEFAULT_MAX_CHARS = 4096
MIN_MAX_CHARS = 16
"""Less would leave no room for a code block's own lines."""

# Text without a newline is looked at in steps of this many characters: it can release nothing but part of a long paragraph.
_STEP_CHARS = 256
# More than this many messages' worth of unreleased text is white space; it is then looked at in ever larger steps.
_LARGE_MESSAGES = 4
_LARGE_STEP_DIVISOR = 8

# White space, control and formatting characters show nothing; a message of only those would be refused or look empty.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{Z}\p{Default_Ignorable_Code_Point}]")


class Piece(Struct, frozen=True, gc=False):
    """One message's text, and the code-point range ``[start, end)`` of the answer it stands for, blank lines included.

    ``text`` is that range without the white space around it; indentation of its first line stays. A part of a code block
    that had to be cut has the block's opening and closing lines added.
    """

    text: str
    start: int
    end: int


class ParagraphSplitter:
    """Splits one answer. Feed it in order, then finish; it does no I/O and never raises for any text.

    With ``splits_paragraphs`` False only what is too long for one message is split.
    """

    def __init__(self, max_chars: int = DEFAULT_MAX_CHARS, *, splits_paragraphs: bool = True) -> None:
        if max_chars < MIN_MAX_CHARS:
            raise ValueError(f"max_chars must be at least {MIN_MAX_CHARS}")
        self._max_chars = max_chars
        self._splits_paragraphs = splits_paragraphs
        self._unread: list[str] = []
        self._num_unread = 0
        # All positions below are in _text; _base is where _text begins in the answer, _range_start is in the answer.
        self._text = ""
        self._base = 0
        self._range_start = 0
        self._from = 0  # the next piece's text lies behind this
        self._is_from_mid_line = False
        self._at: int | None = None  # where the next piece's text begins, once it has
        self._ink_end = 0  # behind the last character that is no white space
        self._line = 0  # where the line being read begins
        self._is_line_cut = False  # its beginning went out with an earlier piece
        self._read_to = 0
        self._fences: list[Fence] = []
        self._reopened: Fence | None = None

    def feed(self, text: str) -> list[Piece]:
        """Take the next chunk; the pieces it completes, often none."""
        self._unread.append(text)
        self._num_unread += len(text)
        backlog = len(self._text)
        if backlog > _LARGE_MESSAGES * self._max_chars:
            is_due = self._num_unread * _LARGE_STEP_DIVISOR >= backlog
        else:
            is_due = self._num_unread >= _STEP_CHARS or "\n" in text
        return self._read() if is_due else []

    def finish(self) -> list[Piece]:
        """The pieces that remain when no more text comes; an unfinished code block goes out as it is."""
        pieces = self._read()
        end = len(self._text)
        fence = self._open_fence()
        if fence is not None and not self._is_line_cut and closes(self._text[self._line :], fence):
            # As if the newline stood right behind the text.
            fence.end = end + 1
        self._cut_overlong(end, pieces, is_ended=True)
        self._release(Cut(text_end=end, range_end=end), pieces)
        self._forget_released()
        return pieces

    def _read(self) -> list[Piece]:
        pieces: list[Piece] = []
        self._text = "".join((self._text, *self._unread))
        self._unread.clear()
        self._num_unread = 0
        while (newline := self._text.find("\n", self._read_to)) >= 0:
            self._note_ink(newline)
            self._read_to = newline + 1
            self._end_line(newline, pieces)
        self._note_ink(len(self._text))
        self._read_to = len(self._text)
        self._cut_overlong(len(self._text), pieces, is_ended=False)
        self._forget_released()
        return pieces

    def _note_ink(self, end: int) -> None:
        fresh = self._text[self._read_to : end].rstrip()
        if fresh:
            self._ink_end = self._read_to + len(fresh)

    def _end_line(self, newline: int, pieces: list[Piece]) -> None:
        line_start, is_cut = self._line, self._is_line_cut
        self._line, self._is_line_cut = newline + 1, False
        fence = self._open_fence()
        if fence is not None:
            if not is_cut and closes(self._text[line_start:newline], fence):
                fence.end = newline + 1
        elif self._ink_end <= line_start and not is_cut:
            if self._splits_paragraphs:
                self._cut_overlong(newline + 1, pieces, is_ended=True)
                self._release(Cut(text_end=newline + 1, range_end=newline + 1), pieces)
                return
        elif not is_cut:
            opened = read_opener(self._text[line_start:newline], start=line_start, max_chars=self._max_chars)
            if opened is not None:
                self._fences.append(opened)
        self._cut_overlong(newline + 1, pieces, is_ended=False)

    def _open_fence(self) -> Fence | None:
        return self._fences[-1] if self._fences and self._fences[-1].end is None else None

    def _cut_overlong(self, limit: int, pieces: list[Piece], *, is_ended: bool) -> None:
        while (at := self._text_start()) is not None:
            room = self._max_chars - len(self._reopening())
            if self._ink_end - at <= room:
                return
            passage = Passage(
                text=self._text,
                at=at,
                limit=limit,
                is_ended=is_ended,
                room=room,
                max_chars=self._max_chars,
                fences=self._fences,
                open_line=None if self._is_line_cut else self._line,
            )
            cut = choose_cut(passage)
            if cut is None:
                return
            self._release(cut, pieces)

    def _release(self, cut: Cut, pieces: list[Piece]) -> None:
        at = self._text_start()
        body = "" if at is None else self._text[at : cut.text_end].rstrip()
        if _VISIBLE.search(body):
            end = self._base + cut.range_end
            pieces.append(Piece(f"{self._reopening()}{body}{cut.closer}", self._range_start, end))
            self._range_start = end
        # What shows nothing is left to the next piece's range.
        self._from = cut.range_end
        self._is_from_mid_line = cut.range_end > 0 and self._text[cut.range_end - 1] != "\n"
        self._is_line_cut = self._is_line_cut or cut.range_end > self._line
        self._at = None
        self._fences = [fence for fence in self._fences if fence.end is None or fence.end > cut.range_end]
        self._reopened = cut.reopened

    def _reopening(self) -> str:
        return "" if self._reopened is None else self._reopened.opener + "\n"

    def _text_start(self) -> int | None:
        if self._at is None and self._ink_end > self._from:
            ink = INK.search(self._text, self._from)
            assert ink is not None
            newline = self._text.rfind("\n", self._from, ink.start())
            line_start = self._from if newline < 0 else newline + 1
            is_indented = newline >= 0 or not self._is_from_mid_line
            is_sane = ink.start() - line_start <= self._max_chars // 2
            self._at = line_start if is_indented and is_sane else ink.start()
        return self._at

    def _forget_released(self) -> None:
        if self._ink_end <= self._from < self._line:
            # Blank lines before any text: only their number of characters matters from here on.
            self._from, self._is_from_mid_line = self._line, False
        gone = self._from
        if gone == 0:
            return
        self._text = self._text[gone:]
        self._base += gone
        self._from = 0
        self._at = None if self._at is None else self._at - gone
        self._ink_end = max(0, self._ink_end - gone)
        self._line = max(0, self._line - gone)
        self._read_to -= gone
        for fence in self._fences:
            fence.start -= gone
            fence.end = None if fence.end is None else fence.end - gone
