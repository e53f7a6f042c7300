"""A simulated Evolution API 2.3.6: takes what a gateway sends, posts the webhooks a phone would cause, and records it all.

Any number of instances share one simulator, as on the real server. This module is the server's behaviour; its HTTP face is in
``evolution_routes`` and its wire format in ``evolution_wire``. It keeps messages and lets them be searched. It can be told to fail (``fail_next``). It knows no
WhatsApp: no encryption, groups or media.
"""

import secrets
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from omni.clock import NS_PER_MS, Clock, wall_datetime
from omni.sandbox import evolution_wire as wire
from omni.sandbox.evolution_records import (
    CallName,
    Fault,
    FaultKind,
    HttpCall,
    PresenceCall,
    ReadCall,
    SentMessage,
    fault_for,
)
from omni.sandbox.evolution_rows import MessageRows
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.phone_events import AgentWrote, PhoneEvent, Ticked, TickState, TurnOpened, Typing, UserWrote
from omni.sandbox.webhooks import WebhookPost, WebhookPoster, WebhookTarget

_TICK_OF_STATUS: dict[str, TickState] = {"DELIVERY_ACK": "delivered", "READ": "read", "ERROR": "failed"}
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


class PlannedReceipt(Struct, frozen=True, kw_only=True):
    """A receipt to post ``after_s`` lifelike seconds after a message was accepted."""

    status: wire.ReceiptStatus
    after_s: float


DELIVERED_THEN_READ = (
    PlannedReceipt(status="DELIVERY_ACK", after_s=0.45),
    PlannedReceipt(status="READ", after_s=1.6),
)


class SimulatedInstance:
    """One instance on the simulated server; ``target`` is where its webhooks go."""

    def __init__(self, name: str, *, phone: str, target: WebhookTarget | None) -> None:
        self.name = name
        self.id = str(uuid.uuid4())
        self.token = str(uuid.uuid4()).upper()
        self.owner_jid = wire.jid_of(phone)
        self.target = target
        self.state = "open"
        self.texts_by_key_id: dict[str, str] = {}
        self.rows = MessageRows()
        self.webhook_row: dict[str, Any] | None = None


