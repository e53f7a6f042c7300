"""What comes out of Evolution's webhooks, on recorded bodies first and on the variants other versions send."""

import copy

import pytest

from omni.channels.whatsapp.webhook import WebhookEvent, event_of, parse_event, parse_webhook
from omni.errors import WebhookMalformed
from omni.model import Ignored, InboundMessage, Receipt, SentEcho


def upsert(message=None, *, key=None, **data):
    """A messages.upsert body with a text from a phone address unless told otherwise."""
    return {
        "event": "messages.upsert",
        "instance": "wa-lab",
        "data": {
            "key": {"remoteJid": "5511999990001@s.whatsapp.net", "fromMe": False, "id": "3A01", **(key or {})},
            "pushName": "Maria",
            "message": {"conversation": "oi"} if message is None else message,
            "messageTimestamp": 1795342685,
            **data,
        },
    }


def read(body, **options):
    return parse_webhook(body, instance_name="shop", **options)


def without_raw(message):
    """The message as a dict of what was read, without the body it was read from."""
    return {name: getattr(message, name) for name in message.__struct_fields__ if name != "raw"}


def recorded(capture, number):
    return [webhook["body"] for webhook in capture(number)["webhooks"]]


def test_recorded_message_from_a_phone_address_is_read_whole(capture):
    body = recorded(capture, "08")[0]
    message = read(body)
    assert message.raw == body
    assert without_raw(message) == {
        "instance_name": "shop",
        "message_id": "3A1111111111111111AA",
        "chat_key": "5511999990001@s.whatsapp.net",
        "reply_to": "5511999990001@s.whatsapp.net",
        "sender_phone": "5511999990001",
        "sender_name": "Maria",
        "text": "quanto custa?",
        "message_type": "text",
        "has_media": False,
        "has_quoted_message": False,
        "is_group": False,
        "sent_at_s": 1795342685,
    }


def test_recorded_message_from_a_lid_joins_the_phone_conversation_and_is_answered_at_the_lid(capture):
    assert without_raw(read(recorded(capture, "08")[1])) == {
        "instance_name": "shop",
        "message_id": "AC222222222222222222222222222222",
        "chat_key": "5511999990001@s.whatsapp.net",
        "reply_to": "98765432101234@lid",
        "sender_phone": "5511999990001",
        "sender_name": "Maria",
        "text": "e o *frete*?",
        "message_type": "text",
        "has_media": False,
        "has_quoted_message": True,
        "is_group": False,
        "sent_at_s": 1795342685,
    }


def test_recorded_group_and_own_messages_are_ignored_by_name(capture):
    bodies = recorded(capture, "08")
    assert read(bodies[2]) == Ignored(reason="group", event="messages.upsert")
    assert read(bodies[3]) == Ignored(reason="own_message", event="messages.upsert")


def test_recorded_group_message_is_read_when_groups_are_answered(capture):
    assert without_raw(read(recorded(capture, "08")[2], answers_groups=True)) == {
        "instance_name": "shop",
        "message_id": "3A3333333333333333CC",
        "chat_key": "120363000000000001@g.us",
        "reply_to": "120363000000000001@g.us",
        "sender_phone": "5511999990001",
        "sender_name": "Maria",
        "text": "oi grupo",
        "message_type": "text",
        "has_media": False,
        "has_quoted_message": False,
        "is_group": True,
        "sent_at_s": 1795342685,
    }


def test_recorded_message_of_evolutions_own_channel_has_bare_digits_for_an_address(capture):
    message, contacts, chats = (read(body) for body in recorded(capture, "02"))
    assert without_raw(message) == {
        "instance_name": "shop",
        "message_id": "EVOUSER0001",
        "chat_key": "5511999990001@s.whatsapp.net",
        "reply_to": "5511999990001",
        "sender_phone": "5511999990001",
        "sender_name": "Maria",
        "text": "olá, tudo bem?",
        "message_type": "text",
        "has_media": False,
        "has_quoted_message": False,
        "is_group": False,
        "sent_at_s": 1795342680,
    }
    assert contacts == Ignored(reason="not_a_message", event="contacts.upsert")
    assert chats == Ignored(reason="not_a_message", event="chats.upsert")


