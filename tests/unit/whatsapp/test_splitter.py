"""Where an answer is split, shown on examples; the laws are in test_splitter_laws."""

import pytest

from omni.channels.whatsapp.splitter import ParagraphSplitter, Piece


def pieces_of(text, max_chars=4096, **options):
    splitter = ParagraphSplitter(max_chars, **options)
    return splitter.feed(text) + splitter.finish()


def texts_of(text, max_chars=4096, **options):
    return [piece.text for piece in pieces_of(text, max_chars, **options)]


def released_by_feeds(*texts, max_chars=4096):
    """What each feed released, and finish last."""
    splitter = ParagraphSplitter(max_chars)
    return [*[[piece.text for piece in splitter.feed(text)] for text in texts], [p.text for p in splitter.finish()]]


def test_paragraphs_become_messages_and_their_ranges_tile_the_answer():
    assert pieces_of("Olá!\n\nTudo bem?\nSim.\n\n\n Fim") == [
        Piece("Olá!", 0, 6),
        Piece("Tudo bem?\nSim.", 6, 22),
        Piece(" Fim", 22, 27),
    ]


def test_a_paragraph_is_released_with_the_newline_that_completes_the_blank_line():
    assert released_by_feeds("Olá", "!", "\n", "\n", "Tudo") == [[], [], [], ["Olá!"], [], ["Tudo"]]


def test_a_blank_line_may_hold_spaces():
    assert texts_of("a\n \t\nb\r\n\r\nc") == ["a", "b", "c"]


def test_an_answer_that_shows_nothing_has_no_messages():
    assert pieces_of(" \n\n\n\u200b\n\n \u2060") == []


def test_invisible_characters_join_the_next_message_instead_of_being_one():
    assert pieces_of("\u200b\n\nOi") == [Piece("Oi", 0, 5)]


def test_white_space_behind_the_last_blank_line_belongs_to_no_message():
    """It came after the message was sent, and must not be one."""
    assert pieces_of("a\n\n\n\n") == [Piece("a", 0, 3)]


def test_nothing_fed_is_nothing_released():
    assert pieces_of("") == []


def test_indentation_of_the_first_line_stays():
    assert texts_of("lista:\n\n    - um\n\n- dois") == ["lista:", "    - um", "- dois"]


@pytest.mark.parametrize("marker", ["```", "~~~", "````", "  ```"])
def test_blank_lines_inside_a_code_block_part_nothing(marker):
    block = f"{marker}py\na\n\nb\n{marker}"
    assert texts_of(f"Veja:\n\n{block}\n\nFim") == ["Veja:", block, "Fim"]


def test_code_inside_a_line_opens_no_block():
    assert texts_of("```x = 1```\n\nFim") == ["```x = 1```", "Fim"]


def test_a_marker_of_the_other_kind_or_a_shorter_one_does_not_close_a_block():
    block = "````\n~~~\n\n```\n\n````"
    assert texts_of(f"{block}\n\nFim") == [block, "Fim"]


def test_an_unfinished_code_block_goes_out_when_the_answer_ends():
    assert released_by_feeds("```py\na\n\nb\n\n") == [[], ["```py\na\n\nb"]]


def test_a_long_paragraph_is_cut_at_a_line_before_a_sentence_before_a_word():
    assert texts_of("um dois. tres\nquatro. cinco", 24) == ["um dois. tres", "quatro. cinco"]
    assert texts_of("um dois tres. quatro cinco seis", 24) == ["um dois tres.", "quatro cinco seis"]
    assert texts_of("um dois tres quatro cinco seis", 24) == ["um dois tres quatro", "cinco seis"]


def test_a_cut_leaves_no_tiny_message_for_a_better_place():
    """The line's end comes so early that the sentence's is better."""
    assert texts_of("um\ndois tres quatro. cinco seis sete", 24) == ["um\ndois tres quatro.", "cinco seis sete"]


def test_a_number_or_a_title_with_a_stop_ends_no_sentence():
    assert texts_of("fale com o Dr. Silva hoje cedo", 24) == ["fale com o Dr. Silva", "hoje cedo"]
    assert texts_of("temos ainda 2. Sorvete de uva", 24) == ["temos ainda 2. Sorvete", "de uva"]


