"""Cuts the bytes of an agent's answer into JSON objects, whatever the framing and wherever the reads end.

Hive servers frame their streams in three ways under one content type: bare pretty-printed objects with nothing between them,
pretty-printed objects below a single ``data:`` (which no event-stream parser can read), and proper event streams. All
three are read by one rule: an object begins at ``{`` and ends where its braces balance, strings respected. It is handed out
at the closing brace, without waiting for what follows.

A compact object on a line of its own, which is what current servers send, is recognised by its line and never scanned. Everything
else goes through the scanner, which looks at each byte once and remembers where it stood. Both give the same objects for any bytes
and any cuts, broken ones included.

This module judges no JSON. A piece that cannot be an object (a line feed inside a string, a brace where none may stand)
is cut off there and handed out as it is, so that its reader can count it and the stream goes on behind it.
"""

import re

from omni.errors import AgentProtocolError

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Largest single event in bytes. The largest seen on real servers is half a megabyte."""

# From outside any string: everything up to the next brace, whole strings included. Possessive, so no text makes it go back.
_UP_TO_BRACE = re.compile(rb'[^"{}]*+(?:"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"[^"{}]*+)*+')
# From inside a string: everything up to its closing quote, a line feed, or an escape that is not all here yet.
_REST_OF_STRING = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')
# What may stand outside objects: fields and comments of an event stream, and blank lines.
_EVENT_STREAM_LINE = re.compile(rb"(?:event|data|id|retry)?:|\Z")

_BLANKS = b" \t\r\n"
_LINE_START = b" \t\r\xef\xbb\xbf"  # blanks and a byte order mark
_LINE_HEAD_BYTES = 8  # as many bytes of a line as decide what it is: "retry:" and two to spare
_LOOK_BACK_BYTES = 32  # how far a nested brace's predecessor is looked for; deeper indentation is taken on trust

_QUOTE, _OPEN = b'"{'


class ObjectFramer:
    """Incremental framer of one answer; ``feed`` it every read, in order. Not for use by several tasks at once."""

    __slots__ = (
        "_depth",
        "_garbage",
        "_in_string",
        "_leading",
        "_line_head",
        "_max_bytes",
        "_open_object",
        "_oversized",
        "_position",
    )

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._open_object = bytearray()  # the object whose end has not come yet, from its brace on
        self._position = 0  # where the scan of it goes on
        self._depth = 0
        self._in_string = False
        self._oversized = False
        self._leading = True  # no object has begun yet
        self._line_head = b""
        self._garbage = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of the object that has begun and not ended."""
        return len(self._open_object)

    @property
    def saw_garbage(self) -> bool:
        """Whether bytes that are no event stream came before the first object.

        Tells, when a body ends without any event, a page of HTML from an empty answer or bare ``data: [DONE]``.
        """
        return self._garbage or not _EVENT_STREAM_LINE.match(self._line_head)

    def feed(self, data: bytes) -> list[bytes]:
        """The objects that ``data`` completes, in order.

        Raises AgentProtocolError once an object has exceeded the limit: in the call after the one that met it, so that the
        objects before it are not lost. ``finish`` raises it if there is no further call.
        """
        self.finish()
        frames: list[bytes] = []
        position = self._resume(data, frames) if self._open_object else 0
        find = data.find
        line_end = -1
        while (start := find(b"{", position)) >= 0:
            if self._leading:
                self._inspect(data[position:start])
                self._leading = False
            if line_end < start:
                line_end = find(b"\n", start)
                if line_end < 0:
                    line_end = len(data)
            # Exactly one brace of each kind, the closing one last before the line feed: no string of valid JSON can hold
            # that line feed, so this brace closes the object.
            if (
                find(b"}", start, line_end) == line_end - 1
                and find(b"{", start + 1, line_end) < 0
                and line_end < len(data)
                and line_end - start <= self._max_bytes
            ):
                frames.append(data[start:line_end])
                position = line_end
                continue
            self._position, self._depth = start + 1, 1
            position = self._scan(data, start, frames)
            if position < 0:
                return frames
        if self._leading:
            self._inspect(data[position:])
        return frames

    def finish(self) -> None:
        """Say that the body has ended. Raises AgentProtocolError when an object exceeded the limit."""
        if self._oversized:
            raise AgentProtocolError(f"One event of the agent's answer exceeds {self._max_bytes} bytes.")

    def _resume(self, data: bytes, frames: list[bytes]) -> int:
        """Go on with the open object; the offset in ``data`` behind its end, or behind ``data`` when it is open still."""
        known = len(self._open_object)
        self._open_object += data
        end = self._scan(self._open_object, 0, frames)
        if end < 0:
            return len(data)
        self._open_object.clear()
        return end - known

    def _scan(self, buffer: bytes | bytearray, start: int, frames: list[bytes]) -> int:
        """Look for the end of the object that begins at ``start``; the offset behind it, or -1 when it is not there yet."""
        position, depth, in_string = self._position, self._depth, self._in_string
        self._in_string = False
        while True:
            if in_string:
                position = _end_of(_REST_OF_STRING, buffer, position)
                stop = buffer[position : position + 2]
                if stop in (b"", b"\\"):
                    break
                if stop[0] != _QUOTE:  # a line feed, bare or behind a backslash: no string holds one
                    return self._cut(buffer, start, buffer.index(b"\n", position), frames)
                in_string = False
                position += 1
            position = _end_of(_UP_TO_BRACE, buffer, position)
            if position == len(buffer):
                break
            stop_byte = buffer[position]
            position += 1
            if stop_byte == _QUOTE:
                in_string = True
            elif stop_byte != _OPEN:
                depth -= 1
                if depth == 0:
                    return self._cut(buffer, start, position, frames)
            elif _may_open(buffer, start, position - 1):
                depth += 1
            else:
                # What came before lacks its end. The brace here begins the next object: the stream goes on.
                start = self._cut(buffer, start, position - 1, frames)
                if start < 0:
                    return -1
                depth = 1
        self._position, self._depth, self._in_string = position - start, depth, in_string
        self._keep(buffer, start)
        return -1

    def _cut(self, buffer: bytes | bytearray, start: int, end: int, frames: list[bytes]) -> int:
        """Hand out one piece; its end, or -1 when it exceeds the limit."""
        if end - start > self._max_bytes:
            self._give_up()
            return -1
        frames.append(bytes(buffer[start:end]))
        return end

    def _keep(self, buffer: bytes | bytearray, start: int) -> None:
        """Remember the open object that begins at ``start``."""
        if buffer is self._open_object:
            del self._open_object[:start]
        else:
            self._open_object += memoryview(buffer)[start:]
        if len(self._open_object) > self._max_bytes:
            self._give_up()

    def _give_up(self) -> None:
        self._oversized = True
        self._open_object.clear()

    def _inspect(self, gap: bytes) -> None:
        """Look at what stands before the first object, line by line."""
        *lines, rest = (self._line_head + gap).split(b"\n")
        self._line_head = rest.lstrip(_LINE_START)[:_LINE_HEAD_BYTES]
        if not all(_EVENT_STREAM_LINE.match(line.lstrip(_LINE_START)) for line in lines):
            self._garbage = True


def _end_of(pattern: re.Pattern[bytes], buffer: bytes | bytearray, position: int) -> int:
    match = pattern.match(buffer, position)
    return position if match is None else match.end()


def _may_open(buffer: bytes | bytearray, start: int, brace: int) -> bool:
    """Whether an object may be nested here: as a member's value, or in an array."""
    before = bytes(buffer[max(start, brace - _LOOK_BACK_BYTES) : brace]).rstrip(_BLANKS)
    if before.endswith(b":"):
        key = before[:-1].rstrip(_BLANKS)
        return not key or key.endswith(b'"')
    return not before or before.endswith((b"[", b","))
