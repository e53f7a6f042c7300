"""Puts load on a running Omni and finds out what became of it: webhooks in, and for each turn its trace beside what the world saw.

Webhooks are posted over bare sockets, so that the poster's own work is small against what it times. Everything else is read
after the load is over.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from time import perf_counter_ns, time_ns
from typing import Any

from benchmarks.support_plan import StreamPlan, last_chunks, messages, pieces
from benchmarks.support_processes import API_KEY, INSTANCE, Server
from omni.sandbox.evolution_wire import Contact, written_message

SPACING_NS = 500_000_000
"""Omni's default pause between two messages to one chat."""

POLL_S = 0.1


class _Post(asyncio.Protocol):
    """One webhook on one connection; ``took_ns`` from its last byte written to the last byte of the answer."""

    def __init__(self, request: bytes, done: "asyncio.Future[int]") -> None:
        self._request = request
        self._done = done
        self._answer = b""

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._written_ns = perf_counter_ns()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, blank, body = self._answer.partition(b"\r\n\r\n")
        if blank and len(body) >= int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            took_ns = perf_counter_ns() - self._written_ns
            if not self._done.done():
                if head.startswith(b"HTTP/1.1 200 "):
                    self._done.set_result(took_ns)
                else:
                    self._done.set_exception(RuntimeError(f"a webhook was refused: {head.splitlines()[0].decode()}"))
            self._transport.close()

    def connection_lost(self, exc) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed without an answer"))


async def post_webhooks(server: Server, plans: list[StreamPlan]) -> list[int]:
    """Post one webhook per plan, all at once; nanoseconds until each was acknowledged. Raises when one was not."""
    return list(await asyncio.gather(*(post_webhook(server, webhook_request(server, plan)) for plan in plans)))


async def post_in_flight(server: Server, requests: list[bytes], *, in_flight: int) -> list[int]:
    """Post all, always ``in_flight`` of them at once; nanoseconds until each was acknowledged. Raises when one was not."""
    left = iter(requests)

    async def keep_posting() -> list[int]:
        return [await post_webhook(server, request) for request in left]

    took = await asyncio.gather(*(keep_posting() for _ in range(in_flight)))
    return [took_ns for each in took for took_ns in each]


async def post_one_by_one(server: Server, plans: list[StreamPlan], *, every_s: float) -> list[int]:
    """Post one webhook after the other, ``every_s`` apart; nanoseconds until each was acknowledged."""
    posts = []
    for plan in plans:
        posts.append(asyncio.ensure_future(post_webhook(server, webhook_request(server, plan))))
        await asyncio.sleep(every_s)
    return list(await asyncio.gather(*posts))


async def wait_until_idle(server: Server, *, deadline_s: float) -> None:
    """Return when no chat has a turn running. Raises TimeoutError."""
    async with asyncio.timeout(deadline_s):
        while True:
            health = await asyncio.to_thread(server.call, "GET", "/health")
            if health["chats_running"] == 0 and health["messages_waiting"] == 0:
                return
            await asyncio.sleep(POLL_S)


