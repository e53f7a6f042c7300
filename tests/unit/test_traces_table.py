"""The terminal's list of traces: figures are whole or not there, and a name is never taken for markup."""

from datetime import UTC, datetime
from io import StringIO

import pytest
import typer
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


def drawn(width: int) -> list[list[str]]:
    console = Console(width=width, record=True, file=StringIO())
    console.print(_table([ROW], num_columns=width))
    return [line.split("  ") for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (100, ["trace", "received UTC", "instance", "status", "agent ms", "total ms", "chars", "error"]),
        (72, ["trace", "received UTC", "status", "agent ms", "total ms", "chars", "error"]),
        (60, ["trace", "received UTC", "status", "total ms", "chars"]),
        (50, ["trace", "received UTC", "status", "total ms"]),
        (30, ["trace", "status", "total ms"]),
    ],
)
def test_columns_give_way_whole(width: int, names: list[str]):
    header, row = ([cell.strip() for cell in cells if cell.strip()] for cells in drawn(width))

    assert header == names
    assert "2,345,678" in row
    assert ("1,234,567" in row) == ("agent ms" in names)


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