def test_chinese_is_cut_at_its_own_stops():
    assert texts_of("今天天气很好我们去公园。明天下雨我们在家里看书", 16) == [
        "今天天气很好我们去公园。",
        "明天下雨我们在家里看书",
    ]


def test_text_without_any_place_is_cut_at_the_cap():
    assert texts_of("a" * 40, 16) == ["a" * 16, "a" * 16, "a" * 8]


@pytest.mark.parametrize("visible", ["👨‍👩‍👧‍👦", "🇧🇷", "e\u0301\u0323", "👍🏽", "नि"])
def test_a_visible_character_is_never_cut_in_two(visible):
    texts = texts_of("x" + visible * 12, 20)
    assert "".join(texts) == "x" + visible * 12
    assert {text.removeprefix("x").replace(visible, "") for text in texts} == {""}


def test_a_visible_character_longer_than_a_message_is_cut_after_all():
    assert [len(text) for text in texts_of("e" + "\u0301" * 39, 16)] == [16, 16, 8]


@pytest.mark.parametrize(
    "link", ["https://exemplo.com/um/dois", "[um dois tres](https://a.b)", "www.exemplo.com.br/ofertas"]
)
def test_a_link_is_moved_whole_to_the_next_message(link):
    assert texts_of(f"veja agora {link} e responda", 32) == ["veja agora", f"{link} e"[:32].rstrip(), "responda"]


def test_a_link_longer_than_a_message_begins_one_and_is_cut_there():
    assert texts_of("veja https://exemplo.com/a/b/c/d", 20) == ["veja", "https://exemplo.com/", "a/b/c/d"]


WORDS = "palavra " * 36


@pytest.mark.parametrize(
    ("rest", "texts"),
    [
        ("](https://a.b) fim\n", [WORDS.rstrip(), "[texto do link](https://a.b) fim"]),
        (" fim\n", [WORDS + "[texto do", "link fim"]),
    ],
)
def test_an_open_bracket_holds_a_cut_back_until_it_is_a_link_or_none(rest, texts):
    held, *released = released_by_feeds(WORDS + "[texto do link", rest, max_chars=300)
    assert held == []
    assert [text for each in released for text in each] == texts


def test_a_code_block_that_fits_is_not_cut_for_the_text_around_it():
    block = "```\n" + "x = 1\n" * 4 + "```"
    assert texts_of(f"Este exemplo:\n{block}\nfim do exemplo", 40) == ["Este exemplo:", block, "fim do exemplo"]


def test_a_code_block_that_does_not_fit_is_closed_and_opened_again():
    text = "```py\na = 1\nb = 2\nc = 3\nd = 4\n```\nfim"
    assert pieces_of(text, 24) == [
        Piece("```py\na = 1\nb = 2\n```", 0, 18),
        Piece("```py\nc = 3\nd = 4\n```", 18, 34),
        Piece("fim", 34, 37),
    ]


def test_a_closing_line_right_behind_a_cut_leaves_no_empty_code_block():
    text = "```\naaaa\nbbbb\n\n\n\n\n\n\n\n\n```\nfim"
    assert texts_of(text, 20) == ["```\naaaa\nbbbb\n```", "fim"]


def test_a_long_paragraph_is_released_while_it_grows():
    first, *others = released_by_feeds("palavra " * 600, "fim")
    assert [len(text) for text in first] == [4095]
    assert [text for texts in others for text in texts] == [("palavra " * 88).rstrip() + " fim"]


def test_paragraphs_stay_together_when_the_instance_does_not_split():
    assert texts_of("Um.\n\nDois.\n\nTres.", splits_paragraphs=False) == ["Um.\n\nDois.\n\nTres."]


def test_what_is_too_long_is_cut_at_a_blank_line_when_paragraphs_are_not_split():
    text = "Um dois.\n\nTres quatro.\nCinco seis."
    assert texts_of(text, 24, splits_paragraphs=False) == ["Um dois.\n\nTres quatro.", "Cinco seis."]
    assert texts_of("Um dois tres.\n\nQuatro\ncinco seis sete", 24, splits_paragraphs=False) == [
        "Um dois tres.",
        "Quatro\ncinco seis sete",
    ]


def test_a_cap_without_room_for_a_code_blocks_own_lines_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        ParagraphSplitter(15)
