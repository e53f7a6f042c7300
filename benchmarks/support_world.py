"""The world around Omni in a process of its own: a streaming agent and an Evolution API, on one event loop, as cheap as they can be.

Both speak the real wire formats over plain sockets; nothing is between them and the event loop but an HTTP parser, so that hundreds of
streams keep their pace beside the process under test on a small machine. How late each chunk was written is recorded and reported:
a figure is worth no more than its source was punctual. Evolution accepts at once and holds a typing sign's call for as long
as the real one does.

    python -m benchmarks.support_world        prints {"port": ...} and serves until it is terminated
    POST /agents/{id}/runs                    streams what the question's plan says
    POST /message/sendText/{instance}, /chat/sendPresence/{instance}
    GET  /report                              every run and every message so far; times on the machine's monotonic clock, in ns
"""

import asyncio
import gc
import json
import socket
from time import perf_counter_ns
from urllib.parse import parse_qs

import httptools
import msgspec
import uvloop

from benchmarks.support_plan import StreamPlan, offsets_s, pieces, read_plan
from omni.sandbox.evolution_wire import jid_of, sent_message
from omni.sandbox.hive_wire import RunWire, Usage, encode

# The loop's timers count whole milliseconds; a chunk this little early is on time.
_EARLY_NS = 1_000_000
_MARK = "@@text@@"


class World:
    """What happened, for the report."""

    def __init__(self) -> None:
        self.runs: dict[int, dict] = {}
        self.messages: list[dict] = []

    def report(self) -> bytes:
        return msgspec.json.encode({"runs": self.runs, "messages": self.messages})


class Run:
    """Streams one answer on one connection."""

    def __init__(self, world: World, transport: asyncio.Transport, plan: StreamPlan, session_id: str) -> None:
        received_ns = perf_counter_ns()
        self._transport = transport
        self._plan = plan
        self._pieces = pieces(plan)
        self._due_ns = [received_ns + int(offset * 1e9) for offset in offsets_s(plan)]
        self._wire = RunWire(
            dialect="agno3", kind="agent", runner_id="bench", run_id=f"run-{plan.number}", session_id=session_id
        )
        head, tail = encode(self._wire.content(0, _MARK), dialect="agno3").split(f'"{_MARK}"'.encode())
        self._head, self._tail = head, tail
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._written: list[str] = []
        self._record = {"received_ns": received_ns, "written_ns": [], "late_ns": [], "ended_ns": None}
        world.runs[plan.number] = self._record
        transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            + _chunked(encode(self._wire.started(0), dialect="agno3"))
        )
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        wait_ns = self._due_ns[len(self._record["written_ns"])] - perf_counter_ns()
        self._timer = self._loop.call_later(max(wait_ns, 0) / 1e9, self._go_on)

    def _go_on(self) -> None:
        written = self._record["written_ns"]
        while (index := len(written)) < len(self._due_ns):
            now_ns = perf_counter_ns()
            late_ns = now_ns - self._due_ns[index]
            if late_ns < -_EARLY_NS:
                self._wait()
                return
            self._write(f"{now_ns} " if index == 0 and self._plan.is_stamped else self._pieces[index])
            written.append(now_ns)
            self._record["late_ns"].append(max(late_ns, 0))
        self._end()

    def _write(self, text: str) -> None:
        self._written.append(text)
        self._transport.write(_chunked(b"%b%b%b" % (self._head, msgspec.json.encode(text), self._tail)))

    def _end(self) -> None:
        usage = Usage(input_tokens=1, output_tokens=len(self._pieces), first_token_s=0.0, duration_s=0.0)
        last = [*self._wire.content_completed(0), self._wire.completed(0, "".join(self._written), usage)]
        self._record["ended_ns"] = perf_counter_ns()
        self._transport.write(b"".join(_chunked(encode(event, dialect="agno3")) for event in last) + b"0\r\n\r\n")


class Connection(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._parser = httptools.HttpRequestParser(self)
        self._run: Run | None = None

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc) -> None:
        del exc
        if self._run is not None:
            self._run.stop()

    def on_message_begin(self) -> None:
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url = self._url
        if url.startswith(b"/agents/") and not url.endswith(b"/cancel"):  # older agents cannot be told to stop: 404
            form = parse_qs(self._body.decode())
            self._run = Run(self._world, self._transport, read_plan(form["message"][0]), form["session_id"][0])
        elif url.startswith(b"/message/sendText/"):
            self._send_text(msgspec.json.decode(self._body), perf_counter_ns())
        elif url.startswith(b"/chat/sendPresence/"):
            call = msgspec.json.decode(self._body)
            asyncio.get_running_loop().call_later(
                call["delay"] / 1e3, self._answer, b"201 Created", b'{"presence":"composing"}'
            )
        elif url == b"/report":
            self._answer(b"200 OK", self._world.report())
        else:
            self._answer(b"404 Not Found", b'{"detail":"Not Found"}')

    def _send_text(self, call: dict, arrived_ns: int) -> None:
        messages = self._world.messages
        answer = sent_message(
            jid=jid_of(call["number"]),
            text=call["text"],
            key_id=f"KEY{len(messages)}",
            instance_id="bench",
            owner_jid="5511900000000@s.whatsapp.net",
            now_s=0,
            quoted=None,
        )
        messages.append({"number": call["number"], "text": call["text"], "arrived_ns": arrived_ns})
        self._answer(b"201 Created", msgspec.json.encode(answer))

    def _answer(self, status: bytes, body: bytes) -> None:
        if not self._transport.is_closing():
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            self._transport.write(head + body)


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    world = World()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(world), sock=listener)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    gc.disable()  # a collection in the source would look like a stall in what is measured
    uvloop.run(_serve())
