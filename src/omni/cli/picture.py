"""Draws one trace in the terminal: the sentence, the stream on a time line with its gaps, the messages under it, the stages.

Everything is read from the streaming document, so the picture shows what the REST API answers. Receipts may come days later; the
time line stays that of the turn then, and an arrow says that there is more.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LEVELS = "▁▂▃▄▅▆▇█"
_LABEL_COLUMNS = 12
_MIN_COLUMNS = 30
# Below this the tables would have to cut figures, so they stand one below the other.
_TABLE_COLUMNS = 76
# What the columns before the text take in the table of messages, without and with those of receipts.
_FIGURE_COLUMNS = 60
_RECEIPT_COLUMNS = 86
# Below this the text says nothing; each message gets lines of its own instead.
_LEAST_TEXT_COLUMNS = 16
# A receipt is drawn when the turn keeps at least a third of the time line beside it.
_MOST_TURNS_DRAWN = 3
# From here on tenths of a millisecond tell nothing: minutes, hours or days do.
_LONG_MS = 100_000
_LONG_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000))
_STAGE_NAMES = {
    "queue_ms": "queue",
    "agent_wait_ms": "agent wait",
    "stream_ms": "stream",
    "delivery_tail_ms": "delivery tail",
    "unaccounted_ms": "unaccounted",
    "turn_total_ms": "turn total",
}


def draw_document(document: dict[str, Any], console: Console) -> None:
    """Print one trace."""
    ending = document["ending"] or document["status"] or "open"
    style = "green" if ending == "completed" else "yellow" if document["ending"] is None else "red"
    console.print(
        Text.assemble(
            ("trace ", "dim"),
            (document["trace_id"], "bold"),
            f"  {document['instance_name'] or '?'}  ",
            (ending, style),
        )
    )
    console.print(Text(document["headline"]), soft_wrap=True)
    if document["error_message"]:
        console.print(
            Text(f"{document['error_stage'] or 'error'}: {document['error_message']}", style="red"), soft_wrap=True
        )
    console.print()
    for line in draw_stream(document, max(console.width - _LABEL_COLUMNS - 1, _MIN_COLUMNS)):
        console.print(line, no_wrap=True, crop=True)
    console.print()
    is_narrow = console.width < _TABLE_COLUMNS
    console.print((_stage_list if is_narrow else _stage_table)(document["timeline"]))
    messages = document["delivery"]["messages"]
    has_receipts = any(_receipt_marks(message) for message in messages)
    text_columns = console.width - (_RECEIPT_COLUMNS if has_receipts else _FIGURE_COLUMNS)
    if is_narrow or (has_receipts and text_columns < _LEAST_TEXT_COLUMNS):
        for line in _message_lines(messages):
            console.print(line, no_wrap=True, overflow="ellipsis")
    elif messages:
        console.print()
        text_columns = text_columns if has_receipts else max(text_columns, _MIN_COLUMNS)
        console.print(_message_table(messages, text_columns, has_receipts=has_receipts))


def draw_stream(document: dict[str, Any], num_columns: int) -> list[Text]:
    """The lines of the picture: a time axis, the chunks as levels, one bar per message. Empty without any moment."""
    timeline, messages = document["timeline"], document["delivery"]["messages"]
    end_ms = _end_ms(timeline, messages)
    if not end_ms:
        return []
    scale = _Scale(end_ms, num_columns)
    lines = [_axis(scale), _chunk_line(document["streaming_chunks"], timeline, scale)]
    lines.extend(_message_line(message, scale) for message in messages)
    has_receipts = any(_receipt_marks(message) for message in messages)
    legend = _legend(timeline, num_columns, has_receipts=has_receipts)
    lines.extend(Text(" " * _LABEL_COLUMNS).append(words, style="dim") for words in legend)
    return lines


class _Scale:
    def __init__(self, end_ms: float, num_columns: int) -> None:
        self.end_ms = end_ms
        self.num_columns = num_columns

    def column(self, at_ms: float) -> int:
        return min(max(int(at_ms / self.end_ms * (self.num_columns - 1)), 0), self.num_columns - 1)


def _axis(scale: _Scale) -> Text:
    right = f"{scale.end_ms:,.0f} ms"
    middle = f"{scale.end_ms / 2:,.0f}"
    cells = list("0".ljust(scale.num_columns))
    half = scale.num_columns // 2
    cells[half : half + len(middle)] = middle
    cells[scale.num_columns - len(right) :] = right
    return Text(" " * _LABEL_COLUMNS) + Text("".join(cells), style="dim")


def _chunk_line(chunks: list[dict[str, Any]], timeline: dict[str, Any], scale: _Scale) -> Text:
    sizes = [0] * scale.num_columns
    for chunk in chunks:
        if chunk["offset_ms"] is not None:
            sizes[scale.column(chunk["offset_ms"])] += max(chunk["size"] or 0, 1)
    largest = max(sizes, default=0)
    first, last = timeline["request_ms"], timeline["stream_end_ms"]
    if first is None and not chunks:
        return Text("stream".ljust(_LABEL_COLUMNS)).append("not asked", style="dim")
    start = scale.column(first) if first is not None else 0
    stop = scale.column(last) if last is not None else scale.num_columns - 1
    line = Text("stream".ljust(_LABEL_COLUMNS))
    for column, size in enumerate(sizes):
        if size:
            line.append(_LEVELS[min(size * len(_LEVELS) // (largest + 1), len(_LEVELS) - 1)], style="cyan")
        elif column == start:
            line.append("▸", style="bold")
        elif column == stop and last is not None:
            line.append("▪", style="green" if timeline["ending"] == "completed" else "red")
        else:
            line.append("·" if start < column < stop else " ", style="dim")
    return line


def _message_line(message: dict[str, Any], scale: _Scale) -> Text:
    name = "notice" if message["is_notice"] else f"message {message['index'] + 1}"
    line = Text(name.ljust(_LABEL_COLUMNS))
    if message["queued_ms"] is None:
        return line.append(message["status"], style="dim")
    queued = scale.column(message["queued_ms"])
    accepted = message["accepted_ms"]
    if accepted is None:
        status = message["status"]
        if queued + len(status) + 2 <= scale.num_columns:
            return line.append(" " * queued).append("◆ ", style="yellow").append(status, style="red")
        return line.append(f"{status} ".rjust(queued), style="red").append("◆", style="yellow")
    marks = [_Mark(queued, "◆", "yellow"), _Mark(scale.column(accepted), "●", "green")]
    seen = _receipt_marks(message)
    marks += [_Mark(scale.column(at_ms), sign, style) for at_ms, sign, style in seen if at_ms <= scale.end_ms]
    if any(at_ms > scale.end_ms for at_ms, _, _ in seen):
        marks.append(_Mark(scale.num_columns - 1, "→", "dim"))
    return line.append_text(_marks_on_a_line(marks, scale.num_columns))


class _Mark(NamedTuple):
    column: int
    sign: str
    style: str


_FILL_BEFORE = {"●": ("━", "yellow"), "✓": ("─", "cyan"), "◉": ("·", "magenta"), "→": ("─", "dim")}


def _receipt_marks(message: dict[str, Any]) -> list[tuple[float, str, str]]:
    told = ((message["delivered_ms"], "✓", "cyan"), (message["read_ms"], "◉", "magenta"))
    return [(at_ms, sign, style) for at_ms, sign, style in told if at_ms is not None]


def _marks_on_a_line(marks: list[_Mark], num_columns: int) -> Text:
    """Each mark in a column of its own, moved aside by as little as that takes, and what lies between them."""
    columns = [mark.column for mark in marks]
    for place in range(1, len(columns)):
        columns[place] = max(columns[place], columns[place - 1] + 1)
    columns[-1] = min(columns[-1], num_columns - 1)
    for place in range(len(columns) - 2, -1, -1):
        columns[place] = min(columns[place], columns[place + 1] - 1)
    line = Text(" " * columns[0])
    for mark, column in zip(marks, columns, strict=True):
        fill, style = _FILL_BEFORE.get(mark.sign, ("", ""))
        line.append(fill * (column - line.cell_len), style=style).append(mark.sign, style=mark.style)
    return line


def _legend(timeline: dict[str, Any], num_columns: int, *, has_receipts: bool) -> Iterator[str]:
    """What the signs mean, in as many lines as it takes: a legend that is cut off explains nothing."""
    signs = ["▸ request", "▁█ chunks by size", "▪ end", "◆ queued", "● accepted"]
    if has_receipts:
        signs += ["✓ delivered", "◉ read"]
    gap_ms = timeline["longest_gap_ms"]
    if gap_ms is not None:
        signs.append(f"longest gap {gap_ms:,.0f} ms")
    line = ""
    for sign in signs:
        if line and len(line) + 2 + len(sign) > num_columns:
            yield line
            line = sign
        else:
            line = f"{line}  {sign}" if line else sign
    yield line


def _end_ms(timeline: dict[str, Any], messages: list[dict[str, Any]]) -> float:
    moments = [timeline["completed_ms"], timeline["stream_end_ms"], timeline["last_chunk_ms"], timeline["request_ms"]]
    moments.extend(message["accepted_ms"] for message in messages)
    end_ms: float = max((moment for moment in moments if moment is not None), default=0.0)
    receipts = (at_ms for message in messages for at_ms, _, _ in _receipt_marks(message))
    return max(end_ms, *(at_ms for at_ms in receipts if at_ms <= _MOST_TURNS_DRAWN * end_ms), 0.0)


def _stage_table(timeline: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _STAGE_NAMES.values():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*[_ms(timeline["stages"][key]) for key in _STAGE_NAMES])
    return table


def _stage_list(timeline: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for key, name in _STAGE_NAMES.items():
        table.add_row(Text(name, style="bold"), _ms(timeline["stages"][key]))
    return table


def _message_lines(messages: list[dict[str, Any]]) -> Iterator[Text]:
    for message in messages:
        yield Text()
        yield Text.assemble((f"message {message['index'] + 1}  ", "bold"), _status(message))
        times = f"{_ms(message['queued_ms'])} to {_ms(message['accepted_ms'])}"
        for name in ("delivered", "read"):
            if message[f"{name}_ms"] is not None:
                times += f", {name} {_ms(message[f'{name}_ms'])}"
        yield Text(times)
        yield Text(" ".join(str(message["text"]).split()))


def _status(message: dict[str, Any]) -> Text:
    status = str(message["status"])
    return Text(status, style="red" if status in ("failed", "not_sent") else "green")


def _message_table(messages: list[dict[str, Any]], text_columns: int, *, has_receipts: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    moments = ("queued", "accepted", *(("delivered", "read") if has_receipts else ()))
    for name in ("message", "chunks", *moments, "status", "text"):
        table.add_column(name, justify="left" if name in ("status", "text") else "right", no_wrap=True)
    for message in messages:
        chunks = "-" if message["first_chunk"] is None else f"{message['first_chunk']}-{message['last_chunk']}"
        text = " ".join(str(message["text"]).split())
        table.add_row(
            str(message["index"] + 1),
            chunks,
            *[_ms(message[f"{name}_ms"]) for name in moments],
            _status(message),
            Text(text if len(text) <= text_columns else f"{text[: text_columns - 1]}…"),
        )
    return table


def _ms(value: float | None) -> str:
    if value is None:
        return "?"
    if value >= _LONG_MS:
        for unit, size_ms in _LONG_UNITS:
            if value >= 2 * size_ms:
                return f"{value / size_ms:,.1f} {unit}"
    return f"{value:,.1f} ms"
