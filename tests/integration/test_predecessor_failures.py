"""What the predecessor did wrong on the wire, each put before the whole of Omni: webhook in, these bytes from the agent, messages out.

The failures were observed by running the predecessor; F-numbers name them. Everything is real but WhatsApp and the agent: the server,
its database, its clients, over real sockets, in one process. The agent server streams exactly the bytes a case holds.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.e2e.agents import serve_pieces
from tests.e2e.processes import OmniServer
from tests.e2e.whatsapp import World, open_api, open_whatsapp

from omni.app import create_app
from omni.sandbox.evolution_wire import Contact
from omni.sandbox.loopback import serve_on_loopback
from omni.settings import Settings

API_KEY = "a key for these tests, long enough"
CUT_SHORT = "Sorry, I had to stop before I was done. Please ask me again."
NO_ANSWER = "Sorry, I could not answer just now. Please try again in a moment."


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A whole Omni in this process, and the person who writes to it."""
    settings = Settings(api_key=API_KEY, sqlite_database_path=tmp_path / "omni.db", typing_indicator=False)
    app = create_app(settings, base_url="", with_sandbox=False)
    async with serve_on_loopback(app) as url, open_whatsapp() as whatsapp:
        server = OmniServer(base_url=url, api_key=API_KEY, folder=tmp_path, settings={})
        async with open_api(server) as api:
            yield World(server, api, whatsapp)


def event(name: str, **fields: Any) -> bytes:
    """One event of the run as a compact JSON object."""
    told = {"event": name, "run_id": "r-1", "session_id": "s-1", **fields}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def delta(text: Any, name: str = "RunResponseContent") -> bytes:
    return event(name, content=text)


def lines(*events: bytes) -> list[bytes]:
    """One object and a line end per piece."""
    return [each + b"\n" for each in events]


def sse(each: bytes, *, space: str = " ") -> bytes:
    name = json.loads(each)["event"]
    return f"event:{space}{name}\ndata:{space}".encode() + each + b"\n\n"


STARTED = event("RunStarted")
DONE = event("RunCompleted", content="Por que?\n\nPorque sim! 🐛")
TWO = [delta("Por que?\n\n"), delta("Porque sim! 🐛")]
BUBBLES = ["Por que?", "Porque sim! 🐛"]

CORACAO = lines(STARTED, delta("coração é 🐛 fim"), event("RunCompleted"))
GLUED = b"".join([STARTED, delta('chaves }{ e {"event":"RunCompleted"}'), delta(" fim"), event("RunCompleted")])
NEW_EVENTS = [
    event(name, content="not for the user", tool={"tool_name": "get_stock"})
    for name in (
        "ToolCallStarted",
        "ToolCallCompleted",
        "TeamToolCallStarted",
        "TeamToolCallCompleted",
        "ReasoningStarted",
        "ReasoningStep",
        "MemoryUpdateStarted",
        "MemoryUpdateCompleted",
        "ModelRequestStarted",
        "ModelRequestCompleted",
        "RunContentCompleted",
        "SomethingNobodyHasInventedYet",
    )
]


class Case(NamedTuple):
    """What an agent's bytes have to lead to."""

    pieces: list[bytes]
    bubbles: list[str]
    ending: str = "completed"
    text: str | None = None


