"""``omni traces list`` and ``omni traces show``: what happened, read from the database and drawn in the terminal."""

from datetime import timedelta
from typing import Annotated

import msgspec
import typer
from rich.console import Console, JustifyMethod
from rich.table import Table

from omni.cli.opening import open_database
from omni.cli.picture import draw_document
from omni.clock import SystemClock, wall_datetime
from omni.errors import RecordNotFound
from omni.ports import TraceFilter, TraceRow
from omni.store.queries import SqlTraceReader
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace

traces_app = typer.Typer(help="Read traces.", no_args_is_help=True)

_COLUMNS = (
    ("trace", 8),
    ("received UTC", 14),
    ("instance", 6),
    ("status", 9),
    ("agent ms", 8),
    ("total ms", 8),
    ("chars", 6),
    ("error", 5),
)
_STATUS_STYLE = {"completed": "green", "failed": "red", "error": "red"}


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
    since = None
    if hours is not None:
        since = wall_datetime(SystemClock.wall_ns()) - timedelta(hours=hours)
    with open_database() as database:
        rows = SqlTraceReader(database).list_traces(
            TraceFilter(instance_name=instance, phone=phone, status=status, received_from=since, limit=limit)
        )
    if as_json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    console = Console()
    if not rows:
        console.print("no traces")
        return
    console.print(_table(rows))


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
        row = _find(reader, trace_id)
        document = streaming_document(read_stored_trace(row, reader.get_payloads(row.trace_id)))
    if as_json:
        typer.echo(msgspec.json.encode(document).decode())
        return
    console = Console(width=width)
    draw_document(document, console)


def _find(reader: SqlTraceReader, wanted: str) -> TraceRow:
    if wanted == "last":
        rows = reader.list_traces(TraceFilter(limit=1))
        if not rows:
            raise RecordNotFound("there are no traces yet")
        return rows[0]
    row = reader.get_trace(wanted)
    if row is not None:
        return row
    matches = [row for row in reader.list_traces(TraceFilter(limit=1000)) if row.trace_id.startswith(wanted)]
    if len(matches) != 1:
        found = "no trace" if not matches else f"{len(matches)} traces"
        raise RecordNotFound(f"{found} among the newest 1000 whose id begins with {wanted!r}")
    return matches[0]


def _table(rows: list[TraceRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    # In a narrow terminal the names give way; ids, times and figures do not.
    for name, width in _COLUMNS:
        side: JustifyMethod = "right" if name.endswith(("ms", "chars")) else "left"
        table.add_column(name, justify=side, min_width=width, overflow="ellipsis", no_wrap=True)
    for row in rows:
        status = row.status or "?"
        table.add_row(
            row.trace_id[:8],
            "?" if row.received_at is None else f"{row.received_at:%m-%d %H:%M:%S}",
            row.instance_name or "?",
            f"[{_STATUS_STYLE.get(status, 'yellow')}]{status}[/]",
            _number(row.agent_processing_time_ms),
            _number(row.total_processing_time_ms),
            _number(row.agent_response_length),
            row.error_stage or "",
        )
    return table


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
