import json
from pathlib import Path

import pytest

from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer

CAPTURES = Path(__file__).parents[2] / "captures" / "evolution"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def settings():
    return Settings(_env_file=None, trace_flush_ms=1)


@pytest.fixture
def recorder(store, clock, settings):
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    yield recorder
    assert recorder.stop()


@pytest.fixture
def tracer(recorder, store, clock):
    return Tracer(clock=clock, recorder=recorder, reader=store)


@pytest.fixture(scope="session")
def capture():
    """The recorded exchange whose file name begins with a number: ``capture("09")``."""

    def read(number):
        (path,) = CAPTURES.glob(f"{number}_*.json")
        return json.loads(path.read_text(encoding="utf-8"))

    return read
