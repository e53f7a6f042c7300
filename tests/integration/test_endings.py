"""Every ending from its real cause: a real Agno server that fails, pauses, falls silent or is left, and recorded bytes where it cannot.

Client, streamer, delivery, tracing are the real ones; only WhatsApp is recorded. For each ending the same is compared whole: what the
trace keeps, what became of every message, what the user read, and what the agent server was told.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.documents import MS, TIME, told
from tests.e2e.processes import AgnoServer, agno_serve

from omni.agents.hive import HiveClient
from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.clock import SystemClock
from omni.gateway.hive_streamer import AnswerStreamer, Question
from omni.model import AgentRequest, InboundMessage, InstanceConfig, SendResult
from omni.settings import Settings
from omni.testing import MemoryStore, RecordingChannel
from omni.tracing.document import streaming_document
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.stored import read_stored_trace
from omni.tracing.trace_context import TraceContext

pytestmark = pytest.mark.slow

CAPTURES = Path(__file__).parents[1] / "captures" / "hive"
CHAT = "5511999990001@s.whatsapp.net"
CUT_SHORT = "Desculpe, precisei parar antes de terminar. Pode me perguntar de novo?"
NO_ANSWER = "Desculpe, não consegui responder agora. Tente de novo daqui a pouco, por favor."
TOO_SLOW = "Desculpe, está demorando mais do que deveria. Tente de novo daqui a pouco, por favor."
STOPPED = "Parei por aqui, como pedido."
WAITING = "Preciso de uma confirmação antes de continuar. Alguém da equipe vai cuidar disso."
HALFWAY = "The first paragraph.\n\nThe second one, unfin"
HALFWAY_BUBBLES = ["The first paragraph.", "The second one, unfin"]
GUARD_S = 30
REFUSED = SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="not on WhatsApp")


async def a_moment() -> None:
    """Let everything else go on for a hundredth of a second."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(0.01, over.set_result, None)
    await over


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so. Raises TimeoutError."""
    async with asyncio.timeout(GUARD_S):
        while not is_so():
            await a_moment()


@pytest.fixture(scope="module")
def agno(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgnoServer]:
    with agno_serve(tmp_path_factory.mktemp("agno")) as server:
        yield server


class Desk:
    """Omni's parts for one chat, with everything that can be seen of them from outside."""

    def __init__(self, session: aiohttp.ClientSession, recorder: Recorder, store: MemoryStore) -> None:
        clock, settings = SystemClock(), Settings(_env_file=None, message_spacing_ms=0)
        self.session = session
        self.store = store
        self.channel = RecordingChannel()
        self.delivery = Delivery(self.channel, clock=clock, settings=settings)
        self.tracer = Tracer(clock=clock, recorder=recorder, reader=store)
        self.agent = HiveClient(lambda: session, clock=clock, settings=settings)
        typing = TypingIndicator(self.channel, is_enabled=False)
        self.streamer = AnswerStreamer(delivery=self.delivery, typing=typing, clock=clock, language="pt")

    def ask(self, base_url: str, agent_id: str, *, key: str | None = None, timeout_s: float = GUARD_S) -> "Asked":
        """A user asks; the turn runs in a task."""
        instance = InstanceConfig(name="shop", agent_instance_type="hive", agent_stream_mode=True)
        message = InboundMessage(
            instance_name="shop",
            message_id="M1",
            chat_key=CHAT,
            reply_to=CHAT,
            sender_phone="5511999990001",
            sender_name="Maria",
            text="Oi",
            message_type="text",
        )
        request = AgentRequest(
            base_url=base_url,
            api_key=key,
            agent_kind="agent",
            agent_id=agent_id,
            message="Oi",
            session_id=f"shop_{agent_id}",
            user_id="5511999990001",
            timeout_s=timeout_s,
        )
        trace = self.tracer.open_turn(message, is_streaming=True)
        question = Question(instance=instance, request=request, recipient=CHAT, chat_key=CHAT)
        return Asked(trace, asyncio.create_task(self.streamer.answer(question, self.agent, trace)))

    def told(self, trace: TraceContext) -> dict[str, Any]:
        """What is on record of an ended turn, and what the user read."""
        assert self.tracer.flush()
        row, payloads = self.store.get_trace(trace.trace_id), self.store.get_payloads(trace.trace_id)
        assert row is not None
        document = streaming_document(read_stored_trace(row, payloads))
        chunks = document["streaming_chunks"]
        assert document["timeline"]["completed_ms"] is not None
        return {
            **{name: document[name] for name in ("status", "ending", "error_stage", "error_message")},
            "chunks": "".join(chunk["content"] for chunk in chunks),
            "streaming_error": told(document["streaming_error"]),
            "messages": [
                (each["index"], each["text"], each["status"], each["is_notice"])
                for each in sorted(document["delivery"]["messages"], key=lambda each: each["index"])
            ],
            "read": self.channel.texts,
        }


