"""A message in the ledger is what came in, whatever it held: after a crash it is all there is of it."""

from hypothesis import given
from hypothesis import strategies as st

from omni.model import InboundMessage
from omni.store.ledger_rows import decode_message, encode_message

# Any character at all: NUL and halves of surrogate pairs among them.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def message(**changes):
    fields = {
        "instance_name": "flash",
        "message_id": "3EB0A",
        "chat_key": "5511999990001@s.whatsapp.net",
        "reply_to": "98765432101234@lid",
        "sender_phone": "5511999990001",
        "sender_name": None,
        "text": "Olá",
        "message_type": "text",
    }
    return InboundMessage(**fields | changes)


@given(texts, texts, st.dictionaries(texts, values, max_size=4))
def test_any_message_comes_back_as_it_was(text, name, raw):
    record = message(text=text, sender_name=name, raw=raw)
    packed = encode_message(record)
    packed.encode()
    assert "\0" not in packed
    assert decode_message(packed) == record


def test_what_json_has_no_form_for_costs_the_envelope_not_the_message():
    assert decode_message(encode_message(message(raw={"a": object()}))) == message()
    assert decode_message(encode_message(message(text="\ud83d", raw={"a": {1}}))) == message(text="\ud83d")


def test_an_envelope_that_contains_itself_costs_only_itself():
    raw = {}
    raw["again"] = raw
    assert decode_message(encode_message(message(raw=raw))) == message()


def test_text_that_is_no_message_is_none():
    assert [decode_message(text) for text in ("", "{", "[]", "null", '{"text": 1}', "\ud83d")] == [None] * 6