class SimulatedEvolution:
    """The server. Use on one event loop, with a started poster and task owner."""

    def __init__(
        self,
        *,
        api_key: str,
        poster: WebhookPoster,
        tasks: TaskOwner,
        pace: Pace,
        clock: Clock,
        server_url: str = "http://127.0.0.1:8080",
        receipts: tuple[PlannedReceipt, ...] = DELIVERED_THEN_READ,
    ) -> None:
        self.api_key = api_key
        self.clock = clock
        self.pace = pace
        self.tasks = tasks
        self.instances: dict[str, SimulatedInstance] = {}
        self.contact = wire.Contact()
        self.receipts = receipts
        self.unregistered_numbers: set[str] = set()
        self.sent: list[SentMessage] = []
        self.presences: list[PresenceCall] = []
        self.reads: list[ReadCall] = []
        self.calls: list[HttpCall] = []
        self.webhooks: list[WebhookPost] = []
        self._listeners: list[Callable[[PhoneEvent], None]] = []
        self._faults: dict[CallName, deque[Fault]] = {}
        self._poster = poster
        self._server_url = server_url

    def add_instance(
        self, name: str, *, phone: str = "5511900000000", target: WebhookTarget | None = None
    ) -> SimulatedInstance:
        """Create an instance whose phone is connected; ``phone`` is the business's own number."""
        instance = SimulatedInstance(name, phone=phone, target=target)
        self.instances[name] = instance
        return instance

    def listen(self, listener: Callable[[PhoneEvent], None]) -> None:
        """Have ``listener`` called, on the event loop, for everything that happens on the phone."""
        self._listeners.append(listener)

    def fail_next(self, kind: FaultKind, times: int = 1, *, call: CallName = "sendText") -> None:
        """Make the next ``times`` otherwise acceptable calls fail in one way; several orders are worked off in turn."""
        self._faults.setdefault(call, deque()).extend([fault_for(kind, call=call)] * times)

    def next_fault(self, call: CallName) -> Fault | None:
        """Take the fault ordered for this call, if any."""
        waiting = self._faults.get(call)
        return waiting.popleft() if waiting else None

    async def user_writes(
        self,
        instance_name: str,
        text: str,
        *,
        addressing: wire.Addressing = "pn",
        message_id: str | None = None,
        quoted_key_id: str | None = None,
        sent_at_s: int | None = None,
    ) -> WebhookPost | None:
        """The person at the phone writes; returns once the webhook is taken or given up, None when no webhook is set."""
        instance = self.instances[instance_name]
        message_id = message_id or f"AC{secrets.token_hex(15).upper()}"
        quoted = None
        if quoted_key_id is not None:
            quoted = (quoted_key_id, instance.owner_jid, instance.texts_by_key_id.get(quoted_key_id, ""))
        self._tell(UserWrote(key_id=message_id, text=text, at_ms=self._now_ms()))
        data = wire.written_message(
            self.contact,
            text=text,
            message_id=message_id,
            instance_id=instance.id,
            sent_at_s=sent_at_s if sent_at_s is not None else self._now_ms() // 1000,
            addressing=addressing,
            quoted=quoted,
        )
        instance.rows.add(data, row_id=new_row_id())
        post = await self.emit(instance_name, "messages.upsert", data)
        is_taken = post is not None and post.is_taken
        self._tell(Ticked(key_id=message_id, state="delivered" if is_taken else "failed"))
        if post is not None and post.trace_id is not None:
            self._tell(TurnOpened(key_id=message_id, trace_id=post.trace_id))
        return post

    async def set_connection(self, instance_name: str, state: str, *, status_reason: int = 200) -> WebhookPost | None:
        """Change an instance's connection (``open``, ``connecting``, ``close``) and post the event."""
        self.instances[instance_name].state = state
        data = wire.connection_change(instance_name=instance_name, state=state, status_reason=status_reason)
        return await self.emit(instance_name, "connection.update", data)

    async def post_receipt(self, instance_name: str, key_id: str, status: wire.ReceiptStatus) -> WebhookPost | None:
        """Post one receipt for a message that was sent."""
        if status in _TICK_OF_STATUS:
            self._tell(Ticked(key_id=key_id, state=_TICK_OF_STATUS[status]))
        instance = self.instances[instance_name]
        instance.rows.note_status(key_id, status)
        data = wire.receipt(
            key_id=key_id,
            jid=self.contact.phone_jid,
            status=status,
            instance_id=instance.id,
            row_id=new_row_id(),
        )
        return await self.emit(instance_name, "messages.update", data)

    async def emit(self, instance_name: str, event: str, data: dict[str, Any]) -> WebhookPost | None:
        """Post any event in Evolution's envelope; None when the instance has no webhook that wants it."""
        instance = self.instances[instance_name]
        target = instance.target
        if target is None or not target.wants(event):
            return None
        envelope = {
            "event": event,
            "instance": instance_name,
            "data": data,
            "destination": target.url,
            "date_time": self.date_time(),
            "sender": instance.owner_jid,
            "server_url": self._server_url,
            "apikey": instance.token,
        }
        post = await self._poster.post(target, envelope)
        self.webhooks.append(post)
        return post

    def accept_text(
        self, instance: SimulatedInstance, body: Any, *, received_ns: int, is_kept: bool = True
    ) -> dict[str, Any]:
        """Send a checked text to the phone: show it, keep it, start posting ``send.message``, and return the body of the 201.

        With ``is_kept`` False the database fails behind the send: no row and, as the real service posts after it kept, no event.
        """
        key_id = f"3EB0{secrets.token_hex(9).upper()}"
        quoted_id = ((body.get("quoted") or {}).get("key") or {}).get("id")
        message = wire.sent_message(
            jid=wire.jid_of(body["number"]),
            text=body["text"],
            key_id=key_id,
            instance_id=instance.id,
            owner_jid=instance.owner_jid,
            now_s=self._now_ms() // 1000,
            quoted=(quoted_id, instance.texts_by_key_id.get(quoted_id, "")) if quoted_id else None,
        )
        instance.texts_by_key_id[key_id] = body["text"]
        self.sent.append(
            SentMessage(
                instance_name=instance.name,
                number=body["number"],
                jid=message["key"]["remoteJid"],
                text=body["text"],
                key_id=key_id,
                body=body,
                received_ns=received_ns,
                accepted_ns=self.clock.mono_ns(),
            )
        )
        if self.contact.is_at(body["number"]):
            self._tell(AgentWrote(key_id=key_id, text=body["text"], at_ms=self._now_ms()))
        if is_kept:
            instance.rows.add(message, row_id=new_row_id())
            self.tasks.spawn(self.emit(instance.name, "send.message", message), name="send.message")
        return message

    async def plan_receipts(self, instance_name: str, key_id: str) -> None:
        """Start the receipts of one accepted message; they run independently of each other, as in the real server."""
        for planned in self.receipts:
            self.tasks.spawn(self._receipt_later(instance_name, key_id, planned), name=planned.status)

    async def pulse(self, call: PresenceCall) -> None:
        """Show the typing sign for as long as a presence call asks, then clear it."""
        is_ours = self.contact.is_at(call.number)
        if is_ours and call.state in ("composing", "recording"):
            self._tell(Typing(is_on=True))
        await self.tasks.hold(call.delay_ms / 1000)
        # Every pulse ends in "paused", also one that a newer pulse has overtaken: the recorded server does so.
        if is_ours:
            self._tell(Typing(is_on=False))

    def mark_as_read(self, read: ReadCall) -> None:
        """Record that a message of the user was marked as read, and show it when the call has an effect."""
        self.reads.append(read)
        if read.is_effective:
            self._tell(Ticked(key_id=read.message_id, state="read"))

    def date_time(self) -> str:
        """The present as Evolution writes it: UTC with milliseconds."""
        now = wall_datetime(self.clock.wall_ns())
        return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"

    async def _receipt_later(self, instance_name: str, key_id: str, planned: PlannedReceipt) -> None:
        await self.pace.pause(planned.after_s)
        await self.post_receipt(instance_name, key_id, planned.status)

    def _tell(self, event: PhoneEvent) -> None:
        for listener in self._listeners:
            listener(event)

    def _now_ms(self) -> int:
        return self.clock.wall_ns() // NS_PER_MS


def new_row_id() -> str:
    """An id in the style of Evolution's database rows; unrelated to the key id."""
    return "cm" + "".join(secrets.choice(_BASE36) for _ in range(23))
