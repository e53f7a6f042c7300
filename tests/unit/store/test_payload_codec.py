"""Payloads are packed exactly as the predecessor packed them, and nothing a payload holds can stop a trace from being written."""

import base64
import datetime as dt
import decimal
import enum
import json
import uuid
import zlib
from collections import OrderedDict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omni.store.payload_codec import DecodedPayload, EncodedPayload, decode_payload, encode_payload

# Text a UTF-8 database can hold: everything but halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=30,
)
# What JSON has no form for, and what Python's own encoder would change without a word.
odd_values = st.recursive(
    json_values
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.uuids()
    | st.decimals()
    | st.complex_numbers()
    | st.frozensets(st.integers())
    | st.builds(object),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary() | st.none() | st.tuples(st.integers()), inner)
    ),
    max_leaves=20,
)


class Colour(enum.Enum):
    RED = "red"


def predecessor_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def stored_json(encoded: EncodedPayload) -> str:
    return zlib.decompress(base64.b64decode(encoded.text)).decode()


@given(json_values)
@example({"offsets_ms": [1e16, 1e-7, 1.5e300, 5e-324, 0.1, -0.0], "hash": "0e0,", "n": 2**80})
@example({"text": '\x00\x1b\x7f\u2028"\\/\n\t', "emoji": "🐛 coração"})
@example("1e5")
@example(1e22)
@example(1e-05)
def test_every_json_value_comes_back_equal_and_has_the_bytes_python_writes(value):
    encoded = encode_payload(value)
    expected = predecessor_json(value)
    packed = zlib.compress(expected.encode())
    assert encoded == EncodedPayload(
        text=base64.b64encode(packed).decode(), size_original=len(expected), size_compressed=len(packed)
    )
    assert decode_payload(encoded.text) == DecodedPayload(payload=value)


@given(odd_values)
def test_anything_at_all_can_be_packed_and_read_back_as_json(value):
    encoded = encode_payload(value)
    decoded = decode_payload(encoded.text)
    assert decoded.problem is None
    assert predecessor_json(decoded.payload) == stored_json(encoded)


@pytest.mark.parametrize(
    ("value", "stored", "problem"),
    [
        ({"a": object(), "b": 1}, {"a": {"unserializable": "object"}, "b": 1}, "object (1x)"),
        ({"a": [b"x", b"y"]}, {"a": [{"unserializable": "bytes"}, {"unserializable": "bytes"}]}, "bytes (2x)"),
        ({"a": float("nan")}, {"a": {"unserializable": "float"}}, "float nan (1x)"),
        ({"a": float("-inf")}, {"a": {"unserializable": "float"}}, "float -inf (1x)"),
        ({"a": 10**5000}, {"a": {"unserializable": "int"}}, "int too long (1x)"),
        (
            {"a": "fim \ud83d"},
            {"a": {"unserializable": "str", "text": "fim \ufffd"}},
            "str with lone surrogates (1x)",
        ),
        ({"a": dt.datetime(2026, 1, 2)}, {"a": {"unserializable": "datetime"}}, "datetime (1x)"),  # noqa: DTZ001
        ({"a": decimal.Decimal("1.5")}, {"a": {"unserializable": "Decimal"}}, "Decimal (1x)"),
        ({"a": uuid.UUID(int=1)}, {"a": {"unserializable": "UUID"}}, "UUID (1x)"),
        ({"a": {1}}, {"a": {"unserializable": "set"}}, "set (1x)"),
        ({"a": Colour.RED}, {"a": {"unserializable": "Colour"}}, "Colour (1x)"),
        (
            {1: "x", 2: "y", None: "z"},
            {
                "unserializable int key": "x",
                "unserializable int key 2": "y",
                "unserializable NoneType key": "z",
            },
            "int key (2x), NoneType key (1x)",
        ),
    ],
)
def test_what_json_has_no_form_for_is_described_and_the_rest_is_kept(value, stored, problem):
    encoded = encode_payload(value)
    assert decode_payload(encoded.text).payload == stored
    assert encoded.problem == f"not serializable: {problem}"


def test_a_value_that_contains_itself_is_described_where_it_repeats():
    loop: dict[str, object] = {"name": "x"}
    loop["again"] = [loop]
    encoded = encode_payload(loop)
    assert decode_payload(encoded.text).payload == {"name": "x", "again": [{"unserializable": "dict"}]}
    assert encoded.problem == "not serializable: dict that contains itself (1x)"


def test_the_same_object_in_two_places_is_no_cycle():
    shared = [b"x"]
    assert decode_payload(encode_payload({"a": shared, "b": shared}).text).payload == {
        "a": [{"unserializable": "bytes"}],
        "b": [{"unserializable": "bytes"}],
    }


def test_nesting_too_deep_for_readers_is_described():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    encoded = encode_payload({"deep": deep})
    assert encoded.problem == "not serializable: list nested deeper than 200 (1x)"
    assert decode_payload(encoded.text).problem is None


def test_tuples_and_ordered_dicts_are_ordinary_json():
    encoded = encode_payload(OrderedDict(b=(1, 2), a=3))
    assert (stored_json(encoded), encoded.problem) == ('{"b":[1,2],"a":3}', None)


def test_size_original_counts_characters_and_size_compressed_zlib_bytes():
    encoded = encode_payload({"t": "ção 🐛"})
    assert encoded.size_original == len('{"t":"ção 🐛"}') == 13
    assert encoded.size_compressed == len(zlib.compress('{"t":"ção 🐛"}'.encode()))


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        (None, DecodedPayload(payload=None)),
        ("", DecodedPayload(payload=None, problem="payload unreadable: compressed data damaged or cut short")),
        ("ção", DecodedPayload(payload=None, problem="payload unreadable: not base64")),
        ("abc", DecodedPayload(payload=None, problem="payload unreadable: not base64")),
        (
            encode_payload({"a": 1}).text[:8],
            DecodedPayload(payload=None, problem="payload unreadable: compressed data damaged or cut short"),
        ),
        (
            base64.b64encode(zlib.compress(b"{not json")).decode(),
            DecodedPayload(payload=None, problem="payload unreadable: not JSON"),
        ),
        (
            base64.b64encode(zlib.compress(b"\xff\xfe")).decode(),
            DecodedPayload(payload=None, problem="payload unreadable: not JSON"),
        ),
        (
            base64.b64encode(zlib.compress(b'{"a":NaN,"b":"x"}')).decode(),
            DecodedPayload(payload={"a": {"unserializable": "float"}, "b": "x"}),
        ),
    ],
)
def test_text_that_cannot_be_read_is_no_payload_and_a_reason(text, decoded):
    assert decode_payload(text) == decoded


@given(st.text())
def test_reading_never_raises_whatever_the_column_holds(text):
    assert isinstance(decode_payload(text), DecodedPayload)


@given(json_values, st.data())
def test_reading_a_cut_payload_never_returns_a_part_of_it(value, data):
    whole = encode_payload(value).text
    cut = whole[: data.draw(st.integers(0, len(whole) - 5))]
    assert decode_payload(cut).payload is None
