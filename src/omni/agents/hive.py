"""Asks an Automagik Hive (Agno) server and yields what it says while it is saying it.

One call of ``HiveClient.run`` is one run: a form is posted, the bytes that come back become objects in ``frames`` and events in
``hive_events``, each read's events carrying the moment that read returned. It finds out by itself how a server wants to be reached
(``hive_access``), gives up on silence rather than on length (``silence``), stops reading at the first terminal event, and closes the
connection whenever the iterator is closed, which on older servers is the only way to cancel a run.

It retries nothing but the search for path and key header, keeps no text, and logs nothing of what passes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from urllib.parse import quote

import aiohttp

from omni.agents.frames import MAX_EVENT_BYTES, ObjectFramer
from omni.agents.hive_access import HiveAccess, Route, key_headers, run_url, shows_the_way
from omni.agents.hive_events import HiveRun
from omni.agents.hive_http import MAX_DETAIL_CHARS, StampedForm, read_detail, read_some, run_fields, status_error
from omni.agents.silence import SilenceWatchdog, silence_error
from omni.clock import Clock
from omni.errors import AgentError, AgentProtocolError, AgentRejected, AgentUnreachable
from omni.model import AgentEvent, AgentRequest, FirstByte, RequestWritten, TextDelta
from omni.settings import Settings

MAX_REPLY_BYTES = 32 * 1024 * 1024
"""Largest answer in one document, in bytes: it repeats the conversation and may hold media."""

# Compressed streams are held back by whoever compresses them.
_HEADERS = {"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity"}


class HiveClient:
    """Satisfies ``ports.AgentBackend`` for Hive servers.

    ``http`` gives the session to use, which its owner opens and closes. On the event loop only; any number of runs at once.
    """

    def __init__(self, http: Callable[[], aiohttp.ClientSession], *, clock: Clock, settings: Settings) -> None:
        self._http = http
        self._clock = clock
        # A whole answer has no limit: silence is bounded by the watchdog, connecting here.
        self._limits = aiohttp.ClientTimeout(total=None, connect=settings.agent_connect_timeout_ms / 1000)
        self._access = HiveAccess()

    async def run(self, request: AgentRequest) -> AsyncGenerator[AgentEvent, None]:
        """Yield the events of one run: RequestWritten first, exactly one RunEnded last.

        A body that ends early ends the run as ``incomplete`` after everything it held. Raises AgentUnreachable, AgentRejected,
        AgentFailed, AgentTimeout and AgentProtocolError; RequestWritten comes before the error if the request was sent.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + request.timeout_s - request.waited_s
        form = StampedForm(run_fields(request), self._clock)
        try:
            response = await self._open(request, form, deadline_s=deadline_s)
        except AgentError:
            if form.written_ns is not None:
                yield RequestWritten(form.written_ns)
            raise
        watchdog = SilenceWatchdog(response.close, deadline_s=deadline_s, timeout_s=request.timeout_s)
        try:
            written_ns = form.written_ns
            yield RequestWritten(self._clock.mono_ns() if written_ns is None else written_ns)
            framer = ObjectFramer(max_event_bytes=MAX_EVENT_BYTES if request.stream else MAX_REPLY_BYTES)
            run = HiveRun()
            is_first = True
            while True:
                watchdog.waiting_since = loop.time()
                data = await read_some(response.content)
                now_ns = self._clock.mono_ns()
                watchdog.waiting_since = None
                if not data:
                    break
                if is_first:
                    is_first = False
                    yield FirstByte(now_ns)
                events = run.interpret(framer.feed(data), now_ns)
                watchdog.has_text = watchdog.has_text or _is_visible(events)
                for event in events:
                    yield event
                if run.is_ended:
                    return
            if watchdog.expired is not None:
                raise silence_error(watchdog.expired, request.timeout_s)
            framer.finish()
            yield run.finish(now_ns, saw_garbage=framer.saw_garbage)
        finally:
            watchdog.stop()
            response.close()

    async def cancel_run(self, request: AgentRequest, run_id: str) -> bool:
        """Ask the server to cancel a run of the request's agent; False when it has no such route (Hive 0.1.x).

        True means only that the server took note: it stops at its model's next chunk. Raises AgentError.
        """
        form = StampedForm({}, self._clock)
        try:
            async with asyncio.timeout(request.timeout_s):
                response = await self._post(request, form, path=f"/{quote(run_id, safe='')}/cancel")
        except TimeoutError as exc:
            raise AgentUnreachable("The agent server did not answer a cancel request.", retryable=True) from exc
        except AgentRejected as exc:
            if exc.status_code == 404:
                return False
            raise
        response.close()
        return True

    async def _open(self, request: AgentRequest, form: StampedForm, *, deadline_s: float) -> aiohttp.ClientResponse:
        """The response whose body is the run."""
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._post(request, form)
        except TimeoutError as exc:
            raise silence_error("first_token", request.timeout_s) from exc

    async def _post(self, request: AgentRequest, form: StampedForm, *, path: str = "") -> aiohttp.ClientResponse:
        """Post a form below the agent's runs, trying the ways the server may want to be reached."""
        search = self._access.search(request)
        while True:
            route = search.route
            form.written_ns = None
            response = await self._post_once(request, form, route=route, path=path)
            if 200 <= response.status < 300:
                self._access.remember(request, route)
                return response
            detail = await read_detail(response)
            if search.rule_out(response.status, detail):
                continue
            if shows_the_way(response.status, detail):
                self._access.remember(request, route)
            raise status_error(response.status, detail)

    async def _post_once(
        self, request: AgentRequest, form: StampedForm, *, route: Route, path: str
    ) -> aiohttp.ClientResponse:
        try:
            return await self._http().post(
                run_url(request, route) + path,
                data=form,
                headers=_HEADERS | key_headers(request.api_key, route.key_style),
                timeout=self._limits,
                # A redirected POST loses its body or carries the key to another host.
                allow_redirects=False,
            )
        except aiohttp.ClientResponseError as exc:
            raise AgentProtocolError("The agent server does not speak HTTP.") from exc
        except (ValueError, aiohttp.NonHttpUrlClientError) as exc:
            raise AgentRejected("The agent's URL or key cannot be used in a request.") from exc
        except aiohttp.ClientError as exc:
            raise AgentUnreachable(
                "The agent server cannot be reached.", retryable=True, detail=str(exc)[:MAX_DETAIL_CHARS] or None
            ) from exc


def _is_visible(events: list[AgentEvent]) -> bool:
    return any(isinstance(event, TextDelta) and not event.text.isspace() for event in events)
