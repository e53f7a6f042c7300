"""What WhatsApp's receipts say, on recorded webhooks first and on the variants of other versions and channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.channels.whatsapp.webhook import parse_event
from omni.model import Ignored, Receipt

KEY = "3EB062FC76156D8A8A2791"


def update(**data):
    return {
        "event": "messages.update",
        "data": {"keyId": KEY, "remoteJid": "5511999990001@s.whatsapp.net", "fromMe": True, "status": "READ", **data},
        "date_time": "2026-11-22T10:18:08.753Z",
    }


def items(body):
    return parse_event(body, instance_name="shop").items


def receipt(status="read", *, claimed_wall_ns=1795342688_753000000):
    return Receipt(instance_name="shop", key_id=KEY, status=status, claimed_wall_ns=claimed_wall_ns)


def ignored(reason, event="messages.update"):
    return Ignored(reason=reason, event=event)


def test_recorded_receipts_are_read_in_the_order_they_came(capture):
    recording = capture("09")
    told = [items(webhook["body"]) for webhook in recording["webhooks"]]
    assert told == [
        (receipt("delivered", claimed_wall_ns=1795342688_120000000),),
        (receipt("server_ack", claimed_wall_ns=1795342688_437000000),),
        (receipt("read", claimed_wall_ns=1795342688_753000000),),
        (receipt("read", claimed_wall_ns=1795342689_373000000),),
        (receipt("failed", claimed_wall_ns=1795342689_705000000),),
    ]


def test_a_recorded_receipt_under_the_anonymous_address_is_one_of_the_same_message(capture):
    (webhook,) = capture("09")["lid_update_webhooks"]
    assert items(webhook["body"]) == (receipt("pending", claimed_wall_ns=1795342690_439000000),)


def test_a_recorded_deletion_is_a_receipt_whose_data_is_the_key(capture):
    (webhook,) = capture("09")["delete_webhooks"]
    assert items(webhook["body"]) == (receipt("deleted", claimed_wall_ns=1795342690_861000000),)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("ERROR", "failed"),
        ("PENDING", "pending"),
        ("SERVER_ACK", "server_ack"),
        ("DELIVERY_ACK", "delivered"),
        ("READ", "read"),
        ("PLAYED", "read"),
        ("DELETED", "deleted"),
        ("SENT", "server_ack"),
        ("DELIVERED", "delivered"),
        ("FAILED", "failed"),
        ("Delivered", "delivered"),
        (" read ", "read"),
        (0, "failed"),
        (1, "pending"),
        (2, "server_ack"),
        (3, "delivered"),
        (4, "read"),
        (5, "read"),
        ("4", "read"),
    ],
)
def test_both_vocabularies_are_understood_in_any_case_and_as_numbers(word, status):
    assert items(update(status=word)) == (receipt(status),)


@pytest.mark.parametrize("status", [None, "", "SEEN", 6, -1, 4.0, True, "44", {"status": 4}, ["READ"]])
def test_a_status_nobody_knows_is_said_to_be_unknown(status):
    assert items(update(status=status)) == (ignored("unknown_status"),)


@pytest.mark.parametrize(
    "data",
    [
        {"key": {"id": KEY, "fromMe": True, "remoteJid": "5511@s.whatsapp.net"}, "status": "READ"},
        {"key": {"id": KEY, "fromMe": True}, "update": {"status": 4}},
        {"keyId": KEY, "status": "READ"},
        {"keyId": KEY, "key": {"id": "OTHER"}, "messageId": "cmwroofv6", "status": "READ", "fromMe": True},
    ],
)
def test_the_shapes_of_older_versions_are_read(data):
    assert items(update() | {"data": data}) == (receipt(),)


def test_several_receipts_in_one_webhook_are_told_each():
    body = update() | {"data": [update()["data"], update(status="ERROR", fromMe=False)["data"], None]}
    assert items(body) == (receipt(), ignored("not_our_message"), ignored("unreadable_receipt"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "unreadable_receipt"),
        ([], "unreadable_receipt"),
        ("READ", "unreadable_receipt"),
        ({}, "missing_id"),
        ({"messageId": "cmwroofv60009837dhrsftl5s", "status": "READ"}, "missing_id"),
        ({"keyId": 7, "status": "READ"}, "unreadable_receipt"),
        ({"keyId": "a\0b", "status": "READ"}, "unreadable_receipt"),
        ({"keyId": "\ud800", "status": "READ"}, "unreadable_receipt"),
        ({"keyId": "A" * 256, "status": "READ"}, "unreadable_receipt"),
        ({"keyId": KEY, "fromMe": False, "status": "READ"}, "not_our_message"),
        ({"key": {"id": KEY, "fromMe": False}, "status": "READ"}, "not_our_message"),
    ],
)
def test_what_is_missing_or_not_ours_is_ignored_with_its_reason(data, reason):
    assert items(update() | {"data": data}) == (ignored(reason),)


def test_one_members_receipt_says_nothing_of_a_group_but_a_refusal_does():
    group = {"remoteJid": "120363000000000001@g.us"}
    assert items(update(status="READ", **group)) == (ignored("group_receipt"),)
    assert items(update(status="DELIVERY_ACK", **group)) == (ignored("group_receipt"),)
    assert items(update(status="ERROR", **group)) == (receipt("failed"),)


def test_a_deletion_by_the_user_is_not_ours():
    body = {"event": "messages.delete", "data": {"id": KEY, "fromMe": False}}
    assert items(body) == (ignored("not_our_message", "messages.delete"),)


def test_a_recorded_receipt_after_a_lost_one_still_says_that_it_was_read(capture):
    """Evolution loses receipts that come before its own row is written, for good; the next higher one gets through."""
    recording = capture("19")["receipt_before_row"]
    assert (recording["update_READ_before_row"], recording["same_READ_after_row"]) == ([], [])
    (label,) = recording["next_status_PLAYED_after_row"]
    event, status = label.split(":")
    assert items(update(status=status) | {"event": event}) == (receipt("read"),)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["key", "id", "keyId", "fromMe", "status", "update", "remoteJid", "data"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["messages.update", "messages.delete", "send.message"]), json_values, json_values)
def test_no_data_whatever_makes_reading_raise(event, data, date_time):
    told = parse_event({"event": event, "data": data, "date_time": date_time}, instance_name="shop")
    assert len(told.items) >= 1
