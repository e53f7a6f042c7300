"""Scenario 0: nothing goes wrong. Every other scenario's faults mean something only because this one has none."""

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.databases import postgres
from tests.faults.plans import plan_run
from tests.faults.world import open_world

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_an_undisturbed_run_is_answered_whole_once_and_in_order(
    tmp_path, seed: int, scale: Scale, kind: str
) -> None:
    """The account balances to the last character, the server stops when asked, and the log holds no error."""
    if kind == "sqlite":
        await _run_undisturbed(tmp_path, "", seed=seed, scale=scale)
    else:
        with postgres() as server:
            await _run_undisturbed(tmp_path, server.new_url(), seed=seed, scale=scale)


async def _run_undisturbed(folder, database_url: str, *, seed: int, scale: Scale) -> None:
    plan = plan_run(0, seed=seed, num_chats=scale.num_chats, num_messages=scale.num_messages)
    async with open_world(folder, seed=seed, database_url=database_url) as world:
        run = world.begin(plan)
        run.write_all()
        await run.settled()
        account = await run.judged(with_verify=True)
        exit_code = await world.server.stop()

    assert account.faults == ()
    assert account.counts["answered whole"] == len(plan.turns)
    assert exit_code == 0
    assert [line for line in world.server.log.splitlines() if " ERROR " in line or line.startswith("Traceback")] == []