class Asked:
    """A turn that is running: its trace and its task."""

    def __init__(self, trace: TraceContext, task: "asyncio.Task[bool]") -> None:
        self.trace = trace
        self.task = task

    async def until_said(self, text: str) -> None:
        """Wait until the agent has said that much."""
        await until(lambda: self.trace.timeline.content == text)

    async def ended(self) -> bool:
        """Wait for the end."""
        return await asyncio.wait_for(self.task, GUARD_S)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    store, clock = MemoryStore(), SystemClock()
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1))
    recorder.start()
    async with aiohttp.ClientSession() as session:
        desk = Desk(session, recorder, store)
        yield desk
        await desk.streamer.aclose(GUARD_S)
        await desk.delivery.aclose(GUARD_S)
    assert recorder.stop()


async def watched(desk: Desk, agno: AgnoServer) -> dict[str, Any]:
    """Which runs the server was told to cancel, and how many models were left while they worked."""
    headers = {"Authorization": f"Bearer {agno.api_key}"}
    async with desk.session.get(f"{agno.base_url}/watched", headers=headers) as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def left_runs(desk: Desk, agno: AgnoServer, before: dict[str, Any]) -> int:
    """How many models were left since ``before``, once the server has noticed one."""
    async with asyncio.timeout(GUARD_S):
        while (now := await watched(desk, agno))["num_left"] == before["num_left"]:
            await a_moment()
    return int(now["num_left"] - before["num_left"])


def stream_error(
    ending: str, message: str, text: str | None, *, error_type: str, upstream: str | None, num_chunks: int
) -> dict[str, Any]:
    """The stage ``streaming_error``, whole."""
    return {
        "streaming_error": True,
        "error_message": message,
        "error_type": error_type,
        "error_stage": "streaming_error",
        "ending": ending,
        "detail": None,
        "timestamp": TIME,
        "partial_content": text,
        "content_verified": True if num_chunks else None,
        "chunks_received": num_chunks,
        "upstream_cancel": upstream,
        "first_token_latency_ms": MS if num_chunks else None,
        "total_streaming_time_ms": MS,
    }


def bubbles(texts: list[str], notice: str) -> list[tuple[int, str, str, bool]]:
    """Messages that were all accepted, the notice last."""
    said = [(index, text, "accepted", False) for index, text in enumerate(texts)]
    return [*said, (len(said), notice, "accepted", True)]


async def test_upstream_error(desk: Desk, agno: AgnoServer) -> None:
    """The provider fails after three deltas."""
    asked = desk.ask(agno.base_url, "error", key=agno.api_key)
    assert await asked.ended() is False
    text, cause = "Começando a responder… ⏳", 'upstream 529: overloaded "now"\nretry later'
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": "error",
        "error_stage": "streaming_error",
        "error_message": cause,
        "chunks": text,
        "streaming_error": stream_error("error", cause, text, error_type="RunError", upstream=None, num_chunks=3),
        "messages": bubbles([text], CUT_SHORT),
        "read": [text, CUT_SHORT],
    }


async def test_paused_run(desk: Desk, agno: AgnoServer) -> None:
    """The agent wants a person's consent: what it said is delivered, and nobody stops a run that waits."""
    before = await watched(desk, agno)
    asked = desk.ask(agno.base_url, "careful", key=agno.api_key)
    assert await asked.ended() is False
    text = "I would delete order 77."
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": "paused",
        "error_stage": "streaming_error",
        "error_message": "the run waits for input",
        "chunks": text,
        "streaming_error": stream_error(
            "paused", "the run waits for input", text, error_type="RunPaused", upstream=None, num_chunks=2
        ),
        "messages": bubbles([text], WAITING),
        "read": [text, WAITING],
    }
    assert await watched(desk, agno) == before


async def test_first_token_timeout(desk: Desk, agno: AgnoServer) -> None:
    """The run has begun and says nothing: it is stopped where it runs."""
    before = await watched(desk, agno)
    asked = desk.ask(agno.base_url, "silent", key=agno.api_key, timeout_s=0.5)
    assert await asked.ended() is False
    message = "The agent was silent for 0.5 s before its first text."
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": "timeout",
        "error_stage": "streaming_error",
        "error_message": message,
        "chunks": "",
        "streaming_error": stream_error(
            "timeout", message, None, error_type="AgentTimeout", upstream="requested", num_chunks=0
        ),
        "messages": bubbles([], TOO_SLOW),
        "read": [TOO_SLOW],
    }
    assert len((await watched(desk, agno))["cancelled_runs"]) == len(before["cancelled_runs"]) + 1
    assert await left_runs(desk, agno, before) == 1