async def post_webhook(server: Server, request: bytes) -> int:
    """Post one webhook over a connection of its own; nanoseconds from its last byte to that of the answer. Raises for a refusal."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()
    await loop.create_connection(lambda: _Post(request, done), "127.0.0.1", server.port)
    return await done


def webhook_request(server: Server, plan: StreamPlan, *, chat: int | None = None) -> bytes:
    """The bytes of the webhook that asks for ``plan``, from a chat of its own unless ``chat`` names one. Stamped with this second."""
    phone_number = plan.number if chat is None else chat
    data = written_message(
        Contact(phone=_phone(phone_number), lid=f"{phone_number}", name="Bench"),
        text=plan.question(),
        message_id=f"MSG{plan.number}",
        instance_id="bench",
        sent_at_s=time_ns() // 1_000_000_000,
        addressing="pn",
    )
    body = json.dumps({"event": "messages.upsert", "instance": INSTANCE, "data": data}).encode()
    head = (
        f"POST /webhook/evolution/{INSTANCE} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
        f"content-type: application/json\r\nx-api-key: {API_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _phone(number: int) -> str:
    return f"55119{number:08d}"


@dataclass(frozen=True)
class Turn:
    """One turn by Omni's trace and by the world's record; nanoseconds.

    ``faults`` says in words what is not as it should be; the figures mean something only when there are none. ``tail_ns`` runs from the
    agent's end to the turn's end, less the pacing between messages. ``written_ns`` are the agent's writes of the chunks on the
    machine's clock, ``late_ns`` how late each was, ``chunk_delays_ns`` the times from each to Omni's stamp on it.
    """

    plan: StreamPlan
    faults: list[str]
    tail_ns: int
    chunk_delays_ns: list[int]
    written_ns: list[int]
    late_ns: list[int]


def read_turns(server: Server, around: Server, plans: list[StreamPlan]) -> list[Turn]:
    """What became of each plan. Blocks for as long as it takes to read all traces."""
    report = around.call("GET", "/report")
    texts_by_chat: dict[str, list[str]] = {}
    for message in report["messages"]:
        texts_by_chat.setdefault(message["number"].split("@", 1)[0], []).append(message["text"])
    wall_to_mono_ns = time_ns() - perf_counter_ns()
    traces = {}
    for offset in range(0, 10_000, 1_000):
        page = server.call("GET", f"/api/v1/traces?limit=1000&offset={offset}")
        traces |= {trace["whatsapp_message_id"]: trace for trace in page}
        if len(page) < 1_000:
            break
    turns = []
    for plan in plans:
        trace = traces.get(f"MSG{plan.number}")
        run = report["runs"].get(str(plan.number))
        if trace is None or run is None:
            turns.append(Turn(plan, ["no trace" if trace is None else "the agent was not asked"], 0, [], [], []))
            continue
        document = server.call("GET", f"/api/v1/traces/{trace['trace_id']}/streaming")
        turns.append(_read_turn(plan, document, run, texts_by_chat.get(_phone(plan.number), []), wall_to_mono_ns))
    return turns


def _read_turn(
    plan: StreamPlan, document: dict[str, Any], run: dict[str, Any], sent: list[str], wall_to_mono_ns: int
) -> Turn:
    expected, written_ns = pieces(plan), run["written_ns"]
    faults = list(_faults(document, "".join(expected), expected, sent))
    if faults:
        return Turn(plan, faults, 0, [], written_ns, run["late_ns"])
    ended_ns = run["ended_ns"]
    start_ns = _wall_ns(document["timeline"]["received_at"]) - wall_to_mono_ns
    paced_ns = 0
    for ready_ns in [*(written_ns[index] for index in last_chunks(plan)), ended_ns]:
        paced_ns = max(ready_ns, paced_ns + SPACING_NS)
    chunks = document["streaming_chunks"]
    return Turn(
        plan,
        faults,
        tail_ns=start_ns + int(document["timeline"]["completed_ms"] * 1e6) - paced_ns,
        chunk_delays_ns=[
            start_ns + int(chunk["offset_ms"] * 1e6) - wrote_ns
            for chunk, wrote_ns in zip(chunks, written_ns, strict=True)
        ],
        written_ns=written_ns,
        late_ns=run["late_ns"],
    )


def _faults(document: dict[str, Any], text: str, expected: list[str], sent: list[str]):
    """What is wrong with a turn, by its trace and by what arrived at the phone."""
    if document["ending"] != "completed":
        yield f"ended as {document['ending']} at {document['error_stage']}: {document['error_message']}"
        return
    if [chunk["content"] for chunk in document["streaming_chunks"]] != expected:
        yield "the trace's chunks are not the agent's"
    if document["streaming_complete"]["final_content"] != text:
        yield "the trace's text is not the agent's"
    if sent != messages(text):
        yield "the phone did not get the text whole and in order"
    recorded = document["delivery"]["messages"]
    if [message["text"] for message in recorded] != sent:
        yield "the trace's messages are not those that were sent"
    accepted = [message["accepted_ms"] for message in recorded]
    if any(message["status"] != "accepted" for message in recorded) or any(a >= b for a, b in pairwise(accepted)):
        yield "messages were not accepted one after the other"


def _wall_ns(moment: str) -> int:
    parsed = datetime.fromisoformat(moment)
    since = parsed - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
