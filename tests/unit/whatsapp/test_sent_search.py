"""Which of the messages Evolution keeps is ours, on the recorded page and on the cases that must not be told apart wrongly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.channels.whatsapp.sent_search import (
    KeptMessage,
    KeptPage,
    Wanted,
    judge_kept,
    match_chats,
    reaches_back,
    read_kept_page,
)
from omni.model import SentSearch

MARIA = "5511999990001@s.whatsapp.net"
MARIA_LID = "98765432101234@lid"
STARTED_S = 1_795_343_020.0

FOUND = SentSearch(verdict="found", key_id="K")
ABSENT = SentSearch(verdict="absent")
UNKNOWN = SentSearch(verdict="unknown")


def kept(key_id="K", *, text="oi", to=MARIA, age_s=0.0):
    """A row that is ``age_s`` older than the attempt."""
    return KeptMessage(key_id=key_id, addresses=(to,), text=text, sent_at_s=STARTED_S - age_s)


def judge(*messages, recipient=MARIA, known=()):
    wanted = Wanted(recipient=recipient, text="oi", started_s=STARTED_S, known_key_ids=known)
    return judge_kept(messages, wanted)


def test_the_recorded_page_is_read(capture):
    exchange = capture("18")["findMessages"]
    assert read_kept_page(exchange["status"], json.dumps(exchange["response"]).encode()) == KeptPage(
        messages=[KeptMessage(key_id="3EB0BF7CA49767CDACC1FE", addresses=(MARIA,), text="oi", sent_at_s=STARTED_S)],
        is_last=True,
    )


def page(records, **more):
    found = {"total": len(records), "pages": 1, "currentPage": 1, "records": records} | more
    return read_kept_page(200, json.dumps({"messages": found}).encode())


def row(**changes):
    return {
        "key": {"id": "K", "fromMe": True, "remoteJid": MARIA},
        "message": {"conversation": "oi"},
        "messageTimestamp": 5,
    } | changes


def test_rows_that_are_not_ours_or_have_no_time_or_no_key_are_passed_over():
    theirs = row(key={"id": "T", "fromMe": False, "remoteJid": MARIA})
    assert page([theirs, row(messageTimestamp=None), row(key=None), row(key={"fromMe": True}), 7, row()]) == KeptPage(
        messages=[KeptMessage(key_id="K", addresses=(MARIA,), text="oi", sent_at_s=5.0)], is_last=True
    )


def test_both_addresses_and_both_forms_of_text_are_read():
    both = row(
        key={"id": "K", "fromMe": True, "remoteJid": MARIA_LID, "remoteJidAlt": MARIA},
        message={"extendedTextMessage": {"text": "oi"}},
        messageTimestamp="5",
    )
    assert page([both], pages=3).messages == [
        KeptMessage(key_id="K", addresses=(MARIA_LID, MARIA), text="oi", sent_at_s=5.0)
    ]
    assert not page([both], pages=3).is_last


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"{}"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"messages":[]}'),
        (200, b'{"messages":{"records":[]}}'),
        (200, b'{"messages":{"records":{},"pages":1,"currentPage":1}}'),
    ],
)
def test_an_answer_that_is_no_page_tells_nothing(status, body):
    assert read_kept_page(status, body) is None


@given(st.integers(100, 599), st.binary(max_size=60))
def test_no_answer_breaks_the_reader(status, body):
    read_kept_page(status, body)


def test_our_text_in_our_chat_behind_the_attempt_is_it():
    assert judge(kept(age_s=-2)) == FOUND
    assert judge(kept(age_s=3)) == FOUND


def test_the_oldest_of_several_is_taken():
    assert judge(kept("LATE", age_s=-9), kept("K", age_s=-1), kept("LATER", age_s=-11)) == FOUND


def test_a_message_with_a_known_key_is_no_match_and_shows_that_messages_are_kept():
    assert judge(kept("ours"), known={"ours"}) == ABSENT


@pytest.mark.parametrize("other", [kept(text="outra"), kept(to="5511999990002"), kept(text=None)])
def test_another_message_of_the_last_hour_shows_that_messages_are_kept(other):
    assert judge(other) == ABSENT


def test_without_any_message_nobody_knows_whether_messages_are_kept():
    assert judge() == UNKNOWN


def test_an_old_message_shows_nothing_unless_it_is_known():
    """Saving may have been switched off since."""
    assert judge(kept("old", text="x", age_s=3_601)) == UNKNOWN
    assert judge(kept("old", text="x", age_s=3_601), known={"old"}) == ABSENT


@pytest.mark.parametrize("age_s", [3.5, 60, 120])
def test_an_equal_text_from_shortly_before_leaves_it_open(age_s):
    """It may be an earlier message of ours that nobody remembers, or a clock may be wrong."""
    assert judge(kept(age_s=age_s)) == UNKNOWN


def test_an_equal_text_from_long_before_is_another_message():
    assert judge(kept(age_s=121)) == ABSENT


def test_an_equal_text_under_an_address_that_may_be_the_chats_leaves_it_open():
    assert judge(kept(to=MARIA_LID)) == UNKNOWN
    assert judge(kept(to=MARIA), recipient=MARIA_LID) == UNKNOWN


def test_a_certain_match_beats_a_doubtful_one():
    assert judge(kept("other", to=MARIA_LID), kept("K")) == FOUND


def test_rows_reach_back_when_one_is_older_than_all_that_matters():
    assert not reaches_back([kept(age_s=120)], STARTED_S)
    assert reaches_back([kept(), kept(age_s=121)], STARTED_S)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (MARIA, "5511999990001", "same"),
        (MARIA, "5511999990001:12@s.whatsapp.net", "same"),
        (MARIA, "551199990001@s.whatsapp.net", "same"),  # Brazil without the ninth digit
        ("5215512345678", "525512345678", "same"),  # Mexico without the mobile digit
        ("5491112345678", "541112345678", "same"),  # Argentina likewise
        (MARIA, "5511999990002@s.whatsapp.net", "other"),
        (MARIA, "5521999990001@s.whatsapp.net", "other"),
        (MARIA, "4411999990001@s.whatsapp.net", "other"),
        ("12345678", "123456789", "other"),
        (MARIA, MARIA_LID, "possible"),
        (MARIA_LID, MARIA_LID, "same"),
        (MARIA_LID, "11111111111111@lid", "other"),
        ("1203@g.us", "1203@g.us", "same"),
        ("1203@g.us", "1204@g.us", "other"),
        ("1203@g.us", MARIA, "other"),
        ("", MARIA, "possible"),
    ],
)
def test_addresses_of_one_chat(one, other, expected):
    assert (match_chats(one, other), match_chats(other, one)) == (expected, expected)
