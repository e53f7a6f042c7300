"""The framer finds the same objects in every framing and at every cut, and never looks at a byte over and over."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omni.agents import frames
from omni.agents.frames import ObjectFramer
from omni.errors import AgentProtocolError

NASTY_TEXTS = [
    "}{",
    '{"event":"RunCompleted"}',
    '"',
    "\\",
    '\\"',
    "fim\\",
    "data: [DONE]\n\n",
    "\r\n",
    "\n}\n{",
    "\u2028\u2029\u0085",
    "👨‍👩‍👧‍👦 é",
    "\x00",
    "}\n\n",
]

texts = st.lists(st.one_of(st.sampled_from(NASTY_TEXTS), st.text(max_size=5)), max_size=4).map("".join)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(texts, values, max_size=4), max_size=4)


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pretty(value):
    return json.dumps(value, indent=2)


RENDERINGS = {
    "bare": (pretty, lambda text: text),
    "bare compact": (compact, lambda text: text),
    "pretty below data": (pretty, lambda text: f"event: RunContent\ndata: {text}\n\n"),
    "event stream": (compact, lambda text: f"event: RunContent\ndata: {text}\n\n"),
    "event stream, CR LF": (compact, lambda text: f"event: RunContent\r\ndata: {text}\r\n\r\n"),
    "event stream without spaces and with pings": (compact, lambda text: f": ping\n\nid:7\ndata:{text}\n\n"),
    "one object a line": (compact, lambda text: f"{text}\n"),
}


def cut(body, sizes):
    """The body in pieces of the given sizes, repeated for as long as it lasts."""
    pieces, position, turn = [], 0, 0
    while position < len(body):
        size = sizes[turn % len(sizes)]
        pieces.append(body[position : position + size])
        position += size
        turn += 1
    return pieces


def feed_all(pieces, **options):
    framer = ObjectFramer(**options)
    found = [frame for piece in pieces for frame in framer.feed(piece)]
    return found, framer


@pytest.mark.parametrize("rendering", RENDERINGS)
@given(wanted=objects, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_framing_gives_the_objects_it_was_made_of_at_any_cut(rendering, wanted, sizes):
    render, wrap = RENDERINGS[rendering]
    body = "".join(wrap(render(value)) for value in wanted).encode("utf-8")
    for pieces in ([body], cut(body, [1]), cut(body, sizes)):
        found, framer = feed_all(pieces)
        assert found == [render(value).encode("utf-8") for value in wanted]
        assert framer.pending_bytes == 0
        assert framer.saw_garbage is False


TOKENS = [b"{", b"}", b'"', b"\\", b"\n", b"\r", b":", b",", b"[", b" ", b"data: ", b"a", b'{"a":"b"}', b'"k":{']


@given(body=st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join), sizes=st.lists(st.integers(1, 9), min_size=1))
@example(body=b'{"a":"b"}a}\n{}', sizes=[1])
@example(body=b'{"a":{}\n"}\n}', sizes=[2])
@settings(max_examples=400, deadline=None)
def test_cuts_change_nothing_in_bytes_that_are_no_json_either(body, sizes):
    """The short way for compact lines and the scanner must agree on everything, or a broken stream would depend on luck."""
    whole, framer = feed_all([body])
    for pieces in (cut(body, [1]), cut(body, sizes)):
        found, other = feed_all(pieces)
        assert found == whole
        assert (other.pending_bytes, other.saw_garbage) == (framer.pending_bytes, framer.saw_garbage)


def frames_and_error(pieces, limit):
    framer = ObjectFramer(max_event_bytes=limit)
    found, error = [], None
    try:
        for piece in pieces:
            found += framer.feed(piece)
        framer.finish()
    except AgentProtocolError as exc:
        error = exc.sentence
    return found, error


@given(body=st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join), sizes=st.lists(st.integers(1, 9), min_size=1))
@example(body=b'{"aaaa\n', sizes=[1])
@example(body=b'{"aaa\\\n', sizes=[1])
@example(body=b'{"aaa"{', sizes=[1])
@settings(max_examples=200, deadline=None)
def test_the_limit_hits_the_same_object_at_any_cut(body, sizes):
    whole = frames_and_error([body], 6)
    assert frames_and_error(cut(body, [1]), 6) == whole
    assert frames_and_error(cut(body, sizes), 6) == whole
    assert all(len(frame) <= 6 for frame in whole[0])


def test_an_object_is_handed_out_at_its_closing_brace():
    """Waiting for the next byte would hold back a chunk for as long as the agent is silent."""
    framer = ObjectFramer()
    body = b'data: {"content":"a}b","n":{"x":1}}'
    assert [framer.feed(body[i : i + 1]) for i in range(len(body))] == [[]] * (len(body) - 1) + [[body[6:]]]


def test_pending_bytes_counts_the_open_object_only():
    framer = ObjectFramer()
    assert framer.pending_bytes == 0
    framer.feed(b'event: X\ndata: {"a')
    assert framer.pending_bytes == 3
    framer.feed(b'":1}\n\nevent: Y\n')
    assert framer.pending_bytes == 0


@pytest.mark.parametrize(
    ("broken", "pieces"),
    [
        ('{"a":"no end\n\n', ['{"a":"no end']),
        ('{"a":"escaped end\\\n\n', ['{"a":"escaped end\\']),
        ('{"a":"}\n\n', ['{"a":"}']),
        ('{"event": broken\n\n', ['{"event": broken\n\ndata: ']),
        ('{"a":{"b":1}\n\n', ['{"a":{"b":1}\n\ndata: ']),
        ('{broken "x" \n\n', ['{broken "x" \n\ndata: ']),
        ("{not json}\n\n", ["{not json}"]),
        ("not json\n\n", []),
    ],
)
def test_a_broken_event_is_handed_out_and_the_next_one_is_found(broken, pieces):
    good = '{"event":"RunContent","n":[{"x":{"y":1}},{}]}'
    found, framer = feed_all([f"data: {broken}data: {good}\n\n".encode()])
    assert found == [piece.encode() for piece in [*pieces, good]]
    assert framer.pending_bytes == 0


def test_a_missing_brace_between_bare_objects_costs_one_object():
    body = b'{\n  "a": {\n    "b": 1\n  }\n{\n  "c": 2\n}'
    assert feed_all([body])[0] == [b'{\n  "a": {\n    "b": 1\n  }\n', b'{\n  "c": 2\n}']


def test_a_brace_behind_a_value_begins_the_next_object_however_wide_the_gap():
    body = b'{"a": 1' + b" " * 20 + b'{"c": 2}'
    assert feed_all([body])[0] == [body[:27], b'{"c": 2}']


@pytest.mark.parametrize("gap", ["", "      ", "\n" + " " * 60, "\r\n\t"])
@pytest.mark.parametrize("before", ['"k":', '"k"{gap}:{gap}', '"k":[', '"k":[1,{gap}', '"k":[{{}},{gap}'])
def test_nested_objects_may_stand_behind_colon_bracket_and_comma(before, gap):
    closing = "]" if "[" in before else ""
    text = "{" + before.format(gap=gap) + gap + '{"x":1}' + closing + "}"
    assert json.loads(text)
    assert feed_all(cut(text.encode(), [3]))[0] == [text.encode()]


@pytest.mark.parametrize(
    ("body", "is_garbage"),
    [
        (b"", False),
        (b"\n\n  \r\n", False),
        (b": ping\n\n: ping\n\n", False),
        (b"\xef\xbb\xbfdata: [DONE]\n\n", False),
        (b"event: RunStarted\nretry: 10\nid: 4\ndata: x", False),
        (b"retry:1", False),
        (b'data: {"a":1}\n\ngarbage behind the first object\n', False),
        (b"<html>\n", True),
        (b"Internal Server Error", True),
        (b"retries: 1\n", True),
        (b"data\n", True),
        (b"ok\n\ndata: {}\n\n", True),
        (b"ok {}\n\n", True),
        (b"\n\n\nno", True),
    ],
)
def test_garbage_is_told_from_silence(body, is_garbage):
    assert feed_all([body])[1].saw_garbage is is_garbage
    assert feed_all(cut(body, [1]))[1].saw_garbage is is_garbage


def test_an_event_at_the_limit_passes_and_one_byte_more_raises():
    event = b'{"a":"' + b"x" * 92 + b'"}'
    assert len(event) == 100
    assert feed_all([event + b"\n"], max_event_bytes=100)[0] == [event]
    assert feed_all(cut(event, [7]), max_event_bytes=100)[0] == [event]
    framer = ObjectFramer(max_event_bytes=99)
    assert framer.feed(b'{"b":1}\n' + event + b"\n{}\n") == [b'{"b":1}']
    with pytest.raises(AgentProtocolError, match="exceeds 99 bytes"):
        framer.feed(b"")


def test_an_event_that_never_ends_raises_when_the_body_does():
    framer = ObjectFramer(max_event_bytes=99)
    assert framer.feed(b'{"a":"' + b"x" * 100) == []
    assert framer.pending_bytes == 0
    with pytest.raises(AgentProtocolError):
        framer.finish()


def test_finish_is_content_with_an_object_cut_short():
    framer = ObjectFramer()
    framer.feed(b'{"a":"')
    framer.finish()
    assert framer.pending_bytes == 6


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize(
    "body",
    [
        b'data: {"content":"' + b"x" * 30_000 + b'"}\n\n',
        b'data: {"content":"' + b"\\u00e7\\ud83c" * 3_000 + b'","b":[{"c":1}]}\n\n',
        b'{"n":[' + b'{"a":{"b":"}"}},' * 2_000 + b"0]}",
        b'{"a":1 ' * 4_000,
        b'{"a":"\n' * 4_000,
    ],
    ids=["long text", "escapes", "nested", "never closed", "open strings"],
)
def test_every_byte_is_scanned_a_bounded_number_of_times(body, size, monkeypatch):
    """Counted, not timed: the bytes each pattern ran over, added up, stay within a small multiple of the body."""
    scanned = 0
    measured = frames._end_of

    def counting(pattern, buffer, position):
        nonlocal scanned
        end = measured(pattern, buffer, position)
        scanned += end - position + 1
        return end

    monkeypatch.setattr(frames, "_end_of", counting)
    feed_all(cut(body, [size]), max_event_bytes=10**6)
    assert scanned <= 4 * len(body)