async def test_idle_timeout(desk: Desk, agno: AgnoServer) -> None:
    """Silence in the middle of a sentence: the half sentence is delivered too."""
    before = await watched(desk, agno)
    asked = desk.ask(agno.base_url, "halfway", key=agno.api_key, timeout_s=0.5)
    assert await asked.ended() is False
    message = "The agent was silent for 0.5 s in the middle of its answer."
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": "timeout",
        "error_stage": "streaming_error",
        "error_message": message,
        "chunks": HALFWAY,
        "streaming_error": stream_error(
            "timeout", message, HALFWAY, error_type="AgentTimeout", upstream="requested", num_chunks=2
        ),
        "messages": bubbles(HALFWAY_BUBBLES, CUT_SHORT),
        "read": [*HALFWAY_BUBBLES, CUT_SHORT],
    }
    assert len((await watched(desk, agno))["cancelled_runs"]) == len(before["cancelled_runs"]) + 1
    assert await left_runs(desk, agno, before) == 1


async def test_user_cancel(desk: Desk, agno: AgnoServer) -> None:
    """The user says stop in the middle of a sentence: what was not sent is on record as not sent, and the model is left."""
    before = await watched(desk, agno)
    asked = desk.ask(agno.base_url, "halfway", key=agno.api_key)
    await asked.until_said(HALFWAY)
    await until(lambda: desk.channel.texts == HALFWAY_BUBBLES[:1])
    assert desk.streamer.stop_chat("shop", CHAT) is True
    assert await asked.ended() is False
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": "cancelled",
        "error_stage": "cancelled",
        "error_message": "the user asked to stop",
        "chunks": HALFWAY,
        "streaming_error": stream_error(
            "cancelled",
            "the user asked to stop",
            HALFWAY,
            error_type="cancelled",
            upstream="requested",
            num_chunks=2,
        ),
        "messages": [
            (0, HALFWAY_BUBBLES[0], "accepted", False),
            (1, HALFWAY_BUBBLES[1], "not_sent", False),
            (2, STOPPED, "accepted", True),
        ],
        "read": [HALFWAY_BUBBLES[0], STOPPED],
    }
    assert len((await watched(desk, agno))["cancelled_runs"]) == len(before["cancelled_runs"]) + 1
    assert await left_runs(desk, agno, before) == 1


@pytest.mark.parametrize("ending", ["cancelled", "interrupted"])
async def test_consumer_task_cancelled(desk: Desk, agno: AgnoServer, ending: str) -> None:
    """The caller's task is cancelled, or the server stops: the caller is let go at once, the answer is finished behind it."""
    before = await watched(desk, agno)
    asked = desk.ask(agno.base_url, "halfway", key=agno.api_key)
    await asked.until_said(HALFWAY)
    if ending == "interrupted":
        desk.streamer.note_stopping()
    asked.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked.task
    await desk.streamer.aclose(GUARD_S)
    message = "the turn was cut off before it was done"
    assert desk.told(asked.trace) == {
        "status": "failed",
        "ending": ending,
        "error_stage": ending,
        "error_message": message,
        "chunks": HALFWAY,
        "streaming_error": stream_error(
            ending, message, HALFWAY, error_type=ending, upstream="requested", num_chunks=2
        ),
        "messages": bubbles(HALFWAY_BUBBLES, CUT_SHORT),
        "read": [*HALFWAY_BUBBLES, CUT_SHORT],
    }
    assert len((await watched(desk, agno))["cancelled_runs"]) == len(before["cancelled_runs"]) + 1
    assert await left_runs(desk, agno, before) == 1


async def test_send_failed(desk: Desk, agno: AgnoServer) -> None:
    """WhatsApp refuses the first message for good while the agent still writes: nobody pays for text nobody gets."""
    before = await watched(desk, agno)
    desk.channel.answers = [REFUSED]
    asked = desk.ask(agno.base_url, "halfway", key=agno.api_key)
    assert await asked.ended() is False
    message = "a message of the answer could not be delivered, so the rest was not asked for"
    document = desk.told(asked.trace)
    # The refusal may come before the second piece is read; what was read is whole either way.
    said = document["chunks"]
    num_chunks = {"The first paragraph.\n\n": 1, HALFWAY: 2}[said]
    assert document == {
        "status": "failed",
        "ending": "send_failed",
        "error_stage": "evolution_send",
        "error_message": "not on WhatsApp",
        "chunks": said,
        "streaming_error": stream_error(
            "send_failed", message, said, error_type="send_failed", upstream="requested", num_chunks=num_chunks
        ),
        "messages": [
            (0, HALFWAY_BUBBLES[0], "failed", False),
            (1, HALFWAY_BUBBLES[1], "not_sent", False),
        ][:num_chunks],
        "read": [HALFWAY_BUBBLES[0]],
    }
    assert len((await watched(desk, agno))["cancelled_runs"]) == len(before["cancelled_runs"]) + 1
    assert await left_runs(desk, agno, before) == 1