@pytest.mark.parametrize(
    ("number", "field", "events"),
    [
        ("10", "presence_webhooks", {"presence.update"}),
        ("10", "connection_webhooks", {"connection.update"}),
        ("14", "webhooks", {"send.message.update"}),
    ],
)
def test_every_other_recorded_event_is_named_and_not_answered(capture, number, field, events):
    bodies = [webhook["body"] for webhook in capture(number)[field]]
    assert {event_of(body) for body in bodies} == events
    assert {read(body).reason for body in bodies} == {"not_a_message"}
    parsed = [parse_event(body, instance_name="shop") for body in bodies]
    assert {item for event in parsed for item in event.items} == {
        Ignored(reason="not_a_message", event=event) for event in events
    }


@pytest.mark.parametrize("event", ["MESSAGES_UPSERT", "messages-upsert", "messages.upsert"])
def test_the_events_name_may_be_spelled_in_any_of_evolutions_ways(event):
    body = upsert() | {"event": event}
    assert event_of(body) == "messages.upsert"
    assert isinstance(read(body), InboundMessage)


def test_data_may_be_a_list_with_the_message_in_it():
    body = upsert()
    assert read(body | {"data": [body["data"]]}).text == "oi"


@pytest.mark.parametrize(
    ("key", "chat_key", "reply_to", "sender_phone"),
    [
        (
            {"remoteJid": "987@lid", "senderPn": "5511988887777@s.whatsapp.net"},
            "5511988887777@s.whatsapp.net",
            "987@lid",
            "5511988887777",
        ),
        ({"remoteJid": "987@lid"}, "987@lid", "987@lid", "987"),
        (
            {"remoteJid": "5511988887777:12@s.whatsapp.net"},
            "5511988887777@s.whatsapp.net",
            "5511988887777@s.whatsapp.net",
            "5511988887777",
        ),
        ({"remoteJid": "987:3@lid"}, "987@lid", "987@lid", "987"),
        (
            {"remoteJid": "14155550100@s.whatsapp.net"},
            "14155550100@s.whatsapp.net",
            "14155550100@s.whatsapp.net",
            "14155550100",
        ),
        ({"remoteJid": "11987654321@c.us"}, "11987654321@s.whatsapp.net", "11987654321@c.us", "11987654321"),
    ],
)
def test_addresses(key, chat_key, reply_to, sender_phone):
    """A short or foreign number gets no country code, and a device number is no part of the phone number."""
    message = read(upsert(key=key))
    assert (message.chat_key, message.reply_to, message.sender_phone) == (chat_key, reply_to, sender_phone)


def test_a_group_message_that_names_no_participant_has_no_sender():
    message = read(upsert(key={"remoteJid": "1203@g.us"}), answers_groups=True)
    assert (message.chat_key, message.sender_phone) == ("1203@g.us", "")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ({"fromMe": True}, "own_message"),
        ({"remoteJid": "status@broadcast"}, "status_broadcast"),
        ({"remoteJid": "1234@broadcast"}, "broadcast"),
        ({"remoteJid": "1234@newsletter"}, "newsletter"),
        ({"remoteJid": "1234@g.us"}, "group"),
        ({"id": ""}, "missing_id"),
        ({"id": None}, "missing_id"),
    ],
)
def test_what_is_not_answered_says_why(key, reason):
    assert read(upsert(key=key)) == Ignored(reason=reason, event="messages.upsert")


def test_status_posts_are_ignored_even_when_groups_are_answered():
    assert read(upsert(key={"remoteJid": "status@broadcast"}), answers_groups=True).reason == "status_broadcast"


CAPTION = {"caption": "veja isto"}


@pytest.mark.parametrize(
    ("message", "text", "message_type", "has_media"),
    [
        ({"conversation": "oi"}, "oi", "text", False),
        ({"conversation": "oi", "senderKeyDistributionMessage": {"groupId": "g"}}, "oi", "text", False),
        ({"extendedTextMessage": {"text": "veja https://a.b"}}, "veja https://a.b", "text", False),
        ({"imageMessage": CAPTION}, "veja isto", "image", True),
        ({"videoMessage": CAPTION}, "veja isto", "video", True),
        ({"documentMessage": CAPTION}, "veja isto", "document", True),
        (
            {"documentWithCaptionMessage": {"message": {"documentMessage": CAPTION}}},
            "veja isto",
            "document",
            True,
        ),
        ({"ephemeralMessage": {"message": {"extendedTextMessage": {"text": "some"}}}}, "some", "text", False),
        (
            {"ephemeralMessage": {"message": {"viewOnceMessageV2": {"message": {"imageMessage": CAPTION}}}}},
            "veja isto",
            "image",
            True,
        ),
        ({"viewOnceMessage": {"message": {"videoMessage": CAPTION}}}, "veja isto", "video", True),
        ({"conversation": "my social media documents"}, "my social media documents", "text", False),
    ],
)
def test_text_is_found_wherever_a_message_carries_it(message, text, message_type, has_media):
    """Media is told by structure: a text that speaks of media has none."""
    read_message = read(upsert(message))
    assert (read_message.text, read_message.message_type, read_message.has_media) == (text, message_type, has_media)


