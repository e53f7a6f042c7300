"""Whatever stops the process, and whatever the channel answers: nothing goes out twice, and nothing is missing that nobody tells of.

The world here is a channel that remembers what really went out, a ledger that loses what was not durable yet, and a process that can
die after any operation of the ledger and at any step of a send. A new process starts from the ledger's rows and the text received so far.
"""

import asyncio
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from omni.channels.whatsapp.delivery import Delivery
from omni.model import InstanceConfig, OutboundMessage, SendResult, SentEcho, SentSearch
from omni.ports import PutOutbound
from omni.settings import Settings
from omni.testing import FakeClock, RecordingChannel

MARIA = "5511999990001@s.whatsapp.net"
SHOP = InstanceConfig(name="shop")
KNOBS = Settings(_env_file=None, message_max_chars=16, send_attempts=3)
NOTICE = "desculpe"
WAIT_S = 20

PASSING = SendResult(is_accepted=False, status_code=503, error_kind="transient", error="busy")
FOR_GOOD = SendResult(is_accepted=False, status_code=400, error_kind="rejected", error="no")
OPEN = SendResult(is_accepted=False, error_kind="ambiguous", error="no answer")

# What one attempt does: whether the message goes out, whether the channel says so, and what it answers.
STEPS = ("accept", "accept", "accept", "passing", "for_good", "lost", "out", "out_with_echo")


@dataclass
class Plan:
    """What happens, decided beforehand. ``deaths`` are numbers of steps one process lives for; ``lost`` how many posts each death loses."""

    chunks: list[str]
    steps: list[str]
    deaths: list[int]
    lost: list[int]
    channel_keeps: bool


@dataclass
class World:
    """What outlives processes: the phone, and the ledger's log."""

    plan: Plan
    went_out: list[tuple[str, OutboundMessage]] = field(default_factory=list)
    log: list[PutOutbound] = field(default_factory=list)
    num_durable: int = 0

    def rows(self):
        """The newest version of every row."""
        newest = {}
        for op in self.log:
            known = newest.get(op.record.message_uid)
            if known is None or op.record.version > known.version:
                newest[op.record.message_uid] = op.record
        return list(newest.values())


class Process:
    """One life: it counts its steps and stops at one of them. A dead process changes nothing any more."""

    def __init__(self, world, lives_for):
        self.world = world
        self.steps_left = lives_for
        self.died = asyncio.Event()

    def step(self):
        """False when the process is dead, or dies here."""
        if self.steps_left is not None and self.steps_left <= 0:
            self.died.set()
            return False
        if self.steps_left is not None:
            self.steps_left -= 1
        return True


class LosingLedger:
    """A ledger that commits some turns of the loop after a put, and all that was posted until then with it."""

    def __init__(self, process):
        self._process = process

    def put(self, op):
        future = asyncio.get_running_loop().create_future()
        if self._process.step():
            self._process.world.log.append(op)
            self._commit(future, turns=4)
        return future

    def _commit(self, future, turns):
        if turns:
            asyncio.get_running_loop().call_soon(self._commit, future, turns - 1)
        elif self._process.step():
            self._process.world.num_durable = len(self._process.world.log)
            if self._process.step() and not future.done():
                future.set_result(True)

    def post(self, op):
        if self._process.step():
            self._process.world.log.append(op)


class RealisticChannel(RecordingChannel):
    """Does what the plan's steps say, and knows what went out."""

    def __init__(self, process):
        super().__init__()
        self._process = process
        self.echo_to = None

    async def _live(self):
        if not self._process.step():
            await asyncio.Event().wait()

    async def send_text(self, instance, message):
        world = self._process.world
        await self._live()
        what = world.plan.steps.pop(0) if world.plan.steps else "accept"
        key_id = f"3EB0{len(world.went_out):018X}"
        if what in ("accept", "out", "out_with_echo"):
            world.went_out.append((key_id, message))
        await self._live()
        if what == "out_with_echo":
            self.echo_to(SentEcho(instance_name="shop", key_id=key_id, recipient="98765@lid", text=message.text))
        if what == "accept":
            return SendResult(is_accepted=True, status_code=201, key_id=key_id)
        return {"passing": PASSING, "for_good": FOR_GOOD}.get(what, OPEN)

    async def find_sent(self, instance, message, *, started_wall_ns, known_key_ids):
        await self._live()
        if not self._process.world.plan.channel_keeps:
            return SentSearch(verdict="unknown")
        for key_id, sent in self._process.world.went_out:
            if sent.text == message.text and key_id not in known_key_ids:
                return SentSearch(verdict="found", key_id=key_id)
        return SentSearch(verdict="absent")