def recorded(name: str) -> list[bytes]:
    """The pieces of a recorded answer."""
    lines = (CAPTURES / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    return [base64.b64decode(json.loads(line)["b64"]) for line in lines]


def text_of(name: str) -> str:
    """The text of a recorded answer."""
    captures = json.loads((CAPTURES / "index.json").read_text(encoding="utf-8"))["captures"]
    text: str = next(capture["expected"]["text"] for capture in captures if capture["name"] == name)
    return text


class Recorded:
    """A server on a raw socket that speaks recorded bytes; ``asked`` are the paths it was asked for."""

    def __init__(self, pieces: list[bytes], *, then: str) -> None:
        self._pieces = pieces
        self._then = then
        self.asked: list[str] = []
        self.base_url = ""
        self.hung_up = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        self.asked.append(path)
        if not path.startswith("/playground/") or path.endswith("/cancel"):
            body = b'{"detail":"Not Found"}'
            status = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\n"
            writer.write(status + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in self._pieces:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            if self._then == "hold":
                while await reader.read(65_536):
                    pass  # the form; then the client goes
                self.hung_up.set()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def speaking(name: str, *, then: str, num_pieces: int | None = None) -> AsyncIterator[Recorded]:
    server = Recorded(recorded(name)[:num_pieces], then=then)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/playground"
    async with listener:
        yield server


async def test_end_of_the_stream_without_a_terminal_event(desk: Desk) -> None:
    """Bytes of a server that was killed: whole events, then the end of the connection without a word."""
    async with speaking("agno1_server_killed", then="drop") as server:
        asked = desk.ask(server.base_url, "wire")
        assert await asked.ended() is False
    document = desk.told(asked.trace)
    text = document["chunks"]
    message = "the stream ended without a terminal event"
    assert text == text_of("agno1_server_killed")
    assert document == {
        "status": "failed",
        "ending": "incomplete",
        "error_stage": "streaming_error",
        "error_message": message,
        "chunks": text,
        "streaming_error": stream_error(
            "incomplete",
            message,
            text,
            error_type="incomplete",
            upstream=None,
            num_chunks=document["streaming_error"]["chunks_received"],
        ),
        "messages": bubbles([text.strip()], CUT_SHORT),
        "read": [text.strip(), CUT_SHORT],
    }
    assert server.asked == ["/playground/agents/wire/runs"]


async def test_on_a_server_without_a_cancel_route_closing_the_connection_is_all(desk: Desk) -> None:
    """Agno 1.x: told to stop it knows no such path; the closed connection is what stops it, and the record says so."""
    async with speaking("agno1_agent_cancel", then="hold", num_pieces=4) as server:
        asked = desk.ask(server.base_url, "wire")
        await until(lambda: len(asked.trace.timeline.chunks) == 3)
        assert desk.streamer.stop_turn(asked.trace.trace_id) is True
        assert await asked.ended() is False
        await asyncio.wait_for(server.hung_up.wait(), GUARD_S)
    document = desk.told(asked.trace)
    run_id = json.loads(recorded("agno1_agent_cancel")[0])["run_id"]
    assert (document["ending"], document["streaming_error"]["upstream_cancel"]) == ("cancelled", "unsupported")
    assert document["streaming_error"]["partial_content"] == document["chunks"]
    assert document["messages"] == [(0, document["chunks"].strip(), "not_sent", False), (1, STOPPED, "accepted", True)]
    assert document["read"] == [STOPPED]
    assert server.asked == [
        "/playground/agents/wire/runs",
        f"/playground/agents/wire/runs/{run_id}/cancel",
        f"/agents/wire/runs/{run_id}/cancel",
    ]


async def test_a_server_that_is_starting_answers_the_second_attempt(desk: Desk, unused_tcp_port: int) -> None:
    """Nothing listens yet when the user asks; when the server is up, the user gets the answer and no notice."""
    asked = desk.ask(f"http://127.0.0.1:{unused_tcp_port}/playground", "wire")
    await until(lambda: any(row.stage == "agent_retry" for row in desk.store.payloads))
    server = Recorded(recorded("agno1_agent_text"), then="drop")
    listener = await asyncio.start_server(server.handle, "127.0.0.1", unused_tcp_port)
    async with listener:
        assert await asked.ended() is True
    assert desk.told(asked.trace)["ending"] == "completed"
    assert server.asked == ["/playground/agents/wire/runs"]
    assert "\n\n".join(desk.channel.texts) == text_of("agno1_agent_text")
