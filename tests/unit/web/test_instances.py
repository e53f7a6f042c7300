"""The instance routes: what is stored, what is shown, and that no reply ever holds a key."""

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.web.fakes import Desk, client_of, refusal

from omni.web.instance_forms import InstanceReply, show_instance
from omni.web.masks import SECRET_FIELDS, mask_key

BASE = "/api/v1/instances"
FORM = {"name": "sales", "agent_api_url": "http://hive:8886", "agent_api_key": "hive-abcdefghijklmnop-9999"}
STORED_SUPPORT = {
    "id": 1,
    "name": "support",
    "channel_type": "whatsapp",
    "evolution_url": "http://evolution:8080",
    "evolution_key": "EVO-…lash",
    "agent_api_url": "http://hive:8886",
    "agent_api_key": "hive…cret",
    "is_default": False,
    "is_active": True,
    "created_at": "2026-11-01T08:30:00",
    "updated_at": "2026-11-01T08:30:00",
}


def invalid(field: str, message: str) -> dict[str, Any]:
    return refusal(422, "request_invalid", f"{field}: {message}", fields=[{"field": field, "message": message}])


async def test_a_new_instance_is_stored_with_every_default_spelled_out(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post(BASE, json=FORM)

    assert answer.status_code == 201
    stored = desk.instances.rows["sales"]
    assert {name: stored[name] for name in stored if name not in {"id", "created_at", "updated_at"}} == {
        "name": "sales",
        "channel_type": "whatsapp",
        "evolution_key": None,
        "agent_instance_type": "automagik",
        "agent_api_url": "http://hive:8886",
        "agent_api_key": "hive-abcdefghijklmnop-9999",
        "agent_id": "default",
        "agent_type": "agent",
        "agent_timeout": 60,
        "agent_stream_mode": False,
        "is_default": False,
        "is_active": True,
        "requires_webhook_auth": False,
        "answers_groups": False,
    }
    assert desk.changed == ["sales"]


async def test_a_new_instance_is_shown_with_its_keys_masked(client: httpx.AsyncClient):
    answer = await client.post(
        BASE,
        json=FORM
        | {
            "evolution_url": "https://evolution.example",
            "evolution_key": "EVO-0123456789-flash",
            "webhook_secret": "short",
            "agent_instance_type": "hive",
            "agent_type": "team",
            "agent_id": "writers",
            "agent_timeout": 3600,
            "agent_stream_mode": True,
            "message_spacing_ms": 0,
        },
    )

    assert answer.json() == {
        "id": 2,
        "name": "sales",
        "channel_type": "whatsapp",
        "evolution_url": "https://evolution.example",
        "evolution_key": "EVO-…lash",
        "agent_instance_type": "hive",
        "agent_api_url": "http://hive:8886",
        "agent_api_key": "hive…9999",
        "agent_id": "writers",
        "agent_type": "team",
        "agent_timeout": 3600,
        "agent_stream_mode": True,
        "is_default": False,
        "is_active": True,
        "created_at": "2026-11-01T08:30:00",
        "updated_at": "2026-11-01T08:30:00",
        "webhook_secret": "…",
        "requires_webhook_auth": False,
        "answers_groups": False,
        "message_spacing_ms": 0,
    }


async def test_a_taken_name_is_a_409(client: httpx.AsyncClient):
    answer = await client.post(BASE, json=FORM | {"name": "support"})

    assert (answer.status_code, answer.json()) == (
        409,
        refusal(409, "conflict", "An instance named 'support' exists already.", stage="store"),
    )


@pytest.mark.parametrize("missing", ["name", "agent_api_url", "agent_api_key"])
async def test_name_agent_url_and_agent_key_are_required(client: httpx.AsyncClient, missing: str):
    answer = await client.post(BASE, json={name: FORM[name] for name in FORM if name != missing})

    assert (answer.status_code, answer.json()) == (422, invalid(missing, "field required"))


NAME_RULE = "must be 1 to 100 letters, digits, spaces, dots, dashes or underscores, beginning with a letter or digit"
URL_RULE = "must be an address that begins with http:// or https://"
ONE_OF_TYPES = "input should be 'automagik' or 'hive'"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", NAME_RULE),
        ("name", "a/b", NAME_RULE),
        ("name", "..", NAME_RULE),
        ("name", "a?b", NAME_RULE),
        ("name", " a", NAME_RULE),
        ("name", "a ", NAME_RULE),
        ("name", "a\n", NAME_RULE),
        ("name", "a" * 101, NAME_RULE),
        ("name", "supported-channels", "is the name of a route; choose another one"),
        ("agent_api_url", "hive:8886", URL_RULE),
        ("agent_api_url", "http://", URL_RULE),
        ("agent_api_url", "file:///etc/passwd", URL_RULE),
        ("agent_api_url", "http://h ost", URL_RULE),
        ("agent_api_url", "http://host:port", "must be an address such as http://host:8080"),
        ("agent_api_url", "http://me:pw@host", "must not hold a login; the key has its own field"),
        ("evolution_url", "javascript:alert(1)", URL_RULE),
        ("agent_api_key", " ", "must not be blank"),
        ("agent_api_key", "clé", "must be printable ASCII"),
        ("agent_api_key", "a\r\nX-Other: b", "must be printable ASCII"),
        ("agent_instance_type", "openai", ONE_OF_TYPES),
        ("agent_type", "crowd", "input should be 'agent' or 'team'"),
        ("agent_timeout", 0, "input should be greater than or equal to 1"),
        ("agent_timeout", 3601, "input should be less than or equal to 3600"),
        ("channel_type", "discord", "input should be 'whatsapp'"),
        ("message_spacing_ms", -1, "input should be greater than or equal to 0"),
        ("language", "pt-BR", "input should be 'en' or 'pt'"),
        ("notice_texts", "Sorry", "input should be a valid dictionary"),
        ("agent_api_key", "hive…9999", "must be printable ASCII"),
        (
            "hive_enabled",
            True,
            "is not supported; a Hive agent is set with agent_instance_type and the agent_ fields",
        ),
    ],
)
async def test_an_unacceptable_value_is_refused_with_a_clear_sentence(
    desk: Desk, client: httpx.AsyncClient, field: str, value: Any, message: str
):
    answer = await client.post(BASE, json=FORM | {field: value})

    assert (answer.status_code, answer.json()) == (422, invalid(field, message))
    assert list(desk.instances.rows) == ["support"]


