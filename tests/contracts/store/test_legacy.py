"""Databases the predecessor wrote open as they are: everything in them is read, ours is written beside it, theirs stays as it was."""

import base64
import json
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from omni.errors import StoreError
from omni.model import InstanceConfig
from omni.ports import DropPayloads, InsertPayload, InsertTrace, PayloadRow, TraceFilter, TraceRow, UpdateTrace
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.payload_codec import encode_payload
from omni.store.queries import SqlTraceReader
from omni.store.schema import own_metadata
from omni.store.writes import SqlTraceSink

CAPTURES = Path(__file__).parents[2] / "captures" / "legacy"
NOON = datetime(2026, 11, 22, 12, 0, 0, 5, tzinfo=UTC)
LATER_THAN_ALL = datetime(2030, 1, 1, tzinfo=UTC)
TIMES = [name for name in TraceRow.__struct_fields__ if name.endswith("_at")]
FLAGS = ["has_media", "has_quoted_message", "agent_response_success", "evolution_success"]

Dump = dict[str, Any]


class Legacy:
    """A copy of one capture, opened with ours, and the capture itself to compare with."""

    def __init__(self, state: str, folder: Path) -> None:
        self.state = state
        self.original = CAPTURES / f"legacy_{state}.db"
        self.copy = folder / "omni.db"
        shutil.copy(self.original, self.copy)
        self.database = Database.open(f"sqlite:///{self.copy}")
        self.sink = SqlTraceSink(self.database)
        self.reader = SqlTraceReader(self.database)
        self.instances = SqlInstanceStore(self.database)

    def original_rows(self, sql: str) -> list[dict[str, Any]]:
        connection = sqlite3.connect(f"file:{self.original}?mode=ro&immutable=1", uri=True)
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(sql)]
        connection.close()
        return rows


@pytest.fixture(params=["cd5", "head"])
def legacy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Legacy]:
    opened = Legacy(request.param, tmp_path)
    yield opened
    opened.database.close()


@pytest.fixture
def cd5(tmp_path: Path) -> Iterator[Legacy]:
    opened = Legacy("cd5", tmp_path)
    yield opened
    opened.database.close()


def dump(path: Path) -> Dump:
    """All objects and all values of a database but ours, each value as an SQL literal so that its type shows."""
    connection = sqlite3.connect(path)
    objects = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    theirs = [row for row in objects if not row[2].startswith("omni_")]
    dumped: Dump = {"objects": theirs}
    for _, table, _, _ in [row for row in theirs if row[0] == "table"]:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(f'quote("{name}")' for name in names)
        dumped[table] = connection.execute(f"SELECT rowid, {values} FROM {table} ORDER BY rowid").fetchall()
    connection.close()
    return dumped


