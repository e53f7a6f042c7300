"""One question, and an agent that begins to answer it and then holds still for as long as a test wants."""

import asyncio

from omni.gateway.hive_streamer import Question
from omni.model import AgentRequest, FirstByte, RequestWritten, RunEnded, RunStarted, TextDelta
from omni.testing import ScriptedAgent

RECIPIENT = "5511999990001@s.whatsapp.net"
CHAT = "5511999990001@s.whatsapp.net"


def question_for(instance, *, stream=True):
    request = AgentRequest(
        base_url="http://hive.test",
        api_key="k",
        agent_kind="agent",
        agent_id="genie",
        message="Tell me a joke",
        session_id="s",
        user_id="u",
        stream=stream,
        timeout_s=60,
    )
    return Question(instance=instance, request=request, recipient=RECIPIENT, chat_key=CHAT)


def open_trace(tracer):
    body = {"data": {"key": {"id": "M1", "remoteJid": RECIPIENT}, "message": {"conversation": "Tell me a joke"}}}
    return tracer.open_from_webhook(body, "shop", is_streaming=True)


class HeldAgent(ScriptedAgent):
    """Says its texts and then holds still until it is released; ``is_holding`` is set when it does."""

    def __init__(self, clock, texts, *, after=(), then=None, names_run=True):
        super().__init__(self._script)
        self._clock = clock
        self._texts = texts
        self._after = after
        self._then = then
        self._names_run = names_run
        self.is_holding = asyncio.Event()
        self.released = asyncio.Event()
        self.is_closed = False
        self.cancel_answer = True

    async def run(self, request):
        try:
            async for event in super().run(request):
                yield event
        finally:
            self.is_closed = True

    async def cancel_run(self, request, run_id):
        await super().cancel_run(request, run_id)
        if isinstance(self.cancel_answer, Exception):
            raise self.cancel_answer
        if isinstance(self.cancel_answer, asyncio.Event):
            await self.cancel_answer.wait()
        return self.cancel_answer is not False

    def _script(self, request):
        yield RequestWritten(self._clock.mono_ns())
        yield FirstByte(self._clock.mono_ns())
        if self._names_run:
            yield RunStarted(mono_ns=self._clock.mono_ns(), run_id="r1", session_id=request.session_id)
        for text in self._texts:
            yield TextDelta(self._clock.mono_ns(), text, "RunContent")
        yield self._hold()
        for text in self._after:
            yield TextDelta(self._clock.mono_ns(), text, "RunContent")
        yield self._then or RunEnded(mono_ns=self._clock.mono_ns(), ending="completed", event_type="RunCompleted")

    async def _hold(self):
        self.is_holding.set()
        await self.released.wait()
