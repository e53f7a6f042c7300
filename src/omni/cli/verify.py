"""``omni traces verify``: does what is stored follow from its parts? Names what does not, without anybody's text.

Exit codes: 0 everything agrees, 1 something does not, 2 wrong arguments, or the database could not be read.
"""

import re
from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from omni.cli import complain
from omni.cli.opening import open_database
from omni.cli.trace_names import find_trace
from omni.clock import SystemClock, wall_datetime
from omni.errors import OmniError, SettingsError
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.store.trace_pages import SqlTracePages
from omni.tracing.verify import TraceReport, check_trace

DISAGREE, UNREADABLE = 1, 2

Verdict = Literal["agrees", "open", "legacy", "disagrees"]
_VERDICTS: tuple[Verdict, ...] = ("agrees", "open", "legacy", "disagrees")
_TOLD = {
    "agrees": "agrees with itself",
    "open": "open: what is stored so far agrees",
    "legacy": "not verifiable: the predecessor wrote it and kept too little",
    "disagrees": "disagrees",
}
_STYLES = {"agrees": "green", "open": "yellow", "legacy": "yellow", "disagrees": "bold red"}
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def verify_traces(
    trace_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[TRACE_ID]...", help="Ids, or their first characters, or 'last'.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every trace, or every one of the options below.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only traces received in the last 90s, 30m, 24h or 7d.")
    ] = None,
    instance: Annotated[str | None, typer.Option(help="Only traces of this instance.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One object a line: each trace named or in disagreement, the counts last.")
    ] = False,
) -> None:
    """Derive every answer from its chunks and every message from its answer, and name what does not agree.

    Exit code 0 when everything agrees, 1 when something does not, 2 when it could not be checked.
    """
    narrows = everything or since is not None or instance is not None
    if bool(trace_ids) == narrows:
        raise typer.BadParameter("name traces, or take --all (or --since, --instance), and not both")
    received_from = None if since is None else _moment_ago(since)
    show = _Show(as_json=as_json)
    try:
        with open_database() as database:
            if trace_ids:
                _check_named(database, trace_ids, show)
            else:
                _check_all(SqlTracePages(database, received_from=received_from, instance_name=instance), show)
    except SettingsError:
        raise
    except OmniError as exc:
        complain(exc)
        raise typer.Exit(UNREADABLE) from exc
    show.counts()
    if show.num_by_verdict["disagrees"]:
        raise typer.Exit(DISAGREE)


class _Show:
    """What is printed, and the counts. Keeps nothing of a trace that was shown."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console()
        self.num_by_verdict: Counter[Verdict] = Counter()
        self._num_with_losses = 0

    def take(self, report: TraceReport, *, is_named: bool) -> None:
        """Count a report, and print it when it was asked for by name or disagrees."""
        verdict = _verdict_of(report)
        self.num_by_verdict[verdict] += 1
        losses = report.losses
        self._num_with_losses += bool(losses.dropped_chunks or losses.lost_rows)
        if is_named or verdict == "disagrees":
            (self._print_json if self.as_json else self._print)(report, verdict)

    def counts(self) -> None:
        """Print how many traces there were of each kind."""
        counts = {verdict: self.num_by_verdict[verdict] for verdict in _VERDICTS}
        total = sum(counts.values())
        if self.as_json:
            typer.echo(
                msgspec.json.encode({"checked": total, **counts, "with_told_losses": self._num_with_losses}).decode()
            )
            return
        told = f"{total:,} checked: {counts['agrees']:,} agree, {counts['open']:,} open, {counts['legacy']:,} not verifiable"
        self.console.print(Text(f"{told}, {counts['disagrees']:,} disagree"), soft_wrap=True)
        if self._num_with_losses:
            self.console.print(
                Text(f"{self._num_with_losses:,} of them say themselves that records were not kept"), soft_wrap=True
            )

    def _print(self, report: TraceReport, verdict: Verdict) -> None:
        line = Text.assemble(f"trace {report.trace_id}  ", (_TOLD[verdict], _STYLES[verdict]))
        self.console.print(line, soft_wrap=True)
        for one in report.disagreements:
            self.console.print(Text(f"  {one.sentence}"), soft_wrap=True)
        losses = report.losses
        if losses.dropped_chunks or losses.lost_rows:
            told = f"  told by the trace: {losses.dropped_chunks} chunks and {losses.lost_rows} rows were not kept"
            self.console.print(Text(told), soft_wrap=True)

    def _print_json(self, report: TraceReport, verdict: Verdict) -> None:
        shown = {
            "trace_id": report.trace_id,
            "verdict": verdict,
            "disagreements": report.disagreements,
            "told_losses": report.losses,
        }
        typer.echo(msgspec.json.encode(shown).decode())


def _verdict_of(report: TraceReport) -> Verdict:
    if report.disagreements:
        return "disagrees"
    return "agrees" if report.state == "closed" else report.state


def _check_named(database: Database, trace_ids: list[str], show: _Show) -> None:
    reader = SqlTraceReader(database)
    for wanted in trace_ids:
        row = find_trace(reader, wanted)
        show.take(check_trace(row, reader.get_payloads(row.trace_id)), is_named=True)


def _check_all(pages: SqlTracePages, show: _Show) -> None:
    with _progress(show) as progress:
        task = progress.add_task("traces", total=pages.count() if not progress.disable else None)
        for page in pages.walk():
            for row, payloads in page:
                show.take(check_trace(row, payloads), is_named=False)
            progress.advance(task, len(page))


def _progress(show: _Show) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_hidden = show.as_json or not show.console.is_terminal
    # The same console, so that what is printed meanwhile goes above the bar.
    return Progress(*columns, console=show.console, transient=True, disable=is_hidden)


def _moment_ago(since: str) -> datetime:
    found = re.fullmatch(r"(\d{1,9})([smhd])", since)
    try:
        if found is not None:
            return wall_datetime(SystemClock.wall_ns()) - timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    except OverflowError:
        pass
    raise typer.BadParameter("must be a number and a unit that reach back to a date, as in 24h", param_hint="--since")
