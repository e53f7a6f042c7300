"""Sends text and typing signs through Evolution API v2: the WhatsApp side of ``ports.Channel``.

Each call is one attempt with a timeout and answers what became of it; whether to try again is delivery's business. Evolution takes no
message id from us and finishes a send even when the caller has gone, so a call that broke off after the request may have been
written is ``ambiguous`` and not an error to repeat. Whether such a message went out is asked of the messages Evolution keeps.

Link previews are off: Evolution would fetch the page inside the send.
"""

import logging
from collections.abc import Callable, Collection
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import aiohttp
from msgspec import Struct
from yarl import URL

from omni.channels.whatsapp.addresses import recipient_number
from omni.channels.whatsapp.evolution_answers import read_send_answer
from omni.channels.whatsapp.sent_search import (
    MAX_ROWS_PER_PAGE,
    KeptMessage,
    Wanted,
    judge_kept,
    reaches_back,
    read_kept_page,
)
from omni.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock
from omni.model import InstanceConfig, OutboundMessage, SendErrorKind, SendResult, SentSearch
from omni.ports import PresenceState
from omni.settings import Settings

log = logging.getLogger(__name__)

MAX_IDLE_S = 4.0
"""Longest time the session may keep an idle connection: Evolution (Node) closes it after five seconds, and a send that
meets the closing is ambiguous."""

_MS_PER_S = NS_PER_S // NS_PER_MS
# Of a call's time, what connecting may take: running out of it means that nothing was written.
_CONNECT_SHARE = 0.5
# The chat waits for a search; an Evolution that needs longer for one cannot be asked now.
_SEARCH_TIMEOUT_MS = 10_000
# An instance that has sent more than these pages since the attempt is too busy to be searched without holding up the chat.
_MAX_PAGES = 3

# The Date of an answer is cut to the second, and the answer took a moment to arrive.
_DATE_GRAIN_S = 2.0
# Evolution or a proxy says with these that it cannot answer now; 400, 401, 404 and the like will not change by asking again.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

_CANNOT_TELL = SentSearch(verdict="unknown")
_ASK_LATER = SentSearch(verdict="unknown", retryable=True)


class _Answer(Struct, frozen=True):
    status: int
    body: bytes
    retry_after: str | None
    date: str | None