@pytest.mark.parametrize(
    ("message", "message_type", "has_media"),
    [
        ({"audioMessage": {"seconds": 3}}, "audio", True),
        ({"imageMessage": {"mimetype": "image/jpeg"}}, "image", True),
        ({"imageMessage": {"caption": "  "}}, "image", True),
        ({"ptvMessage": {}}, "video", True),
        ({"documentMessage": {"fileName": "a.pdf"}}, "document", True),
        ({"stickerMessage": {}}, "sticker", True),
        ({"locationMessage": {"degreesLatitude": -23.5}}, "location", False),
        ({"contactMessage": {"displayName": "Ana"}}, "contact", False),
        ({"contactsArrayMessage": {}}, "contact", False),
        ({"pollCreationMessageV3": {"name": "?"}}, "unknown", False),
    ],
)
def test_a_person_who_sent_no_text_is_ignored_with_the_message_kept(message, message_type, has_media):
    ignored = read(upsert(message))
    assert (ignored.reason, ignored.event) == ("unsupported_type", "messages.upsert")
    assert (ignored.message.message_type, ignored.message.has_media, ignored.message.text.strip()) == (
        message_type,
        has_media,
        "",
    )
    assert ignored.message.sender_phone == "5511999990001"


@pytest.mark.parametrize(
    "message",
    [
        {"reactionMessage": {"text": "👍", "key": {"id": "X"}}},
        {"protocolMessage": {"type": "REVOKE"}},
        {"pollUpdateMessage": {}, "messageContextInfo": {}},
        {"editedMessage": {"message": {}}},
        {},
        None,
    ],
)
def test_reactions_and_whatsapps_own_traffic_are_ignored_without_a_message(message):
    body = upsert({})
    body["data"]["message"] = message
    assert read(body) == Ignored(reason="unsupported_type", event="messages.upsert")


@pytest.mark.parametrize("message", [{"conversation": " \n"}, {"extendedTextMessage": {"text": ""}}])
def test_blank_text_is_ignored_as_such(message):
    assert read(upsert(message)) == Ignored(reason="empty_text", event="messages.upsert")


@pytest.mark.parametrize(
    ("message", "data"),
    [
        ({"conversation": "x"}, {"contextInfo": {"quotedMessage": {"conversation": "y"}}}),
        ({"extendedTextMessage": {"text": "x", "contextInfo": {"quotedMessage": {}}}}, {}),
        ({"imageMessage": {"caption": "x", "contextInfo": {"quotedMessage": {}}}}, {}),
    ],
)
def test_a_quote_is_seen_wherever_the_context_stands(message, data):
    assert read(upsert(message, **data)).has_quoted_message is True


@pytest.mark.parametrize(
    ("stamp", "sent_at_s"),
    [
        (1795342685, 1795342685),
        ("1795342685", 1795342685),
        ({"low": 1795342685, "high": 0, "unsigned": True}, 1795342685),
        (1795342685.9, 1795342685),
        (None, None),
        ("soon", None),
        (True, None),
        (0, None),
        ("9" * 5_000, None),
        (10**400, None),
    ],
)
def test_whatsapps_stamp_is_read_in_all_its_forms_and_unknown_is_none(stamp, sent_at_s):
    assert read(upsert(messageTimestamp=stamp)).sent_at_s == sent_at_s


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_sender_without_a_name_has_none(name):
    assert read(upsert(pushName=name)).sender_name is None


def test_the_bodys_server_and_key_change_nothing():
    forged = upsert() | {"server_url": "http://evil.invalid", "apikey": "stolen", "instance": "other"}
    assert without_raw(read(forged)) == without_raw(read(upsert()))


