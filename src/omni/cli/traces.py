"""``omni traces list`` and ``omni traces show``: what happened, read from the database and drawn in the terminal.

``omni traces verify`` is in ``verify``.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from omni.cli.opening import open_database
from omni.cli.picture import draw_document
from omni.cli.trace_names import find_trace
from omni.cli.verify import verify_traces
from omni.clock import SystemClock, wall_datetime
from omni.model import Ending
from omni.ports import TraceFilter, TraceRow
from omni.store.queries import SqlTraceReader
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace

traces_app = typer.Typer(help="Read traces.", no_args_is_help=True)
traces_app.command("verify")(verify_traces)

_COLUMNS = ("trace", "received UTC", "instance", "ending", "agent ms", "total ms", "chars", "error")
# What a narrow terminal leaves out, first to last; and the names that are cut before anything is left out.
_EXPENDABLE = ("instance", "error", "agent ms", "chars", "received UTC")
_LEAST_NAME_COLUMNS = {"instance": 6, "error": 5}
_GAP_COLUMNS = 2
_OPEN_STATUSES = frozenset({"received", "processing", "agent_called", "?"})
# Traces whose payloads are read together to learn how they ended.
_BATCH = 200


@traces_app.command("list")
def list_traces(
    instance: Annotated[str | None, typer.Option(help="Only this instance.")] = None,
    phone: Annotated[str | None, typer.Option(help="Only this sender.")] = None,
    status: Annotated[str | None, typer.Option(help="Only this status (completed, failed, processing, ...).")] = None,
    hours: Annotated[float | None, typer.Option(help="Only the last hours; all when not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 20,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """List traces, newest first."""
    since = None if hours is None else _hours_ago(hours)
    with open_database() as database:
        reader = SqlTraceReader(database)
        rows = reader.list_traces(
            TraceFilter(instance_name=instance, phone=phone, status=status, received_from=since, limit=limit)
        )
        ending_by_id = _endings(reader, rows)
    if as_json:
        told = [{**msgspec.structs.asdict(row), "ending": ending_by_id[row.trace_id]} for row in rows]
        typer.echo(msgspec.json.encode(told).decode())
        return
    console = Console()
    if not rows:
        console.print("no traces")
        return
    console.print(_table(rows, ending_by_id, num_columns=console.width))


@traces_app.command("show")
def show_trace(
    trace_id: Annotated[str, typer.Argument(help="The trace's id, or its first characters, or 'last'.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The streaming document as JSON.")] = False,
    width: Annotated[
        int | None, typer.Option(min=60, max=400, help="Columns to draw in; the terminal's by default.")
    ] = None,
) -> None:
    """Show one trace: its sentence, a picture of its stream, where the time went, every message."""
    with open_database() as database:
        reader = SqlTraceReader(database)
        row = find_trace(reader, trace_id)
        document = streaming_document(read_stored_trace(row, reader.get_payloads(row.trace_id)))
    if as_json:
        typer.echo(msgspec.json.encode(document).decode())
        return
    console = Console(width=width)
    draw_document(document, console)


def _hours_ago(hours: float) -> datetime:
    try:
        if hours >= 0:
            return wall_datetime(SystemClock.wall_ns()) - timedelta(hours=hours)
    except OverflowError:
        pass
    raise typer.BadParameter("must be a number of hours that reaches back to a date", param_hint="--hours")


def _endings(reader: SqlTraceReader, rows: list[TraceRow]) -> dict[str, Ending | None]:
    """How each trace ended: more than the status of its row tells. None while it is open."""
    endings: dict[str, Ending | None] = {}
    for start in range(0, len(rows), _BATCH):
        portion = rows[start : start + _BATCH]
        payloads = reader.get_payloads_of([row.trace_id for row in portion])
        for row in portion:
            stored = read_stored_trace(row, payloads.get(row.trace_id, []))
            endings[row.trace_id] = stored.timeline.ending
    return endings


def _table(rows: list[TraceRow], ending_by_id: Mapping[str, Ending | None], *, num_columns: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    lines = [_cells(row, ending_by_id.get(row.trace_id)) for row in rows]
    shown = _columns_that_fit(lines, num_columns)
    for name, width in shown.items():
        side: JustifyMethod = "right" if name.endswith(("ms", "chars")) else "left"
        table.add_column(name, justify=side, min_width=width, overflow="ellipsis", no_wrap=True)
    for cells in lines:
        table.add_row(*[cells[name] for name in shown])
    return table


def _columns_that_fit(lines: list[dict[str, Text]], num_columns: int) -> dict[str, int]:
    """Least widths by name. Whole columns give way in a narrow terminal: a figure cut short would be another figure."""
    widths = {name: max(len(name), *(cells[name].cell_len for cells in lines)) for name in _COLUMNS}
    widths |= {name: min(widths[name], least) for name, least in _LEAST_NAME_COLUMNS.items()}
    for name in _EXPENDABLE:
        if sum(widths.values()) + _GAP_COLUMNS * (len(widths) - 1) <= num_columns:
            break
        del widths[name]
    return widths


def _cells(row: TraceRow, ending: Ending | None) -> dict[str, Text]:
    told = ending or row.status or "?"
    style = "green" if told == "completed" else "yellow" if told in _OPEN_STATUSES else "red"
    return {
        "trace": Text(row.trace_id[:8]),
        "received UTC": Text("?" if row.received_at is None else f"{row.received_at:%m-%d %H:%M:%S}"),
        "instance": Text(row.instance_name or "?"),
        "ending": Text(told, style=style),
        "agent ms": Text(_number(row.agent_processing_time_ms)),
        "total ms": Text(_number(row.total_processing_time_ms)),
        "chars": Text(_number(row.agent_response_length)),
        "error": Text(row.error_stage or ""),
    }


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
