"""Scenario f: webhooks that are lost, held back, overtaken, repeated, posted to a global address as well, and half an hour late."""

import pytest
from msgspec import structs
from tests.faults.carrier import Disorder
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.plans import RunPlan, TurnPlan, plan_run
from tests.faults.world import open_world

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

DISORDER = Disorder(lost_share=0.3, repeated_share=0.5, longest_delay_s=0.4, has_global=True)
LATE_S = 1_800
"""The last retry of a webhook comes half an hour after the message was written."""
STALE_S = 7_200
"""Older than ``MESSAGE_MAX_AGE_S``: what Evolution brings when it was offline, and what nobody waits for any more."""


def with_stale_chats(plan: RunPlan, stale: set[int]) -> RunPlan:
    """The same plan, in which some people's messages come too late to be answered."""
    return structs.replace(
        plan,
        turns=tuple(
            structs.replace(turn, expectation="recorded") if turn.mark.chat in stale else turn for turn in plan.turns
        ),
    )


async def test_disordered_webhooks_are_answered_once_each_and_never_again(tmp_path, seed: int, scale: Scale) -> None:
    """At least once and in any order is what Evolution promises; once and in order is what a person sees.

    One person in four wrote half an hour ago, one wrote yesterday's news. Afterwards everything comes once more, before and after a restart.
    """
    num_chats = scale.num_chats
    late, stale = set(range(2, num_chats, 4)), set(range(3, num_chats, 4))
    plan = with_stale_chats(
        plan_run(0, seed=seed, num_chats=num_chats, num_messages=scale.num_messages), stale
    )  # fmt: skip

    def sent_s_ago(turn: TurnPlan) -> int:
        base_s = STALE_S if turn.mark.chat in stale else LATE_S if turn.mark.chat in late else 0
        return base_s + scale.num_messages - turn.mark.number

    async with open_world(tmp_path, seed=seed) as world:
        world.carrier.disorder = DISORDER
        run = world.begin(plan)
        run.write_all(sent_s_ago=sent_s_ago, in_turn=False)
        await run.settled()
        first = await run.judged(with_verify=True)

        world.carrier.disorder = Disorder()
        await run.write_again(sent_s_ago=LATE_S)
        await run.settled()
        repeated = await run.judged()

        assert await world.server.stop() == 0
        await world.start()
        await run.write_again(sent_s_ago=LATE_S)
        await run.settled()
        restarted = await run.judged(with_verify=True)

    num_stale = len(stale) * scale.num_messages
    assert [account.faults for account in (first, repeated, restarted)] == [(), (), ()]
    assert first.counts["answered whole"] == len(plan.turns) - num_stale
    unchanged = {name: number for name, number in first.counts.items() if name != "webhooks posted"}
    for later in (repeated, restarted):
        assert {name: number for name, number in later.counts.items() if name != "webhooks posted"} == unchanged
    assert first.counts["webhooks posted"] > 2 * len(plan.turns)