class EvolutionChannel:
    """Satisfies ``ports.Channel``.

    ``http`` gives the session to use. It must not limit the number of connections: a typing sign holds one for seconds, and text
    would wait for it. It should drop idle ones after ``MAX_IDLE_S``.
    """

    def __init__(
        self, http: Callable[[], aiohttp.ClientSession], *, settings: Settings, clock: Clock | None = None
    ) -> None:
        self._http = http
        self._clock: Clock = clock or SystemClock()
        self._timeout_ms = settings.send_timeout_ms

    async def send_text(self, instance: InstanceConfig, message: OutboundMessage) -> SendResult:
        """Make one attempt to send one message. Never raises for what Evolution or the network does."""
        body = {"number": recipient_number(message.recipient), "text": message.text, "linkPreview": False}
        return _send_result(await self._post(instance, "message/sendText", body, timeout_ms=self._timeout_ms))

    async def send_presence(
        self, instance: InstanceConfig, recipient: str, *, state: PresenceState, duration_ms: int
    ) -> bool:
        """Show or clear the typing sign; returns when Evolution has taken it away again, after ``duration_ms``.

        False when it was refused, as some of Evolution's channels always do.
        """
        body = {"number": recipient_number(recipient), "presence": state, "delay": duration_ms}
        timeout_ms = duration_ms + self._timeout_ms
        return _send_result(await self._post(instance, "chat/sendPresence", body, timeout_ms=timeout_ms)).is_accepted

    async def find_sent(
        self,
        instance: InstanceConfig,
        message: OutboundMessage,
        *,
        started_wall_ns: int,
        known_key_ids: Collection[str],
    ) -> SentSearch:
        """Whether Evolution keeps a message it was asked to send; see ``sent_search`` for what counts. Never raises for what it answers.

        Asked are all messages of the account, newest first, and not those of one address: Evolution may have written the number
        differently, and a message that is there under another address must not be taken for missing.
        """
        kept: list[KeptMessage] = []
        started_s = started_wall_ns / NS_PER_S
        for page_number in range(1, _MAX_PAGES + 1):
            body: dict[str, object] = {
                "where": {"key": {"fromMe": True}},
                "page": page_number,
                "offset": MAX_ROWS_PER_PAGE,
            }
            timeout_ms = min(self._timeout_ms, _SEARCH_TIMEOUT_MS)
            answer = await self._post(instance, "chat/findMessages", body, timeout_ms=timeout_ms)
            if isinstance(answer, SendResult):
                return _CANNOT_TELL if answer.error_kind == "rejected" else _ASK_LATER
            page = read_kept_page(answer.status, answer.body)
            if page is None:
                return _ASK_LATER if answer.status in _PASSING else _CANNOT_TELL
            kept.extend(page.messages)
            theirs_s = started_s + self._clock_lead_s(answer.date)
            if page.is_last or reaches_back(kept, theirs_s):
                wanted = Wanted(
                    recipient=message.recipient, text=message.text, started_s=theirs_s, known_key_ids=known_key_ids
                )
                return judge_kept(kept, wanted)
        return _CANNOT_TELL

    def _clock_lead_s(self, date: str | None) -> float:
        """Seconds Evolution's clock is ahead of ours, by the Date of its answer; 0 when it gives none."""
        try:
            theirs_s = parsedate_to_datetime(date).timestamp() if date is not None else None
        except ValueError:
            theirs_s = None
        if theirs_s is None:
            return 0.0
        lead_s = theirs_s - self._clock.wall_ns() / NS_PER_S
        # A Date has no fractions: less than two seconds is no lead.
        return lead_s if abs(lead_s) >= _DATE_GRAIN_S else 0.0

    async def _post(
        self, instance: InstanceConfig, route: str, body: dict[str, object], *, timeout_ms: int
    ) -> _Answer | SendResult:
        """One call's answer, or the result of a call that got none."""
        url = _endpoint(instance, route)
        if url is None:
            return SendResult(
                is_accepted=False, error_kind="rejected", error="the instance's evolution_url is missing or no URL"
            )
        timeout_s = timeout_ms / _MS_PER_S
        try:
            async with self._http().post(
                url,
                json=body,
                headers={"apikey": instance.evolution_key or ""},
                timeout=aiohttp.ClientTimeout(total=timeout_s, connect=timeout_s * _CONNECT_SHARE),
                allow_redirects=False,
            ) as response:
                return _Answer(
                    status=response.status,
                    body=await response.read(),
                    retry_after=response.headers.get("Retry-After"),
                    date=response.headers.get("Date"),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            return _unanswered("transient", "no connection to Evolution", exc)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return _unanswered("ambiguous", "no answer from Evolution", exc)


def _send_result(answer: _Answer | SendResult) -> SendResult:
    if isinstance(answer, SendResult):
        return answer
    return read_send_answer(answer.status, answer.body, retry_after=answer.retry_after)


def _endpoint(instance: InstanceConfig, route: str) -> URL | None:
    base = (instance.evolution_url or "").rstrip("/")
    try:
        url = URL(f"{base}/{route}/{quote(instance.evolution_instance, safe='')}", encoded=True)
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _unanswered(kind: SendErrorKind, sentence: str, exc: Exception) -> SendResult:
    """The result of a call without an answer. Only the exception's type is told: its text can hold the address called."""
    log.debug("evolution_call_unanswered", extra={"error_kind": kind, "exception": type(exc).__name__})
    return SendResult(is_accepted=False, error_kind=kind, error=f"{sentence} ({type(exc).__name__})")