NOTICE_KINDS = "'no_answer', 'cut_short', 'too_slow', 'empty', 'waiting' or 'stopped'"


@pytest.mark.parametrize(
    ("texts", "field", "message"),
    [
        ({"goodbye": "Bye"}, "notice_texts.goodbye.[key]", f"input should be {NOTICE_KINDS}"),
        ({"empty": "x" * 1_001}, "notice_texts.empty", "string should have at most 1000 characters"),
        ({"stopped": " \n"}, "notice_texts.stopped", "must not be blank"),
        ({"waiting": None}, "notice_texts.waiting", "input should be a valid string"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_notice_text_that_cannot_be_said_is_refused(
    desk: Desk, client: httpx.AsyncClient, method: str, texts: dict[str, Any], field: str, message: str
):
    """A kind nobody says, or a blank message, would only be found out when a user waits for it."""
    form = FORM | {"notice_texts": texts} if method == "POST" else {"notice_texts": texts}
    answer = await client.request(method, BASE if method == "POST" else f"{BASE}/support", json=form)

    assert (answer.status_code, answer.json()) == (422, invalid(field, message))
    assert desk.changed == []


async def test_notice_texts_are_kept_replaced_as_a_whole_and_taken_back(desk: Desk, client: httpx.AsyncClient):
    texts = {"no_answer": "Já volto! 🌸", "cut_short": "x" * 1_000}
    made = await client.post(BASE, json=FORM | {"language": "pt", "notice_texts": texts})
    shown = [made.json()]
    for change in ({"notice_texts": {"empty": "?"}}, {"language": None, "notice_texts": None}):
        shown.append((await client.put(f"{BASE}/sales", json=change)).json())

    assert made.status_code == 201
    assert [(reply["language"], reply["notice_texts"]) for reply in shown] == [
        ("pt", texts),
        ("pt", {"empty": "?"}),
        (None, None),
    ]
    assert desk.changed == ["sales"] * 3


async def test_names_may_be_in_any_script(client: httpx.AsyncClient):
    assert (await client.post(BASE, json=FORM | {"name": "Atendimento São Paulo 2"})).status_code == 201
    assert (await client.get(f"{BASE}/Atendimento São Paulo 2")).status_code == 200


async def test_inputs_nobody_knows_are_named_and_not_stored(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post(BASE, json=FORM | {"auto_qr": True, "hive_enabled": False, "integration": None})

    assert (answer.status_code, answer.json()["ignored_fields"]) == (201, ["auto_qr"])
    assert "auto_qr" not in desk.instances.rows["sales"]


async def test_an_instance_is_shown(client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/support")

    assert (answer.status_code, answer.json()) == (200, STORED_SUPPORT)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nobody"), ("PUT", "/nobody"), ("DELETE", "/nobody"), ("POST", "/nobody/set-default")],
)
async def test_an_unknown_instance_is_a_404(desk: Desk, client: httpx.AsyncClient, method: str, path: str):
    answer = await client.request(method, BASE + path, json={} if method == "PUT" else None)

    assert (answer.status_code, answer.json()) == (
        404,
        refusal(404, "record_not_found", "Instance 'nobody' not found", stage="store"),
    )
    assert desk.changed == []


async def test_instances_are_listed_in_pages(desk: Desk, client: httpx.AsyncClient):
    for name in ("b", "c", "d"):
        desk.add_instance(name)

    listed = (await client.get(BASE)).json()
    page = (await client.get(BASE, params={"skip": 1, "limit": 2})).json()

    assert listed[0] == STORED_SUPPORT
    assert [row["name"] for row in listed] == ["support", "b", "c", "d"]
    assert [row["name"] for row in page] == ["b", "c"]


@pytest.mark.parametrize("query", ["skip=-1", "limit=0", "limit=1001", "limit=x"])
async def test_a_page_out_of_bounds_is_a_422(client: httpx.AsyncClient, query: str):
    assert (await client.get(f"{BASE}?{query}")).status_code == 422


async def test_supported_channels_are_listed(client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/supported-channels")

    assert answer.json() == {"supported_channels": ["whatsapp"], "total_channels": 1}


async def test_a_change_touches_only_what_it_names(desk: Desk, client: httpx.AsyncClient):
    before = dict(desk.instances.rows["support"])

    answer = await client.put(f"{BASE}/support", json={"agent_timeout": 5, "agent_api_key": "a-new-key-of-24-chars-xx"})

    assert answer.json() == STORED_SUPPORT | {"agent_timeout": 5, "agent_api_key": "a-ne…s-xx"}
    assert desk.instances.rows["support"] == before | {
        "agent_timeout": 5,
        "agent_api_key": "a-new-key-of-24-chars-xx",
    }
    assert desk.changed == ["support"]


async def test_an_instance_read_changed_and_sent_back_keeps_its_keys(desk: Desk, client: httpx.AsyncClient):
    desk.instances.rows["support"] |= {
        "webhook_secret": "short",
        "hive_enabled": True,
        "hive_api_key": "old-hive-key-0123456789",
        "hive_api_url": "http://user:pw@old",
        "agent_type": "crowd",
    }
    before = dict(desk.instances.rows["support"])
    shown = (await client.get(f"{BASE}/support")).json()

    answer = await client.put(f"{BASE}/support", json=shown | {"is_active": False})

    assert (answer.status_code, answer.json()) == (200, shown | {"is_active": False})
    assert desk.instances.rows["support"] == before | {"is_active": False}


async def test_the_mask_of_another_key_is_not_stored_as_a_key(desk: Desk, client: httpx.AsyncClient):
    answer = await client.put(f"{BASE}/support", json={"evolution_key": "EVO-…last"})

    assert (answer.status_code, answer.json()) == (
        422,
        invalid("evolution_key", "is a masked value; send the whole value or leave it out"),
    )
    assert desk.instances.rows["support"]["evolution_key"] == "EVO-0123456789abcdef-flash"


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"name": "other"}, "name", "cannot be changed"),
        ({"agent_timeout": 0}, "agent_timeout", "input should be greater than or equal to 1"),
        ({"agent_api_url": "hive"}, "agent_api_url", URL_RULE),
        ({"agent_api_key": None}, "agent_api_key", "input should be a valid string"),
        ({"agent_type": None}, "agent_type", "input should be 'agent' or 'team'"),
        (
            {"discord_bot_token": "abc"},
            "discord_bot_token",
            "is not supported; a Hive agent is set with agent_instance_type and the agent_ fields",
        ),
    ],
)
async def test_an_unacceptable_change_is_refused(
    desk: Desk, client: httpx.AsyncClient, change: dict[str, Any], field: str, message: str
):
    before = dict(desk.instances.rows["support"])

    answer = await client.put(f"{BASE}/support", json=change)

    assert (answer.status_code, answer.json()) == (422, invalid(field, message))
    assert desk.instances.rows["support"] == before


async def test_a_field_that_may_be_empty_is_emptied_by_null(desk: Desk, client: httpx.AsyncClient):
    await client.put(f"{BASE}/support", json={"evolution_key": None, "default_agent": None})

    assert desk.instances.rows["support"]["evolution_key"] is None


async def test_one_instance_is_the_default_at_a_time(desk: Desk, client: httpx.AsyncClient):
    desk.add_instance("first", is_default=True)

    await client.post(f"{BASE}/support/set-default")
    after_set = [name for name, row in desk.instances.rows.items() if row["is_default"]]
    await client.put(f"{BASE}/first", json={"is_default": True})
    after_put = [name for name, row in desk.instances.rows.items() if row["is_default"]]
    await client.post(BASE, json=FORM | {"is_default": True})
    after_post = [name for name, row in desk.instances.rows.items() if row["is_default"]]

    assert (after_set, after_put, after_post) == (["support"], ["first"], ["sales"])


async def test_an_instance_is_removed_without_a_body(desk: Desk, client: httpx.AsyncClient):
    answer = await client.delete(f"{BASE}/support")

    assert (answer.status_code, answer.content) == (204, b"")
    assert (desk.instances.rows, desk.changed) == ({}, ["support"])


KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=9, max_size=80)


