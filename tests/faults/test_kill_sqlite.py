"""Scenario a: ``kill -9`` of Omni at random points, on the SQLite file it makes by itself."""

import pytest
from tests.faults.conftest import TIMEOUT_S, Scale
from tests.faults.kills import check_kills

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


async def test_nothing_is_lost_repeated_or_out_of_order_when_omni_is_killed_on_sqlite(
    tmp_path, seed: int, scale: Scale
):
    """What was acknowledged is answered or its failure on record, what is older than 250 ms can be read, open traces are closed."""
    await check_kills(tmp_path, "", seed=seed, num_kills=scale.num_kills)