def test_reading_leaves_the_body_as_it_was(capture):
    body = recorded(capture, "08")[1]
    before = copy.deepcopy(body)
    read(body)
    assert body == before


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "messages.upsert",
        {},
        {"event": 7},
        {"event": ""},
        {"event": "messages.upsert"},
        {"event": "messages.upsert", "data": None},
        {"event": "messages.upsert", "data": []},
        {"event": "messages.upsert", "data": ["x"]},
        {"event": "messages.upsert", "data": {}},
        {"event": "messages.upsert", "data": {"key": "x"}},
        {"event": "messages.upsert", "data": {"key": {"id": "1"}}},
        {"event": "messages.upsert", "data": {"key": {"id": "1", "remoteJid": "@lid"}}},
    ],
)
def test_a_body_that_is_not_evolutions_envelope_is_malformed(body):
    with pytest.raises(WebhookMalformed) as raised:
        read(body)
    assert raised.value.status_code == 400


def heard(body, **options):
    return parse_event(body, instance_name="shop", **options)


def test_a_recorded_message_event_tells_its_message_and_both_its_times(capture):
    body = recorded(capture, "08")[0]
    assert heard(body) == WebhookEvent(
        event="messages.upsert",
        items=(read(body),),
        claimed_wall_ns=1795342685_651000000,
        stamped_s=1795342685,
    )


def test_each_message_of_a_list_is_told_by_itself():
    one, other = upsert(key={"id": "1"})["data"], upsert(key={"id": "2", "fromMe": True}, messageTimestamp=1795342699)
    event = heard(upsert() | {"data": [one, other["data"], "no message"]})
    first, second, third = event.items
    assert (first.message_id, first.raw["data"]) == ("1", one)
    assert second == Ignored(reason="own_message", event="messages.upsert")
    assert third == Ignored(reason="unreadable_message", event="messages.upsert")
    assert event.stamped_s == 1795342699


@pytest.mark.parametrize(("number", "field"), [("03", "webhooks"), ("06", "webhooks")])
def test_a_recorded_send_is_told_with_the_text_and_the_key_of_its_answer(capture, number, field):
    """It is emitted before the HTTP answer returns, so it settles a send whose answer was lost."""
    recording = capture(number)
    (webhook,) = recording[field]
    answer = recording["exchange"]["response"]
    assert heard(webhook["body"]).items == (
        SentEcho(
            instance_name="shop",
            key_id=answer["key"]["id"],
            recipient=answer["key"]["remoteJid"],
            text=recording["exchange"]["request"]["body"]["text"],
        ),
    )


def test_a_send_that_comes_by_both_webhooks_says_the_same_twice(capture):
    events = [heard(webhook["body"]) for webhook in capture("18")["webhooks_in_arrival_order"]]
    echo = SentEcho(
        instance_name="shop",
        key_id="3EB0BF7CA49767CDACC1FE",
        recipient="5511999990001@s.whatsapp.net",
        text="oi",
    )
    receipt = Receipt(
        instance_name="shop",
        key_id="3EB0BF7CA49767CDACC1FE",
        status="delivered",
        claimed_wall_ns=1795343020_881000000,
    )
    assert [event.items for event in events] == [(echo,), (echo,), (receipt,), (receipt,)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "unreadable_message"),
        ([], "unreadable_message"),
        ({"key": "x"}, "unreadable_message"),
        ({"key": {}}, "missing_id"),
        ({"key": {"id": "A", "remoteJid": "5511@s.whatsapp.net"}, "message": {"audioMessage": {}}}, "unsupported_type"),
        ({"key": {"id": "A"}, "message": {"conversation": "oi"}}, "unsupported_type"),
    ],
)
def test_a_send_that_could_not_be_recognised_is_ignored(data, reason):
    event = {"event": "send.message", "data": data}
    assert heard(event).items == (Ignored(reason=reason, event="send.message"),)


def test_an_event_without_a_time_claims_none():
    assert (heard(upsert()).claimed_wall_ns, heard({"event": "call"}).stamped_s) == (None, None)


@pytest.mark.parametrize("body", [None, {}, {"event": "messages.upsert", "data": {"key": "x"}}])
def test_a_malformed_body_is_refused_as_a_whole(body):
    with pytest.raises(WebhookMalformed):
        heard(body)
