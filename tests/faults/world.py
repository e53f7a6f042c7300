"""One fault run's world: a real ``omni serve`` process on real data, and around it, in this process, everybody it talks to.

People write through a simulated Evolution whose webhooks a ``Carrier`` brings; a ``MarkedAgent`` answers; sends pass a ``Front`` that may
make them go wrong. Everybody keeps books. ``Run`` is one plan carried out and, when all is quiet again, judged.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter_ns

import aiohttp
from tests.e2e.processes import run_omni
from tests.e2e.whatsapp import EVOLUTION_KEY, WhatsApp, open_api
from tests.e2e.whatsapp import World as Shop
from tests.faults.account import Account
from tests.faults.agent import AGENT_ID, AGENT_KEY, Asked, MarkedAgent, serve_agent
from tests.faults.books import Accepted, Books, Kept
from tests.faults.carrier import UPSERT, Carrier, Posted
from tests.faults.checker import judge
from tests.faults.conftest import IS_SOAK
from tests.faults.front import Front
from tests.faults.plans import RunPlan, TurnPlan, person
from tests.faults.reading import DatabaseReader
from tests.faults.server import OmniProcess

from omni.clock import NS_PER_MS, NS_PER_S, SystemClock
from omni.errors import StoreError
from omni.sandbox.evolution import DELIVERED_THEN_READ, SimulatedEvolution
from omni.sandbox.evolution_routes import evolution_app
from omni.sandbox.evolution_wire import jid_of, written_message
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.pacing import Pace, TaskOwner

EVOLUTION_SPEED = 4.0
"""Times lifelike: a send takes 15 ms, receipts come after 0.1 s and 0.4 s."""
SETTLE_S = 30.0
"""Longest nothing may happen although somebody is said to be at work."""
GIVE_UP_S = 7.0
"""What is still open when nothing has moved for this long, with nobody at work, stays open: it is judged as it is."""
_LOOK_AGAIN_S = 0.05
_MARGIN = timedelta(seconds=5)


class World:
    """Everybody around one Omni, and that Omni. Use ``open_world``."""

    def __init__(self, server: OmniProcess, *, seed: int, receipts: bool = True) -> None:
        self.server = server
        self.seed = seed
        self.clock = SystemClock()
        self.tasks = TaskOwner()
        self.num_events = 0
        self.instance = ""
        self._changed = asyncio.Event()
        self.carrier = Carrier(clock=self.clock, tasks=self.tasks, seed=seed, on_event=self.note_event)
        self.agent = MarkedAgent(clock=self.clock, tasks=self.tasks, on_event=self.note_event)
        self.evolution = SimulatedEvolution(
            api_key=EVOLUTION_KEY,
            poster=self.carrier,  # type: ignore[arg-type] # does the same with more books
            tasks=self.tasks,
            pace=Pace(EVOLUTION_SPEED),
            clock=self.clock,
            receipts=DELIVERED_THEN_READ if receipts else (),
        )
        self.front = Front(evolution_app(self.evolution), on_event=self.note_event)
        self._evolution_url = ""
        self._agent_url = ""
        self._reader: DatabaseReader | None = None

    def note_event(self) -> None:
        """Something happened."""
        self.num_events += 1
        self._changed.set()

    async def next_change(self) -> None:
        """Wait until something happens, or a moment."""
        self._changed.clear()
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._changed.wait()
        except TimeoutError:
            return

    async def until(self, is_so: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Wait until something is so. Raises AssertionError when it is not in time."""
        deadline_ns = perf_counter_ns() + int(within_s * NS_PER_S)
        while not is_so():
            assert perf_counter_ns() < deadline_ns, f"not within {within_s} s: {what}"
            await self.next_change()

    async def until_events(self, number: int, *, within_s: float = SETTLE_S) -> None:
        """Wait until this many things have happened since the world began, or nobody is at work any more."""
        await self.until(lambda: self.num_events >= number, within_s=within_s, what=f"{number} events")

    async def start(self) -> None:
        """Start Omni, the first time or again; webhooks find it from then on."""
        await self.server.start()
        await self.find_server()

    async def find_server(self) -> None:
        """Let webhooks find a server that was just started; configure the instance the first time."""
        self.carrier.base_url = self.server.base_url
        if not self.instance:
            await self.add_instance()

    async def add_instance(self) -> None:
        """Configure another instance; people write to it from then on."""
        async with open_api(self.server.address) as api:
            shop = Shop(self.server.address, api, WhatsApp(self.evolution, self._evolution_url))
            self.instance = await shop.add_instance(self._agent_url, agent_key=AGENT_KEY, agent=AGENT_ID)

    def reader(self) -> DatabaseReader:
        """Another process's view of the database; opened when first asked for."""
        if self._reader is None:
            self._reader = DatabaseReader(database_url(self.server))
        return self._reader

    def begin(self, plan: RunPlan) -> "Run":
        """Begin a run; nobody has written yet."""
        self.agent.learn(plan.turns)
        return Run(self, plan)

    async def health(self) -> dict[str, object] | None:
        """What the health route says; None when nobody answers."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{self.server.base_url}/health") as response,
            ):
                return json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def disagreements(self) -> tuple[str, ...]:
        """What ``omni traces verify --all`` finds wrong, line by line.

        Where time matters the checks are made here: the command makes the same ones and takes seconds to start.
        """
        if not IS_SOAK:
            return await asyncio.to_thread(self.reader().disagreements)
        ended = await run_omni("traces", "verify", "--all", folder=self.server.folder, settings=self.server.settings)
        if ended.exit_code == 0:
            return ()
        return tuple((ended.stdout + ended.stderr).strip().splitlines()) or (f"exit code {ended.exit_code}",)

    @asynccontextmanager
    async def _everybody(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(self.server.end)
            stack.callback(self._close_reader)
            self._evolution_url = await stack.enter_async_context(serve_on_loopback(self.front))
            self._agent_url = await stack.enter_async_context(serve_agent(self.agent))
            await self.carrier.start()
            stack.push_async_callback(self.carrier.stop)
            stack.push_async_callback(self.tasks.stop)
            yield

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()


@asynccontextmanager
async def open_world(
    folder: Path, *, seed: int, database_url: str = "", receipts: bool = True, **settings: str
) -> AsyncIterator[World]:
    """A world with a running Omni while the block runs; whatever happens in it, no process is left."""
    world = World(OmniProcess(folder, database_url=database_url, **settings), seed=seed, receipts=receipts)
    async with world._everybody():
        await world.start()
        yield world


def database_url(server: OmniProcess) -> str:
    """The database the server is on."""
    given = server.settings["AUTOMAGIK_OMNI_DATABASE_URL"]
    path = server.settings.get("AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH", "data/automagik-omni.db")
    return given or f"sqlite:///{server.folder / path}"


class Run:
    """One plan carried out."""

    def __init__(self, world: World, plan: RunPlan) -> None:
        self.world = world
        self.plan = plan
        self.first_event = world.num_events
        self.began_at = datetime.now(UTC)
        self._pace = Pace()
        self._message_ids = [turn.mark.message_id for turn in plan.turns]
        self._chats = {jid_of(person(plan.run, chat).phone): chat for chat in plan.chats}

    def write_all(
        self,
        *,
        chats: Iterable[int] | None = None,
        sent_s_ago: Callable[[TurnPlan], int] = lambda _: 0,
        in_turn: bool = True,
    ) -> None:
        """Have people write what they have to say: each one message after the other was taken, or all at once."""
        for chat in self.plan.chats if chats is None else chats:
            turns = self.plan.of_chat(chat)
            groups = [turns] if in_turn else [[turn] for turn in turns]
            for group in groups:
                self.world.tasks.spawn(self._write(group, sent_s_ago), name="a person")

    async def write_again(self, *, sent_s_ago: int) -> None:
        """Have every webhook of the run posted once more, as a late retry would be, and wait until all are through."""
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*(self._write([turn], lambda _: sent_s_ago) for turn in self.plan.turns))

    async def _write(self, turns: Iterable[TurnPlan], sent_s_ago: Callable[[TurnPlan], int]) -> None:
        evolution = self.world.evolution
        for turn in turns:
            await self._pace.pause(turn.wait_s)
            data = written_message(
                person(self.plan.run, turn.mark.chat),
                text=turn.question,
                message_id=turn.mark.message_id,
                instance_id=evolution.instances[self.world.instance].id,
                sent_at_s=self.world.clock.wall_ns() // NS_PER_S - sent_s_ago(turn),
                addressing="pn",
            )
            await evolution.emit(self.world.instance, UPSERT, data)

    @property
    def posted(self) -> tuple[Posted, ...]:
        """The books of this run's webhooks."""
        known = self.world.carrier.posted
        return tuple(known[message_id] for message_id in self._message_ids if message_id in known)

    @property
    def num_acknowledged(self) -> int:
        """How many of this run's messages Omni has acknowledged."""
        return sum(book.acknowledged_ns is not None for book in self.posted)

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What the agent was asked in this run."""
        return tuple(asked for asked in self.world.agent.asked if asked.mark.run == self.plan.run)

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """What Evolution has sent in this run's chats."""
        return tuple(
            Accepted(
                chat=self._chats[sent.jid],
                text=sent.text,
                key_id=sent.key_id,
                received_ns=sent.received_ns,
                accepted_ns=sent.accepted_ns,
            )
            for sent in self.world.evolution.sent
            if sent.jid in self._chats
        )

    @property
    def num_sent(self) -> int:
        """How many messages Evolution has sent in this run's chats."""
        return sum(sent.jid in self._chats for sent in self.world.evolution.sent)

    async def settled(self) -> None:
        """Wait until nothing moves any more: everybody has written, Omni is idle, and the database says so; or has given up moving."""
        world = self.world
        moved_ns = quiet_since_ns = perf_counter_ns()
        last_events = -1
        while (now_ns := perf_counter_ns()) - moved_ns < SETTLE_S * NS_PER_S:
            if world.num_events != last_events:
                moved_ns = quiet_since_ns = now_ns
                last_events = world.num_events
            elif not await self._is_idle():
                quiet_since_ns = now_ns
            elif now_ns - quiet_since_ns > GIVE_UP_S * NS_PER_S or await self._is_settled():
                return
            await world.next_change()

    async def kept(self) -> Kept:
        """What the database holds of this run, as another process reads it. Raises StoreError while it is away."""
        reader = self.world.reader()
        reader.since = self.began_at - _MARGIN
        return await asyncio.to_thread(reader.read, self._message_ids)

    async def judged(self, *, with_verify: bool = False) -> Account:
        """The account of this run, printed; call it when all has settled."""
        books = Books(
            plan=self.plan,
            posted=self.posted,
            asked=self.asked,
            accepted=self.accepted,
            kept=await self.kept(),
            disagreements=await self.world.disagreements() if with_verify else (),
        )
        account = judge(books)
        sys.stdout.write(account.table() + "\n")
        return account

    async def open_trace_ids(self) -> set[str]:
        """This run's traces nobody has closed."""
        return await asyncio.to_thread(self.world.reader().open_trace_ids, self._message_ids)

    async def _is_idle(self) -> bool:
        """Whether nobody is at work: no webhook under way, no answer being given, nothing waiting to be stored."""
        if self.world.carrier.num_under_way or len(self.posted) < len(self._message_ids):
            return False
        health = await self.world.health()
        busy = ("chats_running", "messages_waiting", "trace_events_pending")
        return health is not None and not any(health.get(name) for name in busy)

    async def _is_settled(self) -> bool:
        try:
            kept = await self.kept()
        except StoreError:
            return False
        return kept.is_settled and len(kept.traces) >= self.num_acknowledged


def ms_between(earlier_ns: int, later_ns: int) -> float:
    """Milliseconds between two moments."""
    return (later_ns - earlier_ns) / NS_PER_MS
