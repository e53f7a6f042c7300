"""Finds out whether a message went out whose sending broke off, so that it is neither lost nor sent twice.

Two witnesses are heard. The channel says of every send that it made it (an echo); that word may come before the sending is known to
have broken off, so echoes of messages that are being sent are remembered. And the channel can be asked what it kept. An echo names an
instance, an address and a text, but not which of our messages it is: it counts for a message only when no other one being sent, and none
whose fate stayed unknown, could be it too; a key that one message has is never given to another.

Decides only what is known; whether to send again is the lane's business. Runs on event loops; echoes are noted on the loop that sends.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from omni.channels.whatsapp.outbox import text_sha256
from omni.channels.whatsapp.patience import MS_PER_S, Backoff, Sleep
from omni.channels.whatsapp.sending import Sending
from omni.channels.whatsapp.sent_search import match_chats
from omni.clock import NS_PER_S, Clock
from omni.model import SentEcho, SentSearch
from omni.settings import Settings

Ask = Callable[[Collection[str]], Awaitable[SentSearch]]
"""Asks the channel, given the keys that other messages have."""

MIN_ASKS = 2
"""The channel is asked twice before its "not there" counts: it writes down what it sent after it has sent it."""

ASK_PAUSE_S = 1.0
"""Between the two: Evolution's own write takes milliseconds, a busy database of its some hundred of them."""

# The keys of messages sent lately, some 1.5 MB: a search looks back two minutes, echoes come up to half an hour late.
_MAX_KEYS = 10_000
# For so long the echo of a message whose fate stayed unknown may still come: Evolution repeats a webhook for 20 to 30 minutes.
_LOST_FOR_NS = 30 * 60 * NS_PER_S
_MAX_LOST = 256
# Of one text on one instance, while it is being sent. When more chats than this get one text at once, the channel is asked.
_MAX_ECHOES = 64

_Text = tuple[str, str]
_Key = tuple[str, str]


class Verdict(Struct, frozen=True):
    """What is known of a message whose sending broke off; ``at_ns`` is when it became known (monotonic)."""

    verdict: Literal["found", "absent", "unknown"]
    key_id: str | None
    at_ns: int


class Watch(Struct, eq=False, kw_only=True):
    """One message from its first attempt to its outcome, or beyond it while its fate is unknown."""

    text: _Text
    recipient: str
    opened_ns: int
    is_lost: bool = False
    waiter: "asyncio.Future[None] | None" = None


class _Echo(Struct, frozen=True):
    recipient: str
    at_ns: int


class _Sends:
    """All watches of one text on one instance, and the echoes heard while one of them was being sent."""

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.echoes: dict[str, _Echo] = {}

    def owners(self, echo: _Echo) -> list[Watch]:
        """The watches an echo may belong to: those of the very chat, else those that may be in it."""
        matches = [(watch, match_chats(echo.recipient, watch.recipient)) for watch in self.watches]
        same = [watch for watch, match in matches if match == "same"]
        return same or [watch for watch, match in matches if match == "possible"]

    @property
    def is_sending(self) -> bool:
        """Whether a watch is here whose fate may still be decided."""
        return any(not watch.is_lost for watch in self.watches)


