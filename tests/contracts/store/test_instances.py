"""Instances are kept in the predecessor's table as it is, with what is ours beside it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, text

from omni.errors import RecordNotFound, StoreError
from omni.model import InstanceConfig
from omni.ports import InsertTrace, InstanceStore, TraceRow
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.queries import SqlTraceReader
from omni.store.schema import access_rules, omni_instance_settings, user_external_ids, users
from omni.store.writes import SqlTraceSink

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ONE_HOUR_NS = 3_600_000_000_000


class StoppedClock:
    """A wall clock that shows what it is told."""

    def __init__(self) -> None:
        self.now_ns = int(NOON.timestamp()) * 1_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def store(database: Database, clock: StoppedClock) -> InstanceStore:
    return SqlInstanceStore(database, clock=clock)


def defaults(store: InstanceStore) -> list[str]:
    return [row["name"] for row in store.list_rows() if row["is_default"]]


def test_f36_an_instance_can_be_made_without_a_default_agent(store: InstanceStore) -> None:
    required = {"name": "flash", "agent_api_url": "http://hive.local:8886", "agent_api_key": "k"}
    assert store.create(required) == {
        "id": 1,
        "name": "flash",
        "channel_type": "whatsapp",
        "evolution_url": None,
        "evolution_key": None,
        "whatsapp_instance": None,
        "session_id_prefix": None,
        "webhook_base64": True,
        "agent_api_url": "http://hive.local:8886",
        "agent_api_key": "k",
        "default_agent": "default",
        "agent_timeout": 60,
        "automagik_instance_id": None,
        "automagik_instance_name": None,
        "is_default": False,
        "is_active": True,
        "created_at": NOON,
        "updated_at": NOON,
        "agent_instance_type": "automagik",
        "agent_id": "default",
        "agent_type": "agent",
        "agent_stream_mode": False,
        "profile_name": None,
        "profile_pic_url": None,
        "owner_jid": None,
        "discord_bot_token": None,
        "discord_client_id": None,
        "discord_guild_id": None,
        "discord_default_channel_id": None,
        "discord_voice_enabled": False,
        "discord_slash_commands_enabled": True,
        "discord_webhook_url": None,
        "discord_permissions": None,
        "enable_auto_split": True,
        "webhook_secret": None,
        "requires_webhook_auth": False,
        "answers_groups": False,
        "message_spacing_ms": None,
        "language": None,
        "notice_texts": None,
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ("default", "default")),
        ({"agent_id": "genie"}, ("genie", "genie")),
        ({"default_agent": "simple"}, ("simple", "simple")),
        ({"agent_id": "genie", "default_agent": "simple"}, ("genie", "simple")),
        ({"agent_id": None, "default_agent": None}, ("default", "default")),
    ],
)
def test_f36_the_default_agent_is_the_agent_when_only_one_is_named(
    store: InstanceStore, given: dict[str, Any], names: tuple[str, str]
) -> None:
    row = store.create({"name": "flash", **given})
    assert (row["agent_id"], row["default_agent"]) == names


def test_an_instance_comes_back_as_the_gateway_uses_it(store: InstanceStore) -> None:
    values: dict[str, Any] = {
        "name": "flash",
        "evolution_url": "http://evolution.local:8080",
        "evolution_key": "EVO",
        "whatsapp_instance": "Flash ção",
        "agent_instance_type": "hive",
        "agent_api_url": "http://hive.local:8886",
        "agent_api_key": "k",
        "agent_id": "genie",
        "agent_type": "team",
        "agent_timeout": 120,
        "agent_stream_mode": True,
        "is_default": True,
        "webhook_secret": "s3",
        "requires_webhook_auth": True,
        "answers_groups": True,
        "message_spacing_ms": 250,
        "language": "pt",
        "notice_texts": {"no_answer": "Já volto! 🌸"},
    }
    store.create(values)
    assert store.get("flash") == InstanceConfig(**values, default_agent="genie")
    assert store.get("nobody") is None
    assert store.get_row("nobody") is None


def test_an_update_changes_what_it_names_and_the_time(store: InstanceStore, clock: StoppedClock) -> None:
    before = store.create({"name": "flash", "webhook_secret": "s3", "message_spacing_ms": 250})
    clock.now_ns += ONE_HOUR_NS
    after = store.update("flash", {"agent_id": "genie", "message_spacing_ms": None, "answers_groups": True})
    assert after == {
        **before,
        "agent_id": "genie",
        "message_spacing_ms": None,
        "answers_groups": True,
        "updated_at": datetime(2026, 11, 22, 13, 0, tzinfo=UTC),
    }
    assert store.get_row("flash") == after


def test_a_whole_row_can_be_given_back(store: InstanceStore) -> None:
    row = store.create({"name": "flash"})
    assert store.update("flash", row) == row


def test_none_resets_what_the_table_demands(store: InstanceStore) -> None:
    store.create({"name": "flash", "agent_id": "genie", "default_agent": "simple", "agent_api_url": "http://x"})
    row = store.update("flash", {"default_agent": None, "agent_api_url": None, "webhook_base64": None})
    assert (row["default_agent"], row["agent_api_url"], row["webhook_base64"]) == ("genie", "", True)


@pytest.mark.parametrize(
    ("values", "status_code"),
    [
        ({"name": "flash"}, 409),
        ({}, 422),
        ({"name": "  "}, 422),
        ({"name": "b", "colour": "red"}, 422),
        ({"name": "b", "agent_timeout": "long"}, 422),
        ({"name": "b", "agent_stream_mode": "yes"}, 422),
        ({"name": "b", "requires_webhook_auth": 1}, 422),
        ({"name": "b", "message_spacing_ms": True}, 422),
    ],
)
def test_values_no_instance_can_have_are_refused_and_nothing_is_made(
    store: InstanceStore, values: dict[str, Any], status_code: int
) -> None:
    store.create({"name": "flash", "is_default": True})
    with pytest.raises(StoreError) as refused:
        store.create({"is_default": True, **values})
    assert refused.value.status_code == status_code
    assert (store.count(), defaults(store)) == (1, ["flash"])


@pytest.mark.parametrize("values", [{"name": "other"}, {"id": 7}, {"colour": "red"}, {"created_at": None}])
def test_changes_no_instance_can_take_are_refused(store: InstanceStore, values: dict[str, Any]) -> None:
    row = store.create({"name": "flash"})
    with pytest.raises(StoreError) as refused:
        store.update("flash", {"agent_id": "genie", **values})
    assert (refused.value.status_code, store.get_row("flash")) == (422, row)


def test_there_is_one_default_at_a_time(store: InstanceStore) -> None:
    store.create({"name": "a", "is_default": True})
    store.create({"name": "b", "is_default": True})
    assert defaults(store) == ["b"]
    store.create({"name": "c"})
    store.update("c", {"is_default": True})
    assert defaults(store) == ["c"]
    store.update("c", {"is_active": False, "is_default": True})
    assert defaults(store) == ["c"]


def test_instances_are_listed_in_the_order_they_were_made(store: InstanceStore) -> None:
    for name in ("zeta", "alpha", "mid"):
        store.create({"name": name, "webhook_secret": name})
    assert [(row["name"], row["webhook_secret"]) for row in store.list_rows()] == [
        ("zeta", "zeta"),
        ("alpha", "alpha"),
        ("mid", "mid"),
    ]
    assert [row["name"] for row in store.list_rows(limit=1, offset=1)] == ["alpha"]
    assert store.count() == 3


def test_changing_or_removing_an_instance_that_is_not_there_is_a_404(store: InstanceStore) -> None:
    with pytest.raises(RecordNotFound):
        store.update("nobody", {"agent_id": "x"})
    with pytest.raises(RecordNotFound):
        store.delete("nobody")


@pytest.fixture
def peopled(database: Database, store: InstanceStore) -> Database:
    """Two instances, each with a user, an external id, a rule and a trace; one rule holds everywhere."""
    for name in ("flash", "other"):
        store.create({"name": name, "webhook_secret": "s"})
        user = {"id": f"u-{name}", "phone_number": "+55", "whatsapp_jid": "55@s", "instance_name": name}
        with database.writing("adding people") as connection:
            connection.execute(users.insert().values(user))
            link = {"user_id": user["id"], "provider": "whatsapp", "external_id": name, "instance_name": None}
            connection.execute(user_external_ids.insert().values(link))
            rule = {"instance_name": name, "phone_number": "+55*", "rule_type": "block"}
            connection.execute(access_rules.insert().values(rule))
        SqlTraceSink(database).write([InsertTrace(f"t-{name}", {"instance_name": name, "received_at": NOON})])
    with database.writing("adding a rule") as connection:
        everywhere = {"instance_name": None, "phone_number": "+1*", "rule_type": "allow"}
        connection.execute(access_rules.insert().values(everywhere))
    return database


def test_removing_an_instance_removes_its_users_and_rules_and_keeps_its_traces(
    peopled: Database, store: InstanceStore
) -> None:
    store.delete("flash")
    with peopled.reading("looking") as connection:
        left = {
            "users": connection.scalars(select(users.c.id)).all(),
            "links": connection.scalars(select(user_external_ids.c.external_id)).all(),
            "rules": connection.scalars(select(access_rules.c.instance_name).order_by(access_rules.c.id)).all(),
            "settings": connection.scalars(select(omni_instance_settings.c.instance_name)).all(),
        }
    assert left == {"users": ["u-other"], "links": ["other"], "rules": ["other", None], "settings": ["other"]}
    assert [row["name"] for row in store.list_rows()] == ["other"]
    reader = SqlTraceReader(peopled)
    kept_name = "flash" if peopled.is_sqlite else None
    assert reader.get_trace("t-flash") == TraceRow(trace_id="t-flash", instance_name=kept_name, received_at=NOON)
    assert reader.get_trace("t-other") == TraceRow(trace_id="t-other", instance_name="other", received_at=NOON)


def test_an_instance_made_again_does_not_inherit_the_settings_of_the_removed_one(store: InstanceStore) -> None:
    store.create({"name": "flash", "webhook_secret": "old", "requires_webhook_auth": True})
    store.delete("flash")
    row = store.create({"name": "flash"})
    assert (row["webhook_secret"], row["requires_webhook_auth"]) == (None, False)


def test_damaged_settings_are_an_error_not_a_missing_secret(database: Database, store: InstanceStore) -> None:
    store.create({"name": "flash", "webhook_secret": "s", "requires_webhook_auth": True})
    with database.writing("damaging settings") as connection:
        connection.execute(text("UPDATE omni_instance_settings SET settings_json = '[1'"))
    with pytest.raises(StoreError, match="The settings stored for instance 'flash' are not a JSON object"):
        store.get("flash")


def test_an_instance_without_settings_of_ours_stores_none(database: Database, store: InstanceStore) -> None:
    store.create({"name": "flash"})
    with database.reading("counting") as connection:
        assert connection.scalar(select(func.count()).select_from(omni_instance_settings)) == 0