CASES = {
    "F3 deltas and a full text at the end are one answer": Case(lines(STARTED, *TWO, DONE), BUBBLES),
    "F11 no RunCompleted: the tail is sent and the turn is incomplete": Case(
        lines(STARTED, delta("Primeira parte.\n\nSegunda"), delta(" parte")),
        ["Primeira parte.", "Segunda parte", CUT_SHORT],
        ending="incomplete",
    ),
    "F11 only data: [DONE]": Case([b"data: [DONE]\n\n"], [NO_ANSWER], ending="incomplete"),
    "F12 the last line has no line end": Case([*lines(STARTED, *TWO), DONE], BUBBLES),
    "F12 an odd number of objects, one per piece, with nothing between": Case(
        [STARTED, *TWO, event("X"), DONE], BUBBLES
    ),
    "F13 pieces end inside characters": Case(
        [bytes([byte]) for byte in b"".join(CORACAO)], ["coração é 🐛 fim"], text="coração é 🐛 fim"
    ),
    "F14 glued objects are cut in their middle, and text holds }{": Case(
        [GLUED[:150], GLUED[150:151], GLUED[151:]],
        ['chaves }{ e {"event":"RunCompleted"} fim'],
    ),
    "F15 one line of garbage": Case(lines(STARTED, TWO[0], b"<<< not JSON >>>", TWO[1], DONE), BUBBLES),
    "F16 data: without a space": Case([sse(each, space="") for each in (STARTED, *TWO, DONE)], BUBBLES),
    "F17 new names, tools, reasoning and the unknown end nothing": Case(
        [
            sse(each)
            for each in (
                STARTED,
                delta("Por que?\n\n", "RunContent"),
                *NEW_EVENTS,
                delta("Porque sim! 🐛", "RunContent"),
                DONE,
            )
        ],
        BUBBLES,
    ),
    "F18 a full text and no deltas": Case(lines(STARTED, DONE), BUBBLES),
    "F19 content that is null is no text": Case(lines(STARTED, delta(None), *TWO, DONE), BUBBLES),
    "F19 content that is an object is shown as JSON": Case(
        lines(STARTED, delta({"total": 4}), event("RunCompleted")), ['{"total": 4}']
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_bytes_the_predecessor_lost_reach_the_user(world: World, name: str) -> None:
    """F3, F11 to F19: nothing lost, nothing twice, and an end that is called what it was."""
    case = CASES[name]
    async with serve_pieces(*case.pieces) as url:
        instance = await world.add_instance(url, agent="genie")
        document = await world.ended(await world.ask(instance, "Por que?"))

    assert world.whatsapp.bubbles == case.bubbles
    assert document["ending"] == case.ending
    joined = "".join(chunk["content"] for chunk in document["streaming_chunks"])
    if case.ending == "completed":
        assert document["timeline"]["content_verified"] is True
        assert document["streaming_complete"]["final_content"] == joined
    if case.text is not None:
        assert joined == case.text


async def test_every_one_of_a_hundred_chunks_is_kept_whole(world: World) -> None:
    """F8: the predecessor kept one chunk in ten, and of that 100 characters."""
    pieces = [f"{number:03d} {'x' * 116}\n" for number in range(100)]
    async with serve_pieces(*lines(STARTED, *map(delta, pieces), event("RunCompleted"))) as url:
        instance = await world.add_instance(url, agent="genie")
        document = await world.ended(await world.ask(instance, "Count"))

    kept = [(chunk["chunk_index"], chunk["content"], chunk["size"]) for chunk in document["streaming_chunks"]]
    assert kept == [(number, piece, 121) for number, piece in enumerate(pieces)]
    assert (document["timeline"]["total_chunks"], document["timeline"]["total_content_length"]) == (100, 12_100)
    # A line longer than WhatsApp takes was sent as it was; here every message fits, and none is lost.
    assert all(len(bubble) <= 4096 for bubble in world.whatsapp.bubbles)
    assert "\n".join(world.whatsapp.bubbles) == "".join(pieces).rstrip("\n")


async def test_a_number_is_taken_as_it_stands(world: World) -> None:
    """F35: no country code is guessed for a number of eleven digits; F36: an instance without default_agent can be made."""
    world.whatsapp.evolution.contact = Contact(phone="14155550100", name="Ann")
    async with serve_pieces(*lines(STARTED, delta("Hi Ann"), event("RunCompleted"))) as url:
        instance = await world.add_instance(url, agent="genie")
        trace_id = await world.ask(instance, "Hi")
        await world.ended(trace_id)

    row = await world.api.call("GET", f"/api/v1/traces/{trace_id}")
    assert (row["sender_phone"], row["session_name"]) == ("14155550100", f"{instance}_14155550100")
    assert [message.number for message in world.whatsapp.evolution.sent] == ["14155550100"]
