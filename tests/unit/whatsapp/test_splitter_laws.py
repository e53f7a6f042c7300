"""The laws of splitting, on generated Markdown with everything a message must not be cut in.

Each law is about the answer as a whole: nothing lost, nothing blank, nothing too long, nothing broken, and the same pieces however the
answer is divided into chunks.
"""

import re

import regex
from hypothesis import example, given
from hypothesis import strategies as st

from omni.channels.whatsapp.splitter import ParagraphSplitter

WORDS = ["oi", "casa", "coração", "não.", "Sim!", "e", "1.", "漢字", "終わり。", "नमस्ते", "*forte*", "`x`"]
VISIBLE = ["👨‍👩‍👧‍👦", "🇧🇷", "🇧🇷🇵🇹", "👍🏽", "e\u0301", "o\u0323\u0302", "❤️‍🔥"]
LINKS = ["https://a.b/c?d=e", "[um dois](http://x.y)", "www.a.com/b"]
SPACES = [" ", "  ", "\n", "\n- ", "\n\n", "\n \n", "\n\n\n"]

words = st.sampled_from(WORDS + VISIBLE + LINKS)
lines = st.lists(words, min_size=1, max_size=8).map(" ".join)
paragraphs = st.lists(lines, min_size=1, max_size=4).map("\n".join)
code_lines = st.sampled_from(["x = 1", "    y", "", "", "print(`a`)", "- z", "# coração"])


@st.composite
def code_blocks(draw):
    marker = draw(st.sampled_from(["```", "~~~"]))
    body = draw(st.lists(code_lines, min_size=1, max_size=12))
    return "\n".join([marker + draw(st.sampled_from(["", "py"])), "v = 0", *body, marker])


markdown = st.lists(paragraphs | code_blocks(), min_size=1, max_size=6).flatmap(
    lambda blocks: st.sampled_from(["\n\n", "\n\n\n", "\n", "\n \n"]).map(lambda between: between.join(blocks))
)
# Text that is not Markdown at all, from the pieces that are most likely to confuse.
scraps = st.lists(
    st.sampled_from(
        WORDS
        + VISIBLE
        + LINKS
        + SPACES
        + ["```", "~~~", "```\n", "\n```", "[", "](", ")", "\r\n", "\u200b", "\u0301", "    "]
    ),
    max_size=60,
).map("".join)
anything = markdown | scraps | st.text(max_size=80)
caps = st.sampled_from([16, 17, 20, 32, 64, 100, 4096])
cut_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=20)

INVISIBLE = regex.compile(r"[\s\p{Cc}\p{Cf}\p{Z}\p{Default_Ignorable_Code_Point}]*")


def split(text, cap, sizes=(), **options):
    """The pieces of a text fed in chunks of these sizes, over and over; in one chunk when there are none."""
    splitter = ParagraphSplitter(cap, **options)
    pieces, position = [], 0
    while sizes and position < len(text):
        for size in sizes:
            pieces += splitter.feed(text[position : position + size])
            position += size
    return [*pieces, *splitter.feed(text[position:]), *splitter.finish()]


@given(anything, caps, cut_sizes, st.booleans())
@example("```\n" + "x" * 300 + "\n```", 16, [1], True)
@example("[" * 40 + "a](b)" * 9, 16, [3], True)
def test_the_same_pieces_come_from_any_division_into_chunks(text, cap, sizes, splits_paragraphs):
    whole = split(text, cap, splits_paragraphs=splits_paragraphs)
    assert split(text, cap, sizes, splits_paragraphs=splits_paragraphs) == whole


@given(
    st.lists(markdown | st.sampled_from(["palavra " * 900, "x" * 6000, "```\n" + "y = 2\n" * 900]), max_size=3),
    cut_sizes,
)
def test_the_same_pieces_come_from_any_division_of_a_long_answer(parts, sizes):
    text = "\n".join(parts)
    assert split(text, 4096, sizes) == split(text, 4096)


@given(anything, caps)
def test_the_ranges_tile_the_answer_and_leave_out_only_what_shows_nothing(text, cap):
    pieces = split(text, cap)
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces)][: len(pieces)]
    assert INVISIBLE.fullmatch(text[pieces[-1].end if pieces else 0 :])


@given(anything, caps)
def test_no_message_is_blank_and_none_is_longer_than_the_cap(text, cap):
    for piece in split(text, cap):
        assert not INVISIBLE.fullmatch(piece.text)
        assert len(piece.text) <= cap


@given(anything)
def test_a_message_is_its_range_without_the_white_space_around_it(text):
    """Where nothing has to be cut. Invisible characters before a message's first line may stay behind."""
    for piece in split(text, 4096):
        written = text[piece.start : piece.end]
        assert written.rstrip().endswith(piece.text)
        assert INVISIBLE.fullmatch(written.rstrip().removesuffix(piece.text))


@given(anything.filter(lambda text: "`" not in text and "~" not in text and "\u200b" not in text), caps)
def test_no_visible_character_is_lost_or_added(text, cap):
    sent = "".join(piece.text for piece in split(text, cap))
    assert [c for c in sent if not INVISIBLE.fullmatch(c)] == [c for c in text if not INVISIBLE.fullmatch(c)]


@given(code_blocks(), caps)
def test_a_code_block_keeps_every_line_and_each_part_of_it_is_a_whole_block(block, cap):
    marker = block[:3]
    sent = [piece.text.split("\n") for piece in split(block, cap)]
    opener, *body = block.split("\n")[:-1]
    assert [(lines[0], lines[-1]) for lines in sent] == [(opener, marker)] * len(sent)
    joined = "".join(line.replace(" ", "") for lines in sent for line in lines[1:-1])
    assert joined == "".join(line.replace(" ", "") for line in body)


@given(st.lists(code_blocks() | paragraphs, min_size=1, max_size=5), st.sampled_from(["\n", "\n\n"]))
def test_a_code_block_that_fits_is_in_one_message(blocks, between):
    sent = [piece.text for piece in split(between.join(blocks), 200)]
    for block in blocks:
        if block[0] in "`~" and len(block) <= 200 and not re.match(r"`[^`\n]", block):
            assert any(block in text for text in sent)


@given(st.lists(st.sampled_from([*WORDS, *LINKS]), min_size=1, max_size=40), st.sampled_from([32, 40, 64]))
def test_a_link_that_fits_is_in_one_message(parts, cap):
    sent = "\x00".join(piece.text for piece in split(" ".join(parts), cap))
    for link in set(parts) & set(LINKS):
        assert sent.count(link) == parts.count(link)


@given(st.lists(st.sampled_from([*VISIBLE, "x", " "]), min_size=1, max_size=80), st.sampled_from([16, 20, 33]))
def test_no_visible_character_is_cut_in_two(parts, cap):
    text = "".join(parts)
    whole = [cluster for cluster in regex.findall(r"\X", text) if not cluster.isspace()]
    sent = [cluster for piece in split(text, cap) for cluster in regex.findall(r"\X", piece.text)]
    assert [cluster for cluster in sent if not cluster.isspace()] == whole
