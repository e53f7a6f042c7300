"""What the scripted agent says and does: steps as data, and the choice of a script. Pure.

A script is chosen by a command in the message (``/list``), else by the agent's id, else the greeting that names the commands is
said. Texts exist in English and Portuguese; the language is guessed from the message.
"""

import re
from typing import Any, Literal

from msgspec import Struct

Language = Literal["en", "pt"]


class Say(Struct, frozen=True):
    """Write text, in pieces of about ``piece_chars`` characters, ``pause_s`` lifelike seconds apart."""

    text: str
    pause_s: float = 0.033
    piece_chars: int = 5


class Wait(Struct, frozen=True):
    """Stay silent for lifelike seconds."""

    seconds: float


class Stall(Struct, frozen=True):
    """Stay silent for real seconds whatever the speed, or until the client goes."""

    seconds: float


class CallTool(Struct, frozen=True, kw_only=True):
    """Call a tool that takes lifelike seconds."""

    name: str
    args: dict[str, Any]
    result: str
    takes_s: float = 0.9


class AskMember(Struct, frozen=True, kw_only=True):
    """Delegate to a member, who writes a text of its own that is not for the user."""

    member_id: str
    task: str
    text: str


class FailRun(Struct, frozen=True):
    """The model provider breaks; the message is for operators only."""

    message: str


class DropConnection(Struct, frozen=True):
    """The connection breaks in the middle of the body."""


class AskPerson(Struct, frozen=True, kw_only=True):
    """The run pauses until a person confirms a tool."""

    tool_name: str
    args: dict[str, Any]


class Garbage(Struct, frozen=True):
    """Bytes that are no agent stream."""

    body: bytes


Step = Say | Wait | Stall | CallTool | AskMember | FailRun | DropConnection | AskPerson | Garbage


class Script(Struct, frozen=True, kw_only=True):
    """One answer: what it shows, and its steps. The first text comes after ``first_token_s`` lifelike seconds."""

    name: str
    title: str
    steps: tuple[Step, ...]
    first_token_s: float = 0.4

    @property
    def text(self) -> str:
        """Everything the user is to read when all goes well."""
        return "".join(step.text for step in self.steps if isinstance(step, Say))


_PORTUGUESE = re.compile(
    r"\b(?:pt|portugu[eê]s|ol[aá]|oi|voc[eê]|bo[am] (?:dia|tarde|noite)|obrigad[ao]|quanto|quais|quero|preciso|pedido|frete|prazo|n[aã]o)\b"
)


def language_of(message: str) -> Language:
    """Portuguese when a common word of the message is, else English.

    >>> language_of("/list em português"), language_of("hello /list")
    ('pt', 'en')
    """
    return "pt" if _PORTUGUESE.search(message.lower()) else "en"


def commanded(message: str) -> str | None:
    """The first ``/word`` in a message, without its slash; None when there is none.

    >>> commanded("please /error-first now"), commanded("1/2")
    ('error-first', None)
    """
    found = re.search(r"(?<!\S)/([a-z]+(?:-[a-z]+)*)\b", message.lower())
    return found.group(1) if found else None


def pieces(text: str, size: int) -> list[str]:
    """Cut a text into token-like pieces of about ``size`` characters, blank space before words.

    Joined, the pieces are the text. Emoji are cut between code points, as some model servers do.
    """
    cut: list[str] = []
    for token in re.findall(rf"\s*\S{{1,{size}}}|\s+\Z", text):
        if cut and len(cut[-1]) + len(token) <= size:
            cut[-1] += token
        else:
            cut.append(token)
    return cut
