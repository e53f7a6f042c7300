"""A streaming agent in a process of its own that does nothing but write: one long run, in a burst or paced.

Unlike ``support_world``, which keeps hundreds of streams on time, this one serves one connection at a time from a blocking socket and
has every byte ready before it answers, so that in a burst the reader is the slower side. What it is to send is asked for as the
run's message, a ``Stream`` as JSON; each event is an HTTP chunk of its own, as servers send them.

    python -m benchmarks.support_stream       prints {"port": ...} and serves until it is terminated
"""

import json
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import sleep
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from omni.sandbox.hive_wire import RunWire, Usage, encode

START_GAP_S = 0.005
"""Between the first event and the rest: whoever reads has dealt with the one when the other comes, and can take the time in between."""


class Stream(Struct, frozen=True, kw_only=True):
    """What one run sends: pieces of text, all at once or each ``gap_us`` microseconds (and a little) after the one before."""

    num_pieces: int
    gap_us: int | None = None

    def question(self) -> str:
        """The stream as the text a user writes."""
        return msgspec.json.encode(self).decode()

    def text(self) -> str:
        """The whole answer."""
        return "".join(_pieces(self.num_pieces))


@lru_cache(maxsize=8)
def events_of(stream: Stream) -> tuple[bytes, ...]:
    """The events of a run in order, as a current Hive (Agno 3) frames them: its start, its pieces, and one write with its end."""
    wire = RunWire(
        dialect="agno3",
        kind="agent",
        runner_id="wire",
        run_id="f8e38acc-dcb4-4df6-aeb9-6b25b539283f",
        session_id="5511999990000-agent_tool",
    )
    usage = Usage(input_tokens=1, output_tokens=stream.num_pieces, first_token_s=0.1, duration_s=1.0)
    now_s = 1_795_342_665
    events = [
        wire.started(now_s),
        *(wire.content(now_s, piece) for piece in _pieces(stream.num_pieces)),
        wire.completed(now_s, stream.text(), usage),
    ]
    return tuple(encode(event, dialect="agno3") for event in events)


def _pieces(num: int) -> list[str]:
    """Every piece says which it is, so that one too many or too few is noticed."""
    return [f" consultar item {index:05d}" for index in range(num)]


class _Handler(BaseHTTPRequestHandler):
    """Answers every POST with the stream that is asked for, and closes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        stream = msgspec.json.decode(form["message"][0], type=Stream)
        first, *rest = (b"%x\r\n%b\r\n" % (len(event), event) for event in events_of(stream))
        rest[-1] += b"0\r\n\r\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(first)
        sleep(START_GAP_S)
        if stream.gap_us is None:
            self.wfile.write(b"".join(rest))
            return
        for event in rest:
            sleep(stream.gap_us / 1e6)
            self.wfile.write(event)

    def log_message(self, *args) -> None:
        """Requests are not news here."""


if __name__ == "__main__":
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(json.dumps({"port": server.server_port}), flush=True)
        server.serve_forever()
