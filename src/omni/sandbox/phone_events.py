"""What happens on the simulated phone, as small typed events for the phone page and for tests.

``at_ms`` is the wall clock in milliseconds since 1970, for showing; nothing is measured with it.
"""

from typing import Literal

from msgspec import Struct

TickState = Literal["sending", "sent", "delivered", "read", "failed"]


class UserWrote(Struct, frozen=True, kw_only=True, tag_field="type", tag="user_wrote"):
    """The person at the phone wrote a message."""

    key_id: str
    text: str
    at_ms: int


class AgentWrote(Struct, frozen=True, kw_only=True, tag_field="type", tag="agent_wrote"):
    """A message arrived on the phone. Tick states are what the gateway may know about it."""

    key_id: str
    text: str
    at_ms: int


class Ticked(Struct, frozen=True, kw_only=True, tag_field="type", tag="ticked"):
    """A message, of either side, reached its next state."""

    key_id: str
    state: TickState


class TurnOpened(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn_opened"):
    """The gateway took a user's message and named the trace that follows it."""

    key_id: str
    trace_id: str


class Typing(Struct, frozen=True, kw_only=True, tag_field="type", tag="typing"):
    """The typing sign changed."""

    is_on: bool


PhoneEvent = UserWrote | AgentWrote | Ticked | TurnOpened | Typing