@given(key=KEYS)
def test_a_mask_shows_at_most_eight_characters_and_never_most_of_the_key(key: str):
    mask = mask_key(key)
    assert len(mask.replace("…", "")) <= min(8, len(key) * 2 // 5)
    assert key not in mask


# Begins with a sign no field's name has, so that it is found only where it is shown.
@settings(max_examples=25, deadline=None)
@given(key=KEYS.map(lambda key: f"%{key}"))
async def test_no_reply_of_any_route_holds_a_key(key: str):
    desk = Desk()
    desk.add_instance(**dict.fromkeys(SECRET_FIELDS, key))
    form = FORM | {"agent_api_key": key, "evolution_key": key, "webhook_secret": key}
    bad = {"agent_api_key": key, "agent_timeout": key, "agent_type": key, "evolution_url": key, "is_active": key}
    async with client_of(desk.app()) as client:
        answers = [
            await client.get(BASE),
            await client.get(f"{BASE}/support"),
            await client.post(BASE, json=form),
            await client.post(BASE, json=form),
            await client.post(BASE, json=form | bad),
            await client.put(f"{BASE}/support", json=bad),
            await client.put(f"{BASE}/support", json={"agent_api_key": key + "2"}),
            await client.post(f"{BASE}/support/set-default"),
        ]

    assert [answer.status_code for answer in answers] == [200, 200, 201, 409, 422, 422, 200, 200]
    decoded = [str(answer.json()) + answer.text for answer in answers]
    assert not any(key in text for text in decoded)


def test_a_row_is_shown_only_in_fields_the_reply_documents():
    row = dict.fromkeys(InstanceReply.model_fields) | {"name": "x", "password": "p", "ignored_fields": None}

    assert InstanceReply.model_validate(show_instance(row))
    assert "password" not in show_instance(row)


async def test_an_agent_server_without_a_key_is_configured_with_an_empty_one(client: httpx.AsyncClient):
    """An Agno server has no key unless it is given one."""
    form = {"name": "open", "agent_api_url": "http://hive:8886", "agent_api_key": ""}

    made = await client.post("/api/v1/instances", json=form)
    keyed = await client.put("/api/v1/instances/open", json={"agent_api_key": "hive-9876543210fedcba-secret"})
    opened = await client.put("/api/v1/instances/open", json={"agent_api_key": ""})
    blank = await client.put("/api/v1/instances/open", json={"agent_api_key": "  "})

    assert [(answer.status_code, answer.json().get("agent_api_key")) for answer in (made, keyed, opened, blank)] == [
        (201, ""),
        (200, "hive…cret"),
        (200, ""),
        (422, None),
    ]
