"""The scripts as data: how one is chosen, and the laws of cutting text into pieces."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.sandbox import evolution_wire, scripts
from omni.sandbox.script_texts import PROVIDER_ERROR, choose_script
from omni.sandbox.script_texts import scripts as all_scripts
from omni.sandbox.scripts import Say, pieces

NAMES = [
    "greeting",
    "prose",
    "code",
    "list",
    "emoji",
    "long",
    "tool",
    "team",
    "slow",
    "stall",
    "fail",
    "error-first",
    "cut",
    "empty",
    "garbage",
    "paused",
]


@given(st.text(), st.integers(min_value=1, max_value=40))
def test_joined_pieces_are_the_text_and_none_is_empty(text, size):
    cut = pieces(text, size)

    assert "".join(cut) == text
    assert "" not in cut


@pytest.mark.parametrize("language", ["en", "pt"])
def test_both_languages_have_the_same_scripts(language):
    assert list(all_scripts(language)) == NAMES


@pytest.mark.parametrize(
    ("message", "runner_id", "name", "language"),
    [
        ("hello", "assistant", "greeting", "en"),
        ("olá, tudo bem?", "assistant", "greeting", "pt"),
        ("please /list now", "assistant", "list", "en"),
        ("/error-first", "assistant", "error-first", "en"),
        ("/prose em português", "assistant", "prose", "pt"),
        ("hello", "cut", "cut", "en"),
        ("/code", "cut", "code", "en"),
        ("/unheard-of", "assistant", "greeting", "en"),
        ("half and/or /half", "assistant", "greeting", "en"),
    ],
)
def test_a_command_beats_the_agents_name_and_the_greeting_is_left(message, runner_id, name, language):
    assert choose_script(message, runner_id=runner_id) == all_scripts(language)[name]


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_greeting_names_every_command(language):
    text = all_scripts(language)["greeting"].text

    assert [name for name in NAMES[1:] if f"/{name}" not in text] == []


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_long_script_has_a_paragraph_no_single_message_can_hold(language):
    assert max(len(part) for part in all_scripts(language)["long"].text.split("\n\n")) > 4096


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("name", ["prose", "code", "list", "emoji", "tool", "team", "long", "greeting", "fail"])
def test_answers_have_several_paragraphs(language, name):
    assert all_scripts(language)[name].text.count("\n\n") >= 1


def test_ordinary_pieces_come_at_twenty_to_forty_a_second():
    paces = {step.pause_s for script in all_scripts("en").values() for step in script.steps if isinstance(step, Say)}

    assert {0.025, 0.033, 0.05} <= paces


def test_no_text_for_the_user_contains_the_providers_error():
    said = [script.text for language in ("en", "pt") for script in all_scripts(language).values()]

    assert [text for text in said if PROVIDER_ERROR in text or "[mem" in text] == []


@pytest.mark.parametrize("module", [scripts, evolution_wire])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)

    assert (result.failed, result.attempted > 0) == (0, True)
