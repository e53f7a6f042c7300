"""Scenarios c and d: the SQLite file locked by another process, its disk full, its quota used up, under load."""

from functools import partial

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.databases import full_disk, locked_sqlite, small_disk, used_up_quota
from tests.faults.outages import check, kill_during, run_through
from tests.faults.world import open_world

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

QUEUED_UP_S = 0.02
"""Nothing is taken while neither database nor spool can be written, so what is to be answered meanwhile has to wait in Omni already."""


async def test_answers_flow_and_everything_is_stored_when_another_process_locks_the_file(
    tmp_path, seed: int, scale: Scale
) -> None:
    """Somebody vacuums, backs up or looks with a tool that takes the lock; webhooks are taken into the spool meanwhile."""
    async with open_world(tmp_path, seed=seed) as world:
        file = tmp_path / "data" / "automagik-omni.db"
        seen = await run_through(world, partial(locked_sqlite, file), scale=scale)

    check(seen)
    assert seen.num_taken > 0


async def test_answers_flow_and_everything_is_stored_when_the_disk_was_full(tmp_path, seed: int, scale: Scale) -> None:
    """Neither database nor spool takes anything: webhooks get a 503 and come again, answers that are running go on."""
    data = tmp_path / "data"
    data.mkdir()
    with small_disk(data):
        async with open_world(tmp_path, seed=seed) as world:
            seen = await run_through(world, partial(full_disk, data), scale=scale, wait_s=QUEUED_UP_S)

    check(seen)
    assert seen.num_refused > 0


async def test_answers_flow_and_everything_is_stored_when_the_quota_was_used_up(
    tmp_path, seed: int, scale: Scale
) -> None:
    """The same without a disk of its own: the process may write to no file for a while, its log included."""
    async with open_world(tmp_path, seed=seed) as world:
        seen = await run_through(world, partial(used_up_quota, world.server), scale=scale, wait_s=QUEUED_UP_S)

    check(seen)
    assert seen.num_refused > 0


async def test_nothing_is_lost_when_omni_is_killed_while_another_process_locks_the_file(
    tmp_path, seed: int, scale: Scale
) -> None:
    """What was acknowledged and recorded meanwhile lies in the dead process's spool; the next one stores it and goes on from there."""
    async with open_world(tmp_path, seed=seed) as world:
        outage = partial(locked_sqlite, tmp_path / "data" / "automagik-omni.db")
        account, disagreements = await kill_during(world, outage, scale=scale)

    assert account.faults == ()
    assert disagreements == ()
