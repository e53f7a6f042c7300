"""The terminal's list of traces: figures are whole or not there, and a name is never taken for markup."""

from datetime import UTC, datetime
from io import StringIO

import pytest
import typer
from msgspec.structs import replace
from rich.console import Console

from omni.cli import main
from omni.cli.traces import _hours_ago, _table
from omni.ports import TraceRow

ROW = TraceRow(
    trace_id="5f2c0000-aaaa",
    instance_name="shop [/] [red]",
    status="completed",
    received_at=datetime(2026, 11, 22, 10, 0, tzinfo=UTC),
    agent_processing_time_ms=1_234_567,
    total_processing_time_ms=2_345_678,
    agent_response_length=40,
)


WORDS = {"incomplete", "timeout", "failed"}


def drawn(width: int) -> list[list[str]]:
    console = Console(width=width, record=True, file=StringIO())
    console.print(_table([ROW], {}, num_columns=width))
    return [line.split("  ") for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (100, ["trace", "received UTC", "instance", "ending", "agent ms", "total ms", "chars", "error"]),
        (72, ["trace", "received UTC", "ending", "agent ms", "total ms", "chars", "error"]),
        (60, ["trace", "received UTC", "ending", "total ms", "chars"]),
        (50, ["trace", "received UTC", "ending", "total ms"]),
        (30, ["trace", "ending", "total ms"]),
    ],
)
def test_columns_give_way_whole(width: int, names: list[str]):
    header, row = ([cell.strip() for cell in cells if cell.strip()] for cells in drawn(width))

    assert header == names
    assert "2,345,678" in row
    assert ("1,234,567" in row) == ("agent ms" in names)


def test_traces_that_failed_at_one_stage_are_told_apart_by_their_ending():
    """Older readers know no more than "failed"; a stream that broke off and one that fell silent fail at the same stage."""
    rows = [replace(ROW, trace_id=name, status="failed", error_stage="streaming_error") for name in ("a", "b", "c")]
    console = Console(width=100, record=True, file=StringIO())
    console.print(_table(rows, {"a": "incomplete", "b": "timeout", "c": None}, num_columns=100))

    lines = [line.split() for line in console.export_text().splitlines()]
    assert [(line[0], next(word for word in line if word in WORDS)) for line in lines[1:]] == [
        ("a", "incomplete"),
        ("b", "timeout"),
        ("c", "failed"),
    ]


def test_a_name_is_never_markup():
    assert "shop [/] [red]" in [cell.strip() for cell in drawn(100)[1]]


@pytest.mark.parametrize("hours", [-1.0, float("nan"), float("inf"), 1e12])
def test_hours_that_reach_no_date_are_a_wrong_argument(hours: float):
    with pytest.raises(typer.BadParameter):
        _hours_ago(hours)


def test_an_error_that_quotes_brackets_is_one_line(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["omni", "traces", "show", "[/red]"])

    with pytest.raises(SystemExit) as left:
        main()

    assert left.value.code == 1
    assert capsys.readouterr().err == "omni: no trace among the newest 1000 whose id begins with '[/red]'\n"
