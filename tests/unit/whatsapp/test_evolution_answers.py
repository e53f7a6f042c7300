"""What Evolution's answers to a send mean: on every recorded one, then on the forms the recordings do not show."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.channels.whatsapp.addresses import recipient_number
from omni.channels.whatsapp.evolution_answers import read_send_answer
from omni.model import SendResult


def read(exchange):
    return read_send_answer(exchange["status"], json.dumps(exchange["response"]).encode())


def said(message, status=400):
    return read_send_answer(status, json.dumps({"status": status, "response": {"message": message}}).encode())


def refused(status, kind, error):
    return SendResult(is_accepted=False, status_code=status, error_kind=kind, error=error)


NO_SOCKET = "Evolution has no connection to WhatsApp"
WRONG_SHAPE = "Evolution does not take a request of this shape"


def test_recorded_acceptances_carry_their_key_id(capture):
    assert [read(capture("06")[name]) for name in ("exchange", "with_quote", "to_lid")] == [
        SendResult(is_accepted=True, status_code=201, key_id="3EB062FC76156D8A8A2791"),
        SendResult(is_accepted=True, status_code=201, key_id="3EB0B0017C814ACE729F42"),
        SendResult(is_accepted=True, status_code=201, key_id="3EB035DAF2BEA76C7627C8"),
    ]
    assert read(capture("03")["exchange"]) == SendResult(
        is_accepted=True, status_code=201, key_id="71c456d8-cdf0-4c4f-b8f9-11ff984dd591"
    )


UNKNOWN_PLACE = "Evolution does not know the instance or the route"
REFUSED_KEY = "Evolution refused the key"
NO_METHOD = "the channel has no such method"

RECORDED = {
    ("04", "no_apikey"): refused(404, "unknown_instance", UNKNOWN_PLACE),
    ("04", "unknown_instance"): refused(404, "unknown_instance", UNKNOWN_PLACE),
    ("04", "unknown_route"): refused(404, "unknown_instance", UNKNOWN_PLACE),
    ("04", "bad_apikey"): refused(401, "unauthorized", REFUSED_KEY),
    ("04", "no_apikey_existing"): refused(401, "unauthorized", REFUSED_KEY),
    ("04", "create_again"): refused(403, "unauthorized", REFUSED_KEY),
    ("04", "send_v1_shape"): refused(400, "rejected", WRONG_SHAPE),
    ("04", "send_missing_number"): refused(400, "rejected", WRONG_SHAPE),
    ("04", "presence"): refused(400, "rejected", NO_METHOD),
    ("04", "mark"): refused(400, "rejected", NO_METHOD),
    ("04", "inbound_unknown"): refused(200, "ambiguous", "answer 200 does not say whether the message was sent"),
    ("07", "send_unconnected"): refused(500, "transient", NO_SOCKET),
    ("07", "presence_unconnected"): refused(400, "transient", NO_SOCKET),
    ("07", "mark_unconnected"): refused(500, "transient", NO_SOCKET),
    ("07", "send_no_such"): refused(400, "not_on_whatsapp", "the number is not on WhatsApp"),
    ("07", "send_empty"): refused(400, "rejected", "Evolution was given no text"),
    ("07", "send_fail"): refused(400, "transient", NO_SOCKET),
    ("07", "presence_nodelay"): refused(400, "rejected", WRONG_SHAPE),
    ("07", "presence_v1"): refused(400, "rejected", WRONG_SHAPE),
    ("07", "mark_v1"): refused(400, "rejected", WRONG_SHAPE),
}


def test_every_recorded_refusal_is_understood(capture):
    exchanges = {(number, name): body for number in ("04", "07") for name, body in capture(number).items()}
    del exchanges["04", "_meta"], exchanges["07", "_meta"]
    assert {place: read(exchange) for place, exchange in exchanges.items()} == RECORDED


@pytest.mark.parametrize(
    "words",
    [
        "PrismaClientKnownRequestError: Timed out fetching a new connection from the connection pool",
        "PrismaClientInitializationError: Can't reach database server",
        "Error: Invalid `this.prismaRepository.message.create()` invocation",
    ],
)
def test_a_database_that_failed_behind_the_send_leaves_it_open_and_unsearchable(words):
    """The message went out before Evolution tried to keep it: "timed out" in these words asks for no second attempt."""
    assert said([words]) == SendResult(
        is_accepted=False,
        status_code=400,
        error_kind="ambiguous",
        error="Evolution's database failed around the send",
        is_searchable=False,
    )


@pytest.mark.parametrize(
    "words", ["Error: Connection Closed", "Timed Out", "Error: Stream Errored (conflict)", "rate-overlimit"]
)
def test_a_400_about_the_socket_is_worth_another_attempt(words):
    """The status says "bad request"; only the words say that nothing was wrong with it."""
    assert [said(form).error_kind for form in (words, [words], [[words]])] == ["transient"] * 3


@pytest.mark.parametrize(
    "message",
    [
        [{"jid": "1@s.whatsapp.net", "exists": False, "number": "1"}],
        [[{"exists": False}]],
        {"exists": False},
    ],
)
def test_a_number_that_does_not_exist_is_seen_in_any_nesting(message):
    assert said(message).error_kind == "not_on_whatsapp"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, "rejected"),
        (400, "rejected"),
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "unknown_instance"),
        (408, "transient"),
        (413, "rejected"),
        (422, "rejected"),
        (429, "transient"),
        (500, "transient"),
        (502, "ambiguous"),
        (503, "transient"),
        (504, "ambiguous"),
        (200, "ambiguous"),
    ],
)
def test_a_proxys_page_is_judged_by_its_status(status, kind):
    result = read_send_answer(status, b"<html>")
    assert (result.is_accepted, result.error_kind) == (False, kind)


@pytest.mark.parametrize(
    ("status", "header", "expected_s"),
    [
        (503, "7", 7.0),
        (429, " 120 ", 120.0),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", None),
        (503, None, None),
        (400, "7", None),
    ],
)
def test_retry_after_in_seconds_is_kept_for_passing_failures(status, header, expected_s):
    assert read_send_answer(status, b"", retry_after=header).retry_after_s == expected_s


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"key":{}}', b'{"key":{"id":7}}', b'{"key":"x"}'])
def test_a_201_without_an_id_is_accepted_and_its_id_unknown(body):
    assert read_send_answer(201, body) == SendResult(is_accepted=True, status_code=201)


@given(st.integers(100, 599), st.binary(max_size=60))
def test_no_answer_breaks_the_reader(status, body):
    result = read_send_answer(status, body)
    assert result.is_accepted == (result.error_kind is None)


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "key", "id"]), inner),
    max_leaves=8,
)


@given(st.sampled_from([201, 400, 500]), JSON)
def test_no_json_breaks_the_reader(status, answer):
    result = read_send_answer(status, json.dumps({"response": answer, "key": answer}).encode())
    assert result.status_code == status


def test_no_sentence_repeats_what_was_sent():
    """A sentence ends up in logs; the number and the text must not."""
    result = said(["Error: could not send 'segredo' to 5511999990001"])
    assert result.error == "Evolution refused the message (400)"


@pytest.mark.parametrize(
    ("recipient", "number"),
    [
        ("5511999990001@s.whatsapp.net", "5511999990001"),
        ("5511999990001", "5511999990001"),
        ("98765432101234@lid", "98765432101234@lid"),
        ("120363000000000001@g.us", "120363000000000001@g.us"),
        ("5511999990001-1600000000@g.us", "5511999990001-1600000000@g.us"),
    ],
)
def test_only_a_phone_address_is_cut_down_to_its_digits(recipient, number):
    assert recipient_number(recipient) == number
