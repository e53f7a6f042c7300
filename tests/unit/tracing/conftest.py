import pytest

from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer


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
