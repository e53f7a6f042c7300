"""Sends text and typing signs through Evolution API v2: the WhatsApp side of ``ports.Channel``.

Each call is one attempt with a timeout and answers what became of it; whether to try again is delivery's business. Evolution takes no
message id from us and finishes a send even when the caller has gone, so a call that broke off after the request may have been
written is ``ambiguous`` and not an error to repeat.

Link previews are off: Evolution would fetch the page inside the send.
"""

import logging
from collections.abc import Callable
from urllib.parse import quote

import aiohttp
from yarl import URL

from omni.channels.whatsapp.addresses import recipient_number
from omni.channels.whatsapp.evolution_answers import read_send_answer
from omni.clock import NS_PER_MS, NS_PER_S
from omni.model import InstanceConfig, OutboundMessage, SendErrorKind, SendResult
from omni.ports import PresenceState
from omni.settings import Settings

log = logging.getLogger(__name__)

MAX_IDLE_S = 4.0
"""Longest time the session may keep an idle connection: Evolution (Node) closes it after five seconds, and a send that
meets the closing is ambiguous."""

_MS_PER_S = NS_PER_S // NS_PER_MS
# Of a call's time, what connecting may take: running out of it means that nothing was written.
_CONNECT_SHARE = 0.5


class EvolutionChannel:
    """Satisfies ``ports.Channel``.

    ``http`` gives the session to use. It must not limit the number of connections: a typing sign holds one for seconds, and text
    would wait for it. It should drop idle ones after ``MAX_IDLE_S``.
    """

    def __init__(self, http: Callable[[], aiohttp.ClientSession], *, settings: Settings) -> None:
        self._http = http
        self._timeout_ms = settings.send_timeout_ms

    async def send_text(self, instance: InstanceConfig, message: OutboundMessage) -> SendResult:
        """Make one attempt to send one message. Never raises for what Evolution or the network does."""
        body = {"number": recipient_number(message.recipient), "text": message.text, "linkPreview": False}
        return await self._post(instance, "message/sendText", body, timeout_ms=self._timeout_ms)

    async def send_presence(
        self, instance: InstanceConfig, recipient: str, *, state: PresenceState, duration_ms: int
    ) -> bool:
        """Show or clear the typing sign; returns when Evolution has taken it away again, after ``duration_ms``.

        False when it was refused, as some of Evolution's channels always do.
        """
        body = {"number": recipient_number(recipient), "presence": state, "delay": duration_ms}
        timeout_ms = duration_ms + self._timeout_ms
        result = await self._post(instance, "chat/sendPresence", body, timeout_ms=timeout_ms)
        return result.is_accepted

    async def _post(
        self, instance: InstanceConfig, route: str, body: dict[str, object], *, timeout_ms: int
    ) -> SendResult:
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
                answer = await response.read()
                return read_send_answer(response.status, answer, retry_after=response.headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            return _unanswered("transient", "no connection to Evolution", exc)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return _unanswered("ambiguous", "no answer from Evolution", exc)


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
