"""``omni traces verify``: what it prints, in words and in JSON, and the three exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.support.told_turns import CHUNKS, open_turn, tell_answer, tell_stream

from omni.cli import main
from omni.settings import Settings
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.store.schema import message_traces
from omni.store.writes import SqlTraceSink
from omni.testing import FakeClock
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer

LEGACY = Path(__file__).parents[1] / "captures" / "legacy" / "legacy_head.db"
NO_LOSSES = {"dropped_chunks": 0, "lost_rows": 0}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the command finds its database."""
    path = tmp_path / "omni.db"
    monkeypatch.setenv("AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH", str(path))
    monkeypatch.delenv("AUTOMAGIK_OMNI_DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return path


@pytest.fixture
def database(path):
    database = Database.open(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def trace_ids(database):
    """An answered turn, a damaged one, and one that is still running; received at the fake clock's start, minutes apart."""
    clock = FakeClock()
    recorder = Recorder(
        SqlTraceSink(database), clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1, trace_segment_ms=10)
    )
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=SqlTraceReader(database))
    traces = [open_turn(tracer, message_id=f"3EB0{number}") for number in range(3)]
    tell_answer(traces[0], clock)
    tell_answer(traces[1], clock)
    tell_stream(traces[2], clock, CHUNKS[:3])
    assert recorder.stop()
    with database.writing("damaging a trace") as connection:
        connection.execute(
            update(message_traces)
            .where(message_traces.c.trace_id == traces[1].trace_id)
            .values(agent_response_length=0, error_stage="streaming_error")
        )
    return [trace.trace_id for trace in traces]


@pytest.fixture
def omni(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["omni", *words])
        try:
            main()
        except SystemExit as exc:
            code = exc.code or 0
        else:
            code = 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_traces_are_told_by_name_and_a_disagreement_is_exit_code_one(omni, trace_ids):
    good, bad, running = trace_ids
    code, out, err = omni("traces", "verify", good, running, bad)
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        f"trace {good}  agrees with itself",
        f"trace {running}  open: what is stored so far agrees",
        f"trace {bad}  disagrees",
        "  error_stage: stored streaming_error, derived None [ending]",
        f"  agent_response_length: stored 0, derived {len(''.join(CHUNKS))} [figure]",
        "3 checked: 1 agree, 1 open, 0 not verifiable, 1 disagree",
    ]


def test_of_all_traces_only_those_that_disagree_are_shown(omni, trace_ids):
    code, out, _ = omni("traces", "verify", "--all", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert lines == [
        {
            "trace_id": trace_ids[1],
            "verdict": "disagrees",
            "disagreements": [
                {"kind": "ending", "where": "error_stage", "stored": "streaming_error", "derived": None},
                {
                    "kind": "figure",
                    "where": "agent_response_length",
                    "stored": 0,
                    "derived": len("".join(CHUNKS)),
                },
            ],
            "told_losses": NO_LOSSES,
        },
        {"checked": 3, "agrees": 1, "open": 1, "legacy": 0, "disagrees": 1, "with_told_losses": 0},
    ]


def test_everything_in_order_is_exit_code_zero(omni, trace_ids):
    assert omni("traces", "verify", trace_ids[0][:8], "--json")[::2] == (0, "")
    # The fake clock's traces lie far from now on one side or the other; another instance has none for certain.
    assert omni("traces", "verify", "--instance", "nobody") == (
        0,
        "0 checked: 0 agree, 0 open, 0 not verifiable, 0 disagree\n",
        "",
    )


def test_since_reaches_back_from_now(omni, trace_ids):
    code, out, _ = omni("traces", "verify", "--since", "90000d", "--json")
    assert (code, json.loads(out.splitlines()[-1])["checked"]) == (1, 3)


def test_the_predecessors_traces_are_not_verifiable_and_no_failure(omni, path):
    """They hold every tenth chunk; nothing can be derived from that, and nothing is wrong with it either."""
    shutil.copy(LEGACY, path)
    code, out, _ = omni("traces", "verify", "--all", "--json")
    counts = json.loads(out)
    assert (code, counts["legacy"], counts["checked"] - counts["legacy"]) == (0, counts["checked"], 0)
    assert counts["checked"] >= 3


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("some-id", "--all"),
        ("--since", "yesterday"),
        ("--since", "999999999d"),
        ("no-such-trace",),
    ],
)
def test_what_cannot_be_checked_is_exit_code_two(omni, database, words):
    code, out, err = omni("traces", "verify", *words)
    assert (code, out) == (2, "")
    assert err != ""


def test_a_database_that_cannot_be_opened_is_exit_code_two(omni, path):
    path.write_bytes(b"this is no database, and it is longer than a header of a hundred bytes would be" * 4)
    code, out, err = omni("traces", "verify", "--all")
    assert (code, out) == (2, "")
    assert err.startswith("omni: ")
