"""Delivery through the real Evolution client over loopback: what a reader gets when the other side stumbles."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.evolution import EvolutionChannel
from omni.channels.whatsapp.webhook import parse_event
from omni.clock import SystemClock
from omni.model import InstanceConfig, SentEcho
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.server import EVOLUTION_KEY, Sandbox
from omni.settings import Settings
from omni.testing import FakeClock, MemoryLedger

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


class Gateway:
    """A delivery with a ledger that talks to a simulated Evolution and hears its webhooks. Its pauses take no time."""

    def __init__(self, sandbox, http, base_url, **knobs):
        clock = SystemClock()
        settings = Settings(_env_file=None, **{"send_attempts": 3, "send_timeout_ms": 250, **knobs})
        self.sandbox = sandbox
        self.ledger = MemoryLedger()
        self.channel = EvolutionChannel(lambda: http, settings=settings, clock=clock)
        self.instance = InstanceConfig(
            name="sandbox", evolution_url=f"{base_url}/evolution", evolution_key=EVOLUTION_KEY
        )
        self.parts = {"clock": clock, "settings": settings, "ledger": self.ledger}
        self.delivery = self.new_delivery()

    def new_delivery(self, sleep=lambda _s: asyncio.sleep(0)):
        return Delivery(self.channel, sleep=sleep, **self.parts)

    async def take_webhook(self, request: web.Request) -> web.Response:
        for item in parse_event(await request.json(), instance_name="sandbox").items:
            if isinstance(item, SentEcho):
                self.delivery.note_echo(item)
        return web.json_response({})

    def open(self):
        return open_answer(self.delivery, self.instance, "5511999990001")

    async def deliver(self, text):
        answer = self.open()
        answer.feed(text, 0)
        answer.finish()
        return await asyncio.wait_for(answer.wait_done(), WAIT_S)

    @property
    def phone(self):
        """The texts that really arrived, in order."""
        return [sent.text for sent in self.sandbox.evolution.sent]

    @property
    def states(self):
        return [self.ledger.outbox[uid].state for uid in sorted(self.ledger.outbox)]


@pytest.fixture
async def gateway():
    async with (
        Sandbox(speed=0, receipts=False) as sandbox,
        serve_on_loopback(sandbox.asgi) as base_url,
        aiohttp.ClientSession() as http,
    ):
        made = Gateway(sandbox, http, base_url)
        app = web.Application()
        app.router.add_post("/hook", made.take_webhook)
        async with TestServer(app, host="127.0.0.1") as server:
            made.webhook_url = str(server.make_url("/hook"))
            yield made
            await made.delivery.aclose(0)
            sandbox.hang_up()
            await sandbox.tasks.idle()


def told(outcomes):
    return [(each.status, each.attempts, each.error_kind) for each in outcomes]


SENT = ("accepted", 1, None)


@pytest.mark.parametrize("fault", ["hang_sent", "cut_answer"])
async def test_a_message_that_went_out_without_an_answer_is_found_and_not_sent_twice(gateway, fault):
    """No webhook says so here: it is found among the messages Evolution keeps."""
    await gateway.deliver("zero")
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == ["zero", "um", "dois"]
    assert told(outcomes) == [SENT, SENT]
    assert [each.key_id for each in outcomes] == [sent.key_id for sent in gateway.sandbox.evolution.sent[1:]]


@pytest.mark.parametrize("fault", ["hang_sent", "cut_answer"])
async def test_evolutions_own_word_settles_a_send_without_a_search(gateway, fault):
    gateway.sandbox.post_webhooks_to(gateway.webhook_url)
    gateway.delivery = gateway.new_delivery(asyncio.sleep)
    gateway.sandbox.evolution.instances["sandbox"].rows.keeps = False
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um")
    assert (gateway.phone, told(outcomes)) == (["um"], [SENT])
    assert [call.path for call in gateway.sandbox.evolution.calls if "find" in call.path] == []


@pytest.mark.parametrize("fault", ["hang_unsent", "cut_unsent"])
async def test_a_message_that_did_not_go_out_is_sent_again(gateway, fault):
    await gateway.deliver("zero")
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == ["zero", "um", "dois"]
    assert told(outcomes) == [("accepted", 2, None), SENT]
    assert gateway.states == ["accepted"] * 3


@pytest.mark.parametrize(("fault", "phone"), [("cut_answer", ["um", "dois"]), ("cut_unsent", ["dois"])])
async def test_without_kept_messages_nothing_is_sent_twice_and_the_doubt_is_told(gateway, fault, phone):
    gateway.sandbox.evolution.instances["sandbox"].rows.keeps = False
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == phone
    assert told(outcomes) == [("failed", 1, "ambiguous"), SENT]
    assert gateway.states == ["failed", "accepted"]


async def test_a_database_that_fails_behind_the_send_makes_no_double(gateway):
    """Neither a row nor an event is left of it; the message is on the phone."""
    await gateway.deliver("zero")
    gateway.sandbox.evolution.fail_next("not_kept")
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == ["zero", "um", "dois"]
    assert told(outcomes) == [("failed", 1, "ambiguous"), SENT]


async def test_an_evolution_that_is_away_while_it_is_asked_is_asked_again(gateway):
    await gateway.deliver("zero")
    gateway.sandbox.evolution.fail_next("cut_answer")
    gateway.sandbox.evolution.fail_next("unavailable", 2, call="findMessages")
    outcomes = await gateway.deliver("um")
    assert (gateway.phone, told(outcomes)) == (["zero", "um"], [SENT])


@pytest.mark.parametrize(
    "fault",
    [
        "connection_closed",
        "timed_out",
        "stream_errored",
        "rate_overlimit",
        "never_connected",
        "server_error",
        "unavailable",
        "too_many_requests",
        "bad_gateway",
    ],
)
async def test_passing_errors_cost_an_attempt_and_no_text(gateway, fault):
    await gateway.deliver("zero")
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == ["zero", "um", "dois"]
    assert told(outcomes) == [("accepted", 2, None), SENT]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("not_on_whatsapp", "not_on_whatsapp"),
        ("wrong_shape", "rejected"),
        ("text_required", "rejected"),
        ("method_not_available", "rejected"),
        ("unauthorized", "unauthorized"),
        ("unknown_instance", "unknown_instance"),
    ],
)
async def test_lasting_errors_end_the_answer_and_all_of_its_text_is_told(gateway, fault, kind):
    gateway.sandbox.evolution.fail_next(fault)
    outcomes = await gateway.deliver("um\n\ndois")
    assert gateway.phone == []
    assert told(outcomes) == [("failed", 1, kind), ("not_sent", 0, None)]
    assert gateway.states == ["failed", "not_sent"]


async def test_a_new_process_finds_the_message_the_old_one_died_on(gateway):
    """The old process is cut off in the middle of a call; its ledger rows are all the new one has."""
    evolution = gateway.sandbox.evolution
    await gateway.deliver("zero")
    evolution.fail_next("hang_sent")
    arrived = asyncio.Event()
    evolution.listen(lambda _: arrived.set())
    answer = gateway.open()
    answer.feed("um\n\ndois\n\n", 0)
    await asyncio.wait_for(arrived.wait(), WAIT_S)
    rows = [row for row in gateway.ledger.outbox.values() if row.state in ("queued", "sending")]
    assert [(row.index, row.state) for row in rows] == [(0, "sending"), (1, "queued")]
    await gateway.delivery.aclose(0)
    gateway.delivery = gateway.new_delivery()
    resumed = gateway.delivery.resume_answer(
        gateway.instance,
        "5511999990001@s.whatsapp.net",
        chat_key="5511999990001@s.whatsapp.net",
        on_outcome=lambda _: None,
        records=rows,
        answer_id=rows[0].answer_id,
        trace_id=None,
    )
    resumed.feed_rest("um\n\ndois\n\ntrês")
    resumed.notice("desculpe")
    resumed.finish()
    outcomes = await asyncio.wait_for(resumed.wait_done(), WAIT_S)
    assert gateway.phone == ["zero", "um", "dois", "três", "desculpe"]
    assert told(outcomes) == [SENT] * 4