class Reconciler:
    """All watches of one delivery."""

    def __init__(self, *, clock: Clock, settings: Settings, sleep: Sleep, backoff: Backoff) -> None:
        self._clock = clock
        self._sleep = sleep
        self._backoff = backoff
        self._echo_wait_s = settings.reconcile_wait_ms / MS_PER_S
        self._max_asks = max(settings.send_attempts, MIN_ASKS)
        self._sends: dict[_Text, _Sends] = {}
        self._lost: deque[Watch] = deque()
        self._keys: OrderedDict[_Key, None] = OrderedDict()

    def note_echo(self, echo: SentEcho) -> None:
        """Take the channel's word that it sent something. Never blocks; what belongs to no message being sent is forgotten."""
        text = (echo.instance_name, text_sha256(echo.text))
        sends = self._sends.get(text)
        if sends is None or (echo.instance_name, echo.key_id) in self._keys:
            return
        heard = _Echo(echo.recipient, self._clock.mono_ns())
        owners = sends.owners(heard)
        if len(owners) == 1 and owners[0].is_lost:
            # A late word on a message that was told as unknown: nobody else may take it for its own.
            self.note_key(echo.instance_name, echo.key_id)
            self._forget(owners[0])
        elif sends.is_sending and len(sends.echoes) < _MAX_ECHOES:
            sends.echoes.setdefault(echo.key_id, heard)
            self._wake(sends)

    def note_key(self, instance_name: str, key_id: str) -> None:
        """A message of ours has this key; no other can."""
        self._keys[instance_name, key_id] = None
        if len(self._keys) > _MAX_KEYS:
            self._keys.popitem(last=False)

    @contextmanager
    def watching(self, sending: Sending) -> Iterator[Watch]:
        """Watch one message from its first attempt on; what its result says at the end of the block is remembered."""
        watch = Watch(
            text=(sending.answer.instance.name, sending.record.text_sha256),
            recipient=sending.message.recipient,
            opened_ns=self._clock.mono_ns(),
        )
        self._sends.setdefault(watch.text, _Sends()).watches.append(watch)
        try:
            yield watch
        finally:
            self._close(watch, sending)

    async def resolve(self, watch: Watch, ask: Ask, *, is_searchable: bool) -> Verdict:
        """Wait for the channel's own word, then ask it. Takes seconds; longer only while the channel cannot be asked.

        With ``is_searchable`` False, not finding the message proves nothing.
        """
        wait_s, num_asks = self._echo_wait_s, 0
        while True:
            verdict = await self._wait_for_echo(watch, wait_s)
            if verdict is None:
                search = await ask(self._known_key_ids(watch.text[0]))
                num_asks += 1
                verdict = self.heard(watch) or self._judge(watch, search, num_asks, is_searchable=is_searchable)
            if verdict is not None:
                return verdict
            wait_s = ASK_PAUSE_S if num_asks < MIN_ASKS else self._backoff.pause_s(num_asks)

    def heard(self, watch: Watch) -> Verdict | None:
        """The echo that can only be this message's, taken; None when there is none."""
        sends = self._sends[watch.text]
        for key_id, echo in sends.echoes.items():
            if sends.owners(echo) == [watch] and self._take_key(watch, key_id):
                del sends.echoes[key_id]
                return Verdict("found", key_id, echo.at_ns)
        return None

    def _judge(self, watch: Watch, search: SentSearch, num_asks: int, *, is_searchable: bool) -> Verdict | None:
        """The verdict a search leads to; None when the channel is to be asked again."""
        now_ns = self._clock.mono_ns()
        if search.verdict == "found" and search.key_id is not None and self._take_key(watch, search.key_id):
            return Verdict("found", search.key_id, now_ns)
        if num_asks < MIN_ASKS:
            return None
        if search.verdict == "absent":
            return Verdict("absent" if is_searchable else "unknown", None, now_ns)
        if search.retryable and num_asks < self._max_asks:
            return None
        return Verdict("unknown", None, now_ns)

    async def _wait_for_echo(self, watch: Watch, limit_s: float) -> Verdict | None:
        verdict = self.heard(watch)
        if verdict is not None or limit_s <= 0:
            return verdict
        timer = asyncio.ensure_future(self._sleep(limit_s))
        try:
            while verdict is None and not timer.done():
                watch.waiter = asyncio.get_running_loop().create_future()
                await asyncio.wait({watch.waiter, timer}, return_when=asyncio.FIRST_COMPLETED)
                verdict = self.heard(watch)
        finally:
            timer.cancel()
            watch.waiter = None
        return verdict

    def _take_key(self, watch: Watch, key_id: str) -> bool:
        instance_name = watch.text[0]
        if (instance_name, key_id) in self._keys:
            return False
        self.note_key(instance_name, key_id)
        return True

    def _known_key_ids(self, instance_name: str) -> frozenset[str]:
        return frozenset(key_id for name, key_id in self._keys if name == instance_name)

    def _close(self, watch: Watch, sending: Sending) -> None:
        result = sending.result
        if result is not None and result.key_id is not None:
            self.note_key(watch.text[0], result.key_id)
        is_key_unknown = (
            result is None or result.error_kind == "ambiguous" or (result.is_accepted and not result.key_id)
        )
        if is_key_unknown:
            self._keep_lost(watch)
        else:
            self._forget(watch)
        sends = self._sends.get(watch.text)
        if sends is None:
            return
        if sends.is_sending:
            # With this one out of the way an echo may have become another's for certain.
            self._wake(sends)
        else:
            sends.echoes.clear()

    def _keep_lost(self, watch: Watch) -> None:
        watch.is_lost = True
        self._lost.append(watch)
        oldest_ns = self._clock.mono_ns() - _LOST_FOR_NS
        while self._lost and (len(self._lost) > _MAX_LOST or self._lost[0].opened_ns < oldest_ns):
            self._forget(self._lost[0])

    def _forget(self, watch: Watch) -> None:
        if watch.is_lost:
            self._lost.remove(watch)
        sends = self._sends[watch.text]
        sends.watches.remove(watch)
        if not sends.watches:
            del self._sends[watch.text]

    def _wake(self, sends: _Sends) -> None:
        loop = asyncio.get_running_loop()
        for watch in sends.watches:
            # One on another loop looks again by itself when its wait is over.
            if watch.waiter is not None and not watch.waiter.done() and watch.waiter.get_loop() is loop:
                watch.waiter.set_result(None)
