"""Scenario g: Omni is told to stop in the middle of everything, and started again."""

import random

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.plans import plan_run
from tests.faults.world import ms_between, open_world

from omni.clock import SystemClock

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

BESIDES_S = 4.0
"""What stopping may take beside the deadline for running answers: closing, storing, leaving, on a busy machine."""


@pytest.mark.parametrize(("deadline_ms", "chunk_gap_s"), [(3_000, 0.012), (200, 0.05)], ids=["time enough", "cut off"])
async def test_a_stop_in_the_middle_leaves_nothing_open_and_loses_nothing(
    tmp_path, seed: int, scale: Scale, deadline_ms: int, chunk_gap_s: float
) -> None:
    """Running answers finish, or are closed when the deadline is over; what had not begun is answered after the next start."""
    rng = random.Random(f"stop {seed}")
    plan = plan_run(
        0, seed=seed, num_chats=scale.num_chats, num_messages=scale.num_messages, gap_s=chunk_gap_s
    )  # fmt: skip
    async with open_world(tmp_path, seed=seed, stop_deadline_ms=str(deadline_ms)) as world:
        run = world.begin(plan)
        run.write_all()
        await world.until_events(run.first_event + rng.randint(1, plan.num_events * 3 // 4))
        asked_ns = world.server.ask_to_stop()
        exit_code = await world.server.until_ended()
        took_ms = ms_between(asked_ns, SystemClock.mono_ns())
        left_open = await run.open_trace_ids()
        await world.start()
        await run.settled()
        account = await run.judged(with_verify=True)

    assert exit_code == 0
    assert took_ms <= deadline_ms + 1_000 * BESIDES_S
    assert left_open == set()
    assert account.faults == ()
