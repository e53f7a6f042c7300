"""The few sentences Omni itself says to a WhatsApp user when an answer does not come about.

One polite notice per turn, in the instance's language and, where the instance has some, in its own words; never a word of what went
wrong inside: that is for the operator. docs/reference/notices.md lists the kinds, when each is said, and the texts.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from omni.model import Ending, InstanceConfig

Language = Literal["en", "pt"]
NoticeKind = Literal["no_answer", "cut_short", "too_slow", "empty", "waiting", "stopped"]

NOTICE_KINDS: tuple[NoticeKind, ...] = get_args(NoticeKind)

MAX_NOTICE_CHARS = 1_000
"""Longest text an instance may have for a notice: one message on every phone, and far below what WhatsApp takes."""

NOTICES: dict[Language, dict[NoticeKind, str]] = {
    "en": {
        "no_answer": "Sorry, I could not answer just now. Please try again in a moment.",
        "cut_short": "Sorry, I had to stop before I was done. Please ask me again.",
        "too_slow": "Sorry, this is taking longer than it should. Please try again in a moment.",
        "empty": "Sorry, I have no answer to that. Could you put it another way?",
        "waiting": "I need a confirmation before I can go on. Someone from the team will see to it.",
        "stopped": "I stopped here, as requested.",
    },
    "pt": {
        "no_answer": "Desculpe, não consegui responder agora. Tente de novo daqui a pouco, por favor.",
        "cut_short": "Desculpe, precisei parar antes de terminar. Pode me perguntar de novo?",
        "too_slow": "Desculpe, está demorando mais do que deveria. Tente de novo daqui a pouco, por favor.",
        "empty": "Desculpe, não tenho resposta para isso. Pode perguntar de outro jeito?",
        "waiting": "Preciso de uma confirmação antes de continuar. Alguém da equipe vai cuidar disso.",
        "stopped": "Parei por aqui, como pedido.",
    },
}
"""The texts that are shipped."""


class NoticeBook:
    """Finds the notice for an instance's user. ``language`` is for instances that set none."""

    def __init__(self, language: Language) -> None:
        self._language: Language = language

    def notice_for(self, instance: InstanceConfig, ending: Ending, *, has_text: bool) -> str | None:
        """The notice a turn with this ending calls for, in the instance's words if it has some, else in its language."""
        language = _known_language(instance.language) or self._language
        return notice_for(ending, has_text=has_text, language=language, texts=instance.notice_texts)


def notice_for(
    ending: Ending, *, has_text: bool, language: Language, texts: Mapping[str, str] | None = None
) -> str | None:
    """The notice a turn with this ending calls for; None when the answer speaks for itself or nothing can be delivered.

    ``has_text`` says whether the user got, or is about to get, a part of the answer. ``texts`` replace those that are shipped.
    """
    kind = _kind_for(ending, has_text=has_text)
    if kind is None:
        return None
    return (texts or {}).get(kind) or NOTICES[language][kind]


def _kind_for(ending: Ending, *, has_text: bool) -> NoticeKind | None:
    match ending:
        case "completed":
            return None if has_text else "empty"
        case "paused":
            return "waiting"
        case "cancelled":
            return "stopped"
        case "timeout":
            return "cut_short" if has_text else "too_slow"
        case "error" | "incomplete" | "interrupted":
            return "cut_short" if has_text else "no_answer"
        case "send_failed":
            return None


def _known_language(language: str | None) -> Language | None:
    """The language if its notices are shipped; a row written by somebody else may name another."""
    return next((known for known in NOTICES if known == language), None)
