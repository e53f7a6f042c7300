"""Draws one trace in the terminal: the sentence, the stream on a time line with its gaps, the messages under it, the stages.

Everything is read from the streaming document, so the picture shows what the REST API answers.
"""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LEVELS = "▁▂▃▄▅▆▇█"
_LABEL_COLUMNS = 12
_MIN_COLUMNS = 30
# Below this the tables would have to cut figures, so they stand one below the other.
_TABLE_COLUMNS = 76
# What the columns before the text take in the table of messages.
_FIGURE_COLUMNS = 60
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
    messages = document["delivery"]["messages"]
    if console.width < _TABLE_COLUMNS:
        console.print(_stage_list(document["timeline"]))
        for line in _message_lines(messages):
            console.print(line, no_wrap=True, overflow="ellipsis")
        return
    console.print(_stage_table(document["timeline"]))
    if messages:
        console.print()
        console.print(_message_table(messages, max(console.width - _FIGURE_COLUMNS, _MIN_COLUMNS)))


def draw_stream(document: dict[str, Any], num_columns: int) -> list[Text]:
    """The lines of the picture: a time axis, the chunks as levels, one bar per message. Empty without any moment."""
    timeline, messages = document["timeline"], document["delivery"]["messages"]
    end_ms = _end_ms(timeline, messages)
    if not end_ms:
        return []
    scale = _Scale(end_ms, num_columns)
    lines = [_axis(scale), _chunk_line(document["streaming_chunks"], timeline, scale)]
    lines.extend(_message_line(message, scale) for message in messages)
    lines.append(Text(" " * _LABEL_COLUMNS) + Text(_legend(timeline), style="dim"))
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
    ended = max(scale.column(accepted), queued)
    line.append(" " * queued).append("◆", style="yellow")
    if ended > queued:
        line.append("━" * (ended - queued - 1), style="yellow").append("●", style="green")
    return line


def _legend(timeline: dict[str, Any]) -> str:
    marks = "▸ request  ▁█ chunks by size  ▪ end  ◆ queued  ● accepted"
    gap = timeline["longest_gap_ms"]
    return marks if gap is None else f"{marks}   longest gap {gap:,.0f} ms"


def _end_ms(timeline: dict[str, Any], messages: list[dict[str, Any]]) -> float:
    moments = [timeline["completed_ms"], timeline["stream_end_ms"], timeline["last_chunk_ms"], timeline["request_ms"]]
    moments.extend(message["accepted_ms"] for message in messages)
    return max((moment for moment in moments if moment is not None), default=0.0)


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
        yield Text(f"{_ms(message['queued_ms'])} to {_ms(message['accepted_ms'])}")
        yield Text(" ".join(str(message["text"]).split()))


def _status(message: dict[str, Any]) -> Text:
    status = str(message["status"])
    return Text(status, style="red" if status in ("failed", "not_sent") else "green")


def _message_table(messages: list[dict[str, Any]], text_columns: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("message", "chunks", "queued", "accepted", "status", "text"):
        table.add_column(name, justify="left" if name in ("status", "text") else "right", no_wrap=True)
    for message in messages:
        chunks = "-" if message["first_chunk"] is None else f"{message['first_chunk']}-{message['last_chunk']}"
        text = " ".join(str(message["text"]).split())
        table.add_row(
            str(message["index"] + 1),
            chunks,
            _ms(message["queued_ms"]),
            _ms(message["accepted_ms"]),
            _status(message),
            Text(text if len(text) <= text_columns else f"{text[: text_columns - 1]}…"),
        )
    return table


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f} ms"
