from contextlib import asynccontextmanager

import pytest

from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.gateway.hive_streamer import AnswerStreamer
from omni.gateway.message_router import GatewayParts, MessageRouter
from omni.model import InstanceConfig
from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore, RecordingChannel
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def settings():
    return Settings(_env_file=None, trace_flush_ms=1, typing_indicator=False, send_retry_ms=0, message_spacing_ms=0)


@pytest.fixture
def channel():
    return RecordingChannel()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def tracer(store, clock, settings):
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    yield Tracer(clock=clock, recorder=recorder, reader=store)
    assert recorder.stop()


@pytest.fixture
def instance():
    return InstanceConfig(
        name="shop",
        agent_instance_type="hive",
        agent_api_url="http://hive.test",
        agent_api_key="k",
        agent_id="genie",
        agent_stream_mode=True,
        evolution_url="http://evolution.test",
        evolution_key="e",
    )


@pytest.fixture
async def delivery(channel, clock, settings):
    delivery = Delivery(channel, clock=clock, settings=settings, sleep=clock.sleep)
    yield delivery
    await delivery.aclose(1)


@pytest.fixture
async def streamer(delivery, channel, clock):
    typing = TypingIndicator(channel, is_enabled=False)
    streamer = AnswerStreamer(delivery=delivery, typing=typing, clock=clock, language="en", sleep=clock.sleep)
    yield streamer
    await streamer.aclose(1)


@pytest.fixture
def route_to(streamer):
    """A router whose Hive is the given agent."""

    @asynccontextmanager
    async def online():
        yield

    def make(agent):
        return MessageRouter(GatewayParts(backends={"hive": agent}, streamer=streamer, online=online))

    return make