async def live_through(plan):
    """All lives of one answer; (the world, the outcomes, the text received)."""
    world = World(plan)
    received = ""
    clock = FakeClock()

    async def slow_sleep(duration_s):
        # Longer than a commit takes, so that no message goes out before its write.
        for _ in range(10):
            await asyncio.sleep(0)
        await clock.sleep(duration_s)

    for life in range(len(plan.deaths) + 1):
        process = Process(world, plan.deaths[life] if life < len(plan.deaths) else None)
        channel = RealisticChannel(process)
        delivery = Delivery(
            channel, clock=clock, settings=KNOBS, ledger=LosingLedger(process), sleep=slow_sleep, jitter=lambda: 0.0
        )
        channel.echo_to = delivery.note_echo
        rows = world.rows()
        told = []
        answer = delivery.resume_answer(
            SHOP, MARIA, chat_key=MARIA, on_outcome=told.append, records=rows, answer_id="t1", trace_id="t1"
        )
        story = asyncio.create_task(tell(answer, plan, received, is_first=life == 0, rows=rows))
        death = asyncio.create_task(process.died.wait())
        await asyncio.wait({story, death}, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        is_over = story.done() and not process.died.is_set()
        received = story.result()[1] if story.done() else tell.received
        for task in (story, death):
            task.cancel()
        await asyncio.wait({story, death})
        process.steps_left = 0
        await delivery.aclose(0)
        if is_over:
            outcomes = story.result()[0]
            fresh = [outcome.message.index for outcome in told]
            settled_before = [row.index for row in rows if row.state not in ("queued", "sending")]
            assert sorted(fresh + settled_before) == [outcome.message.index for outcome in outcomes]
            return world, outcomes, received
        keep = max(world.num_durable, len(world.log) - plan.lost[life])
        del world.log[keep:]
        world.num_durable = keep
    raise AssertionError("the last life ends with the answer")


async def tell(answer, plan, received, *, is_first, rows):
    """What the streamer does in the first life, and recovery in the others."""
    tell.received = received
    if is_first:
        for index, chunk in enumerate(plan.chunks):
            tell.received += chunk
            answer.feed(chunk, index)
            for _ in range(3):
                await asyncio.sleep(0)
    else:
        answer.feed_rest(received)
        if not any(row.is_notice for row in rows):
            answer.notice(NOTICE)
    answer.finish()
    return await answer.wait_done(), tell.received


CHUNKS = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=12), min_size=1, max_size=8)
PLANS = st.builds(
    Plan,
    chunks=CHUNKS,
    steps=st.lists(st.sampled_from(STEPS), max_size=12),
    deaths=st.lists(st.integers(0, 14), max_size=3),
    lost=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    channel_keeps=st.just(True),
)


def check_ranges(outcomes, received):
    """The messages' ranges, in order, are the whole text; what is behind them shows nothing."""
    at = 0
    for outcome in sorted(outcomes, key=lambda each: each.message.index):
        if outcome.message.start == outcome.message.end:
            continue  # a notice is no part of the text
        assert outcome.message.start == at
        at = outcome.message.end
    assert received[at:].strip() == ""


@settings(max_examples=150, deadline=None)
@given(PLANS)
@example(Plan(["a\n\na\n\na"], ["out"], [3], [0, 0, 0], channel_keeps=True))
@example(Plan(["a\n\nb\n\nc"], ["accept", "lost", "out_with_echo"], [4, 2], [2, 0, 0], channel_keeps=True))
def test_with_a_channel_that_keeps_what_it_sent_nothing_is_doubled_or_missing(plan):
    world, outcomes, received = asyncio.run(live_through(plan))
    check_ranges(outcomes, received)
    arrived = [message.index for _, message in world.went_out]
    accepted = [outcome.message.index for outcome in outcomes if outcome.status == "accepted"]
    assert arrived == accepted
    assert [key_id for key_id, _ in world.went_out] == [o.key_id for o in outcomes if o.status == "accepted"]
    assert {outcome.status for outcome in outcomes} <= {"accepted", "failed", "not_sent"}
    assert not [outcome for outcome in outcomes if outcome.error_kind == "ambiguous"]
    # After a failure nothing more is sent, and all of it is told.
    failed = [outcome.message.index for outcome in outcomes if outcome.status == "failed"]
    assert all(index < min(failed, default=len(outcomes)) for index in accepted)


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_with_a_channel_that_cannot_tell_nothing_is_doubled_and_what_may_be_missing_is_named(plan):
    plan.channel_keeps = False
    world, outcomes, received = asyncio.run(live_through(plan))
    check_ranges(outcomes, received)
    arrived = [message.index for _, message in world.went_out]
    assert arrived == sorted(set(arrived))
    status_by_index = {outcome.message.index: (outcome.status, outcome.error_kind) for outcome in outcomes}
    unknown = [index for index, what in status_by_index.items() if what == ("failed", "ambiguous")]
    accepted = [index for index, (status, _) in status_by_index.items() if status == "accepted"]
    assert set(accepted) <= set(arrived) <= {*accepted, *unknown}
    assert len({key_id for key_id, _ in world.went_out}) == len(arrived)


@settings(max_examples=100, deadline=None)
@given(CHUNKS, st.lists(st.sampled_from(STEPS), max_size=12), st.booleans())
def test_no_pattern_of_answers_breaks_the_laws_without_a_crash(chunks, steps, channel_keeps):
    plan = Plan(chunks, steps, deaths=[], lost=[0, 0, 0], channel_keeps=channel_keeps)
    world, outcomes, received = asyncio.run(live_through(plan))
    check_ranges(outcomes, received)
    arrived = [message.index for _, message in world.went_out]
    assert arrived == sorted(set(arrived))
    assert received == "".join(chunks)
    # The ledger's last word is what was told.
    told = {f"t1/{o.message.index}": (o.status, o.attempts, o.key_id, o.error_kind) for o in outcomes}
    kept = {r.message_uid: (r.state, r.attempts, r.key_id, r.error_kind) for r in world.rows()}
    assert kept == told
