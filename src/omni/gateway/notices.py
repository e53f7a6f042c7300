"""The few sentences Omni itself says to a WhatsApp user when an answer does not come about.

One polite notice per turn, in the configured language, and never a word of what went wrong inside: that is for the operator.
"""

from typing import Literal

from omni.model import Ending

Language = Literal["en", "pt"]
NoticeKind = Literal["no_answer", "cut_short", "too_slow", "empty", "waiting", "stopped"]

_NOTICES: dict[Language, dict[NoticeKind, str]] = {
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


def notice_for(ending: Ending, *, has_text: bool, language: Language) -> str | None:
    """The notice a turn with this ending calls for; None when the answer speaks for itself or nothing can be delivered."""
    kind = _kind_for(ending, has_text=has_text)
    return None if kind is None else _NOTICES[language][kind]


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
        case "error" | "incomplete":
            return "cut_short" if has_text else "no_answer"
        case _:
            return None
