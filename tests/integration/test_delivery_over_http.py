"""Delivery through the real Evolution client over loopback: what a reader gets when the other side stumbles."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.evolution import EvolutionChannel
from omni.model import InstanceConfig
from omni.settings import Settings
from omni.testing import FakeClock

WAIT_S = 10

CLOSED = (400, {"status": 400, "error": "Bad Request", "response": {"message": ["Error: Connection Closed"]}})
NOT_THERE = (400, {"status": 400, "response": {"message": [{"jid": "x", "exists": False, "number": "x"}]}})


class Phone:
    """What arrived, by number; ``stumbles`` are answered to the next sends instead of taking them."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.stumbles: list[tuple[int, dict]] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.stumbles:
            status, answer = self.stumbles.pop(0)
            return web.json_response(answer, status=status)
        texts = self.texts.setdefault(body["number"], [])
        texts.append(body["text"])
        return web.json_response({"key": {"id": f"{body['number']}-{len(texts)}"}}, status=201)


@pytest.fixture
async def lab():
    """(phone, delivery, instance) around a server on loopback."""
    phone = Phone()
    app = web.Application()
    app.router.add_post("/message/sendText/shop", phone.take)
    clock = FakeClock()
    async with TestServer(app, host="127.0.0.1") as server, aiohttp.ClientSession() as http:
        settings = Settings(_env_file=None)
        delivery = Delivery(
            EvolutionChannel(lambda: http, settings=settings), clock=clock, settings=settings, sleep=clock.sleep
        )
        yield phone, delivery, InstanceConfig(name="shop", evolution_url=str(server.make_url("/")), evolution_key="k")
        await delivery.aclose(0)


def open_answer(delivery, instance, number):
    return delivery.open_answer(
        instance, f"{number}@s.whatsapp.net", chat_key=f"{number}@s.whatsapp.net", on_outcome=lambda _outcome: None
    )


async def test_ten_answers_at_once_arrive_whole_and_in_order(lab):
    phone, delivery, instance = lab
    answers = [open_answer(delivery, instance, number) for number in range(10)]
    for step in range(5):
        for answer in answers:
            answer.feed(f"parte {step}\n\n", step)
    for answer in answers:
        answer.finish()
    outcomes = await asyncio.wait_for(asyncio.gather(*(answer.wait_done() for answer in answers)), WAIT_S)
    assert phone.texts == {str(number): [f"parte {step}" for step in range(5)] for number in range(10)}
    assert [[each.key_id for each in told] for told in outcomes] == [
        [f"{number}-{count}" for count in range(1, 6)] for number in range(10)
    ]


async def test_a_dropped_whatsapp_socket_costs_time_and_no_text(lab):
    phone, delivery, instance = lab
    phone.stumbles = [CLOSED, CLOSED]
    answer = open_answer(delivery, instance, 7)
    answer.feed("um\n\ndois", 0)
    answer.finish()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert phone.texts == {"7": ["um", "dois"]}
    assert [(each.status, each.attempts) for each in outcomes] == [("accepted", 3), ("accepted", 1)]


async def test_a_number_that_is_not_on_whatsapp_gets_one_attempt(lab):
    phone, delivery, instance = lab
    phone.stumbles = [NOT_THERE]
    answer = open_answer(delivery, instance, 7)
    answer.feed("um\n\ndois", 0)
    answer.finish()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert phone.texts == {}
    assert [(each.status, each.attempts, each.error_kind) for each in outcomes] == [
        ("failed", 1, "not_on_whatsapp"),
        ("not_sent", 0, None),
    ]
