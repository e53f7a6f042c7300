"""Sizes and seeds of the fault runs: a few in continuous integration, the full numbers with ``OMNI_SOAK=1`` (``make soak``).

The seed is another one each time, because a fault at the same point every time is found once; it is printed, and
``OMNI_FAULTS_SEED`` repeats it.
"""

import os
import secrets
import sys

import pytest
from msgspec import Struct

SEED_VARIABLE = "OMNI_FAULTS_SEED"
SOAK_VARIABLE = "OMNI_SOAK"


IS_SOAK = os.environ.get(SOAK_VARIABLE) == "1"
TIMEOUT_S = 10_800 if IS_SOAK else 300
"""Longest one test may take; what it waits for has far shorter deadlines of its own."""


class Scale(Struct, frozen=True, kw_only=True):
    """How much is done: ``num_kills`` per database; people and their messages in every run, and in one with an outage."""

    num_kills: int
    num_chats: int
    num_messages: int
    num_messages_in_outage: int
    outage_within_s: float


_CI = Scale(num_kills=4, num_chats=4, num_messages=3, num_messages_in_outage=6, outage_within_s=25.0)
_SOAK = Scale(num_kills=100, num_chats=8, num_messages=5, num_messages_in_outage=300, outage_within_s=600.0)


@pytest.fixture(scope="session")
def scale() -> Scale:
    return _SOAK if IS_SOAK else _CI


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    chosen = int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(1_000_000))
    sys.stdout.write(f"{request.node.nodeid}: {SEED_VARIABLE}={chosen}\n")
    return chosen
