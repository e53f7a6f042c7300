"""Scenario a: ``kill -9`` of Omni at random points, on a PostgreSQL server that stays up."""

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.databases import postgres
from tests.faults.kills import check_kills

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


async def test_nothing_is_lost_repeated_or_out_of_order_when_omni_is_killed_on_postgresql(
    tmp_path, seed: int, scale: Scale
) -> None:
    """What was acknowledged is answered or its failure on record, what is older than 250 ms can be read, open traces are closed."""
    with postgres() as server:
        await check_kills(tmp_path, server.new_url(), seed=seed, num_kills=scale.num_kills)
