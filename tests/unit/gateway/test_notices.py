"""What Omni itself says to a user: one notice per ending, in two languages, and nothing else."""

import re
from pathlib import Path
from typing import get_args

import pytest

from omni.gateway.notices import MAX_NOTICE_CHARS, NOTICE_KINDS, NOTICES, NoticeBook, notice_for
from omni.model import Ending, InstanceConfig

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "notices.md"
KIND_BY_TEXT = {text: kind for kind, text in NOTICES["en"].items()}


def test_every_ending_has_its_notice_with_text_and_without():
    told = {
        ending: tuple(
            KIND_BY_TEXT.get(notice_for(ending, has_text=has_text, language="en")) for has_text in (True, False)
        )
        for ending in get_args(Ending)
    }
    assert told == {
        "completed": (None, "empty"),
        "error": ("cut_short", "no_answer"),
        "incomplete": ("cut_short", "no_answer"),
        "paused": ("waiting", "waiting"),
        "cancelled": ("stopped", "stopped"),
        "timeout": ("cut_short", "too_slow"),
        "send_failed": (None, None),
        "interrupted": ("cut_short", "no_answer"),
    }


def test_each_language_has_every_kind_as_one_short_message_of_its_own():
    assert {language: tuple(texts) for language, texts in NOTICES.items()} == {
        "en": NOTICE_KINDS,
        "pt": NOTICE_KINDS,
    }
    texts = [text for by_kind in NOTICES.values() for text in by_kind.values()]
    assert len(set(texts)) == 12
    assert all(0 < len(text) <= MAX_NOTICE_CHARS and "\n" not in text for text in texts)


@pytest.mark.parametrize(
    ("server", "instance", "texts", "said"),
    [
        ("en", None, None, "I stopped here, as requested."),
        ("pt", None, None, "Parei por aqui, como pedido."),
        ("en", "pt", None, "Parei por aqui, como pedido."),
        ("pt", "en", {"empty": "?"}, "I stopped here, as requested."),
        ("pt", "en", {"stopped": "Done. 🛑"}, "Done. 🛑"),
        ("pt", "fr", {}, "Parei por aqui, como pedido."),
        ("pt", None, {"stopped": ""}, "Parei por aqui, como pedido."),
    ],
)
def test_the_instance_decides_before_the_server_does(server, instance, texts, said):
    shop = InstanceConfig(name="shop", language=instance, notice_texts=texts)
    assert NoticeBook(server).notice_for(shop, "cancelled", has_text=True) == said


def test_the_reference_page_has_every_kind_with_its_texts():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {kind: (english, portuguese) for kind, english, portuguese in rows} == {
        kind: (NOTICES["en"][kind], NOTICES["pt"][kind]) for kind in NOTICE_KINDS
    }
