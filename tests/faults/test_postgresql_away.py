"""Scenario b: PostgreSQL stopped and started again, and frozen, under load."""

from collections.abc import Iterator

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.databases import Postgres, postgres
from tests.faults.outages import check, kill_during, run_through
from tests.faults.world import open_world

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.mark.parametrize("trouble", ["stopped", "frozen"])
async def test_answers_flow_and_everything_is_stored_when_postgresql_is_away(
    tmp_path, seed: int, scale: Scale, server: Postgres, trouble: str
) -> None:
    """A database that refuses at once and one that never answers are two different troubles; neither may reach the user."""
    outage = server.stopped if trouble == "stopped" else server.frozen
    async with open_world(tmp_path, seed=seed, database_url=server.new_url()) as world:
        seen = await run_through(world, outage, scale=scale)

    check(seen)
    assert seen.num_taken > 0


async def test_nothing_is_lost_when_omni_is_killed_while_postgresql_is_away(
    tmp_path, seed: int, scale: Scale, server: Postgres
) -> None:
    """What was acknowledged and recorded meanwhile lies in the dead process's spool; the next one stores it and goes on from there."""
    async with open_world(tmp_path, seed=seed, database_url=server.new_url()) as world:
        account, disagreements = await kill_during(world, server.stopped, scale=scale)

    assert account.faults == ()
    assert disagreements == ()
