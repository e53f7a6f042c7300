"""Recorded Evolution traffic, and the parts the delivery tests are arranged from."""

import json
from pathlib import Path
from typing import Any

import pytest

from omni.model import InstanceConfig
from omni.settings import Settings
from omni.testing import FakeClock

CAPTURES = Path(__file__).parents[2] / "captures" / "evolution"


@pytest.fixture(scope="session")
def capture():
    """The recorded exchange whose file name begins with a number: ``capture("08")``."""

    def read(number: str) -> dict[str, Any]:
        (path,) = CAPTURES.glob(f"{number}_*.json")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(mono_ns=0)


@pytest.fixture
def settings() -> Settings:
    return Settings(_env_file=None, message_spacing_ms=500, send_attempts=3, send_retry_ms=500)


@pytest.fixture
def instance() -> InstanceConfig:
    return InstanceConfig(name="shop", evolution_url="http://evolution.invalid", evolution_key="k")
