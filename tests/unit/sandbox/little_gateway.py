"""The smallest gateway that can be shown on the phone page: it streams one agent, sends paragraphs, and serves the document.

It is here so that the sandbox can be tested before and without Omni. It keeps no order between chats, retries nothing and trusts
everybody.
"""

import asyncio
import json
import time

import aiohttp
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


class LittleGateway:
    """Serves ``asgi``; ``settings`` are an instance's values as ``sandbox_instance`` gives them."""

    def __init__(self, api_key):
        self.api_key = api_key
        self.settings = None
        self.documents = {}
        self.asgi = Starlette(
            routes=[
                Route("/webhook/evolution/{name}", self._webhook, methods=["POST"]),
                Route("/api/v1/traces/{trace_id}/streaming", self._document),
            ]
        )
        self._tasks = set()
        self._turn_by_key = {}

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _document(self, request):
        if request.headers.get("x-api-key") != self.api_key:
            return JSONResponse({"detail": "Invalid API key"}, 401)
        turn = self.documents.get(request.path_params["trace_id"])
        return JSONResponse(turn.document()) if turn else JSONResponse({"detail": "unknown"}, 404)

    async def _webhook(self, request):
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"detail": "Invalid API key"}, 401)
        envelope = await request.json()
        data = envelope["data"]
        if envelope["event"] == "messages.update":
            turn, message = self._turn_by_key[data["keyId"]]
            message[{"DELIVERY_ACK": "delivered_ms", "READ": "read_ms"}[data["status"]]] = turn.now_ms()
            message["status"] = {"DELIVERY_ACK": "delivered", "READ": "read"}[data["status"]]
        if envelope["event"] != "messages.upsert":
            return JSONResponse({"status": "success", "instance": envelope["instance"]})
        trace_id = f"trace-{data['key']['id'][:12]}"
        turn = self.documents[trace_id] = Turn(trace_id)
        task = asyncio.get_running_loop().create_task(self._answer(turn, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return JSONResponse({"status": "success", "instance": envelope["instance"], "trace_id": trace_id})

    async def _answer(self, turn, data):
        values = self.settings
        async with aiohttp.ClientSession() as http:
            evolution = {"url": values["evolution_url"], "headers": {"apikey": values["evolution_key"]}}
            read = {"readMessages": [{"id": data["key"]["id"], "fromMe": False, "remoteJid": data["key"]["remoteJid"]}]}
            await self._call(http, evolution, "/chat/markMessageAsRead/", read)
            typing = asyncio.ensure_future(self._show_typing(http, evolution, data["key"]["remoteJid"]))
            ready = asyncio.Queue()
            sender = asyncio.ensure_future(self._send_all(http, evolution, turn, ready, data["key"]["remoteJid"]))
            try:
                await self._read_stream(http, turn, ready, data["message"]["conversation"])
                await ready.put(None)
                await sender
            finally:
                typing.cancel()
                sender.cancel()
            await self._call(http, evolution, "/chat/sendPresence/", _presence(data["key"]["remoteJid"], "paused", 0))
        turn.completed_ms = turn.now_ms()

    async def _read_stream(self, http, turn, ready, message):
        url = f"{self.settings['agent_api_url']}/agents/{self.settings['agent_id']}/runs"
        headers = {"Authorization": f"Bearer {self.settings['agent_api_key']}"}
        turn.request_ms = turn.now_ms()
        root, pending, first = None, "", 0
        try:
            async with http.post(url, data={"message": message, "stream": "true"}, headers=headers) as answer:
                async for line in answer.content:
                    turn.first_byte_ms = turn.first_byte_ms or turn.now_ms()
                    if not line.startswith(b"data: "):
                        continue
                    event = json.loads(line[6:])
                    root = root or event["run_id"]
                    if event["run_id"] != root:
                        continue
                    turn.num_tools += event["event"] == "ToolCallStarted"
                    if event["event"] == "RunContent":
                        turn.add_chunk(event["content"])
                        *done, pending = (pending + event["content"]).split("\n\n")
                        for text in done:
                            await ready.put((text, first, len(turn.chunks) - 1))
                            first = len(turn.chunks) - 1
                    if event["event"] in ("RunCompleted", "RunError", "RunPaused"):
                        turn.end(
                            {"RunCompleted": "completed", "RunError": "error", "RunPaused": "paused"}[event["event"]]
                        )
        except aiohttp.ClientPayloadError:
            turn.end("incomplete")
        turn.end("incomplete")
        if pending.strip():
            await ready.put((pending, first, len(turn.chunks) - 1))

    async def _send_all(self, http, evolution, turn, ready, recipient):
        while (item := await ready.get()) is not None:
            text, first, last = item
            message = turn.queue_message(text, first, last)
            answer = await self._call(http, evolution, "/message/sendText/", {"number": recipient, "text": text})
            message.update(key_id=answer["key"]["id"], accepted_ms=turn.now_ms(), status="accepted")
            self._turn_by_key[message["key_id"]] = (turn, message)

    async def _show_typing(self, http, evolution, recipient):
        while True:
            await self._call(http, evolution, "/chat/sendPresence/", _presence(recipient, "composing", 1000))

    async def _call(self, http, evolution, path, body):
        url = evolution["url"] + path + self.settings["whatsapp_instance"]
        async with http.post(url, json=body, headers=evolution["headers"]) as answer:
            return await answer.json()


def _presence(number, state, delay_ms):
    return {"number": number, "presence": state, "delay": delay_ms}


class Turn:
    """One turn's facts, and the document the panel reads."""

    def __init__(self, trace_id):
        self.trace_id = trace_id
        self.start_s = time.perf_counter()
        self.received_at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        self.request_ms = self.first_byte_ms = self.stream_end_ms = self.completed_ms = None
        self.ending = None
        self.num_tools = 0
        self.chunks = []
        self.messages = []

    def now_ms(self):
        return round((time.perf_counter() - self.start_s) * 1000, 1)

    def end(self, ending):
        if self.ending is None:
            self.ending = ending
            self.stream_end_ms = self.now_ms()

    def add_chunk(self, text):
        index = len(self.chunks)
        chunk = {
            "chunk_index": index,
            "content": text,
            "size": len(text),
            "offset_ms": self.now_ms(),
            "event_type": "RunContent",
        }
        self.chunks.append(chunk)

    def queue_message(self, text, first, last):
        message = {"index": len(self.messages), "text": text, "key_id": None, "first_chunk": first, "last_chunk": last}
        message |= {"queued_ms": self.now_ms(), "accepted_ms": None, "delivered_ms": None, "read_ms": None}
        message |= {"status": "pending", "attempts": 1, "error": None}
        self.messages.append(message)
        return message

    def document(self):
        first = self.chunks[0]["offset_ms"] if self.chunks else None
        last = self.chunks[-1]["offset_ms"] if self.chunks else None
        size = sum(chunk["size"] for chunk in self.chunks)
        accepted = [m["accepted_ms"] for m in self.messages if m["accepted_ms"] is not None]
        streamed = None if self.stream_end_ms is None else self.stream_end_ms - self.request_ms
        text = "".join(chunk["content"] for chunk in self.chunks)
        failed = self.ending not in (None, "completed")
        return {
            "trace_id": self.trace_id,
            "instance_name": "sandbox",
            "status": "processing" if self.completed_ms is None else "failed" if failed else "completed",
            "ending": self.ending,
            "error_stage": "streaming_error" if failed else None,
            "error_message": f"the run ended as {self.ending}" if failed else None,
            "received_at": self.received_at,
            "streaming_request": None,
            "first_token": None,
            "streaming_chunks": self.chunks,
            "streaming_complete": {"final_content": text} if self.ending == "completed" else None,
            "agent_response": None,
            "delivery": self._delivery(accepted, last),
            "timeline": {
                "received_at": self.received_at,
                "request_ms": self.request_ms,
                "first_byte_ms": self.first_byte_ms,
                "first_event_ms": self.first_byte_ms,
                "first_token_ms": first,
                "last_chunk_ms": last,
                "stream_end_ms": self.stream_end_ms,
                "first_message_ms": accepted[0] if accepted else None,
                "completed_ms": self.completed_ms,
                "first_token_latency_ms": None if first is None else first - self.request_ms,
                "total_streaming_time_ms": streamed,
                "total_chunks": len(self.chunks),
                "total_content_length": size,
                "num_tools": self.num_tools,
                "ending": self.ending,
                "stages": self._stages(first),
            },
        }

    def _delivery(self, accepted, last):
        count = {
            status: sum(m["status"] == status for m in self.messages) for status in ("accepted", "delivered", "read")
        }
        delivered = count["delivered"] + count["read"]
        return {
            "messages": self.messages,
            "sent": len(self.messages),
            "accepted": len(accepted),
            "delivered": delivered,
            "read": count["read"],
            "unknown": len(accepted) - delivered,
            "failed": 0,
            "success_percent": None,
            "tail_lag_ms": accepted[-1] - last if self.completed_ms is not None and accepted else None,
        }

    def _stages(self, first):
        if self.completed_ms is None:
            return dict.fromkeys(
                ("queue_ms", "agent_wait_ms", "stream_ms", "delivery_tail_ms", "unaccounted_ms", "turn_total_ms")
            )
        first = self.stream_end_ms if first is None else first
        return {
            "queue_ms": self.request_ms,
            "agent_wait_ms": first - self.request_ms,
            "stream_ms": self.stream_end_ms - first,
            "delivery_tail_ms": self.completed_ms - self.stream_end_ms,
            "unaccounted_ms": 0,
            "turn_total_ms": self.completed_ms,
        }