def utc(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.strptime(stored + "+0000", "%Y-%m-%d %H:%M:%S.%f%z")


def test_every_trace_is_read_as_it_was_written(legacy: Legacy) -> None:
    expected = legacy.original_rows("SELECT * FROM message_traces ORDER BY received_at DESC")
    for row in expected:
        row.update({name: utc(row[name]) for name in TIMES})
        row.update({name: None if row[name] is None else bool(row[name]) for name in FLAGS})
    assert len(expected) == {"cd5": 5, "head": 3}[legacy.state]
    assert legacy.reader.list_traces(TraceFilter()) == [TraceRow(**row) for row in expected]
    assert [legacy.reader.get_trace(row["trace_id"]) for row in expected] == [TraceRow(**row) for row in expected]


def test_every_payload_is_read_to_the_last(legacy: Legacy) -> None:
    rows = legacy.original_rows("SELECT * FROM trace_payloads ORDER BY id")
    expected = [
        PayloadRow(
            **{
                **{name: value for name, value in row.items() if name != "payload_compressed"},
                "payload": json.loads(zlib.decompress(base64.b64decode(row["payload_compressed"]))),
                "timestamp": utc(row["timestamp"]),
                "contains_media": bool(row["contains_media"]),
                "contains_base64": bool(row["contains_base64"]),
            }
        )
        for row in rows
    ]
    assert len(expected) == {"cd5": 24, "head": 16}[legacy.state]
    traces = legacy.reader.list_traces(TraceFilter())
    read = [row for trace in traces for row in legacy.reader.get_payloads(trace.trace_id)]
    assert sorted(read, key=lambda row: row.id) == expected


def test_packing_their_payloads_again_gives_their_text(legacy: Legacy) -> None:
    rows = legacy.original_rows("SELECT * FROM trace_payloads ORDER BY id")
    assert len(rows) >= 16
    for row in rows:
        packed = encode_payload(json.loads(zlib.decompress(base64.b64decode(row["payload_compressed"]))))
        assert (packed.text, packed.size_original, packed.size_compressed) == (
            row["payload_compressed"],
            row["payload_size_original"],
            row["payload_size_compressed"],
        )


def test_every_instance_is_read_with_all_its_columns(legacy: Legacy) -> None:
    flags = {
        "webhook_base64",
        "agent_stream_mode",
        "is_default",
        "is_active",
        "hive_enabled",
        "hive_stream_mode",
        "discord_voice_enabled",
        "discord_slash_commands_enabled",
        "enable_auto_split",
    }
    unset = dict.fromkeys(("webhook_secret", "message_spacing_ms", "language", "notice_texts"))
    ours = {**unset, "requires_webhook_auth": False, "answers_groups": False}
    expected = legacy.original_rows("SELECT * FROM instance_configs ORDER BY id")
    for row in expected:
        row.update({name: bool(row[name]) for name in flags & row.keys() if row[name] is not None})
        row.update(created_at=utc(row["created_at"]), updated_at=utc(row["updated_at"]))
        row.update(ours)
    assert len(expected) == 4
    assert legacy.instances.list_rows() == expected


def write_beside(legacy: Legacy) -> None:
    """Everything ours does in normal life, to rows of its own."""
    legacy.sink.write(
        [
            InsertTrace("omni-trace", {"instance_name": "flash-hive", "received_at": NOON, "status": "received"}),
            InsertPayload(
                trace_id="omni-trace",
                stage="streaming_chunks",
                payload_type="stream_event",
                payload={"text": "olá 🌸"},
                timestamp=NOON,
            ),
        ]
    )
    legacy.sink.write([UpdateTrace("omni-trace", {"status": "completed"}), DropPayloads("omni-trace", "nothing")])
    legacy.instances.create({"name": "omni-instance", "agent_id": "genie", "webhook_secret": "s"})
    legacy.instances.update("omni-instance", {"answers_groups": True})
    assert legacy.reader.delete_older_than(datetime(2020, 1, 1, tzinfo=UTC)) == 0


def test_writing_beside_them_leaves_their_rows_columns_indexes_and_version_as_they_were(
    legacy: Legacy, tmp_path: Path
) -> None:
    pristine = tmp_path / "pristine.db"
    shutil.copy(legacy.original, pristine)
    before = dump(pristine)
    write_beside(legacy)
    assert legacy.reader.get_trace("omni-trace") == TraceRow(
        trace_id="omni-trace", instance_name="flash-hive", received_at=NOON, status="completed"
    )
    assert [row.payload for row in legacy.reader.get_payloads("omni-trace")] == [{"text": "olá 🌸"}]
    legacy.database.close()
    after = dump(legacy.copy)
    added = {
        table: [row for row in rows if row not in before[table]]
        for table, rows in after.items()
        if rows != before[table]
    }
    assert {table: len(rows) for table, rows in added.items()} == {
        "message_traces": 1,
        "trace_payloads": 1,
        "instance_configs": 1,
    }
    without_ours = {table: [row for row in rows if row not in added.get(table, [])] for table, rows in after.items()}
    assert without_ours == before
    version = {"cd5": "'1b77edd50bf1'", "head": "'49e3788203da'"}[legacy.state]
    assert [stored for _, stored in after["alembic_version"]] == [version]


def test_opening_adds_our_own_tables_only(legacy: Legacy) -> None:
    connection = sqlite3.connect(legacy.copy)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    theirs = {row["name"] for row in legacy.original_rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names - theirs == {*own_metadata.tables, "omni_schema_version"}
    assert theirs - names == set()


def test_their_status_error_counts_as_failed(cd5: Legacy) -> None:
    summary = cd5.reader.summarize(received_from=None, received_to=None, instance_name=None)
    assert (summary.total_messages, summary.successful_messages, summary.failed_messages) == (5, 2, 1)
    assert (summary.success_rate, summary.error_stages) == (40.0, {"streaming_general": 1})


def test_f29_removing_their_old_traces_leaves_no_payload_behind(legacy: Legacy) -> None:
    assert legacy.reader.delete_older_than(LATER_THAN_ALL) == {"cd5": 5, "head": 3}[legacy.state]
    connection = sqlite3.connect(legacy.copy)
    assert connection.execute("SELECT count(*) FROM trace_payloads").fetchone() == (0,)
    connection.close()


def test_f37_an_instance_with_hive_columns_is_read_as_a_hive_instance(cd5: Legacy) -> None:
    assert cd5.instances.get("legacy-hive") == InstanceConfig(
        name="legacy-hive",
        evolution_url="http://evolution.local:8080",
        evolution_key="EVO-KEY-legacy",
        whatsapp_instance="legacy",
        agent_instance_type="hive",
        agent_api_url="http://hive-old.local",
        agent_api_key="hive_old",
        agent_id="old-genie",
        agent_type="agent",
        agent_timeout=45,
        agent_stream_mode=True,
        default_agent="old-agent",
        is_active=False,
    )


def test_f37_changing_the_agent_of_such_an_instance_keeps_the_rest_of_its_hive_settings(cd5: Legacy) -> None:
    before = cd5.instances.get("legacy-hive")
    assert before is not None
    row = cd5.instances.update("legacy-hive", {"agent_id": "new-genie"})
    after = cd5.instances.get("legacy-hive")
    assert after is not None
    assert (row["hive_enabled"], row["hive_agent_id"]) == (False, "old-genie")
    changed = {
        name: getattr(after, name)
        for name in InstanceConfig.__struct_fields__
        if getattr(after, name) != getattr(before, name)
    }
    assert changed == {"agent_id": "new-genie"}


def test_f37_changing_something_else_leaves_the_hive_columns_in_charge(cd5: Legacy) -> None:
    row = cd5.instances.update("legacy-hive", {"profile_name": "Old"})
    assert (row["hive_enabled"], row["agent_id"]) == (True, "default")


def test_settings_their_older_table_has_no_column_for_are_kept_all_the_same(cd5: Legacy) -> None:
    row = cd5.instances.create({"name": "new", "enable_auto_split": False, "discord_permissions": 8})
    assert (row["enable_auto_split"], row["discord_permissions"]) == (False, 8)
    assert cd5.instances.update("new", {"enable_auto_split": True})["enable_auto_split"] is True
    assert cd5.instances.get("new") == InstanceConfig(
        name="new", agent_api_url="", agent_api_key="", agent_id="default", default_agent="default"
    )


def test_hive_columns_can_be_written_only_where_the_table_has_them(legacy: Legacy) -> None:
    values = {"name": "new", "hive_enabled": True, "hive_api_url": "http://h", "hive_team_id": "t"}
    if legacy.state == "head":
        with pytest.raises(StoreError, match="An instance has no setting named 'hive_enabled'"):
            legacy.instances.create(values)
        return
    legacy.instances.create(values)
    config = legacy.instances.get("new")
    assert config is not None
    assert (config.is_hive, config.agent_id, config.agent_type) == (True, "t", "team")


def test_removing_one_of_their_instances_takes_its_users_and_leaves_its_traces(legacy: Legacy) -> None:
    before = legacy.reader.list_traces(TraceFilter())
    legacy.instances.delete("plain-auto")
    connection = sqlite3.connect(legacy.copy)
    assert connection.execute("SELECT instance_name FROM users").fetchall() == [("flash-hive",)]
    if legacy.state == "head":
        assert connection.execute("SELECT instance_name FROM user_external_ids").fetchall() == [("flash-hive",)]
        assert connection.execute("SELECT instance_name FROM access_rules ORDER BY id").fetchall() == [
            ("flash-hive",),
            (None,),
        ]
    connection.close()
    assert legacy.reader.list_traces(TraceFilter()) == before


def test_a_new_default_replaces_theirs(legacy: Legacy) -> None:
    legacy.instances.update("squad-team", {"is_default": True})
    assert [row["name"] for row in legacy.instances.list_rows() if row["is_default"]] == ["squad-team"]
