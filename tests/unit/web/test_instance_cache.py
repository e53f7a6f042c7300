"""The look-up of instances: one read for many callers, never a stale one after a change, and no wait behind a dead database."""

import asyncio

import pytest
from tests.unit.web.fakes import HandClock, MemoryInstances, held

from omni.errors import StoreError
from omni.web import instance_cache
from omni.web.instance_cache import InstanceCache


@pytest.fixture
def store():
    store = MemoryInstances()
    store.create({"name": "support", "agent_id": "old"})
    store.num_reads = 0
    yield store
    store.gate.open()


@pytest.fixture
def cache(store: MemoryInstances):
    cache = InstanceCache(store, HandClock(), wait_s=5.0)
    yield cache
    cache.close()


async def test_callers_that_miss_together_share_one_read(store: MemoryInstances, cache: InstanceCache):
    configs = await asyncio.gather(*(cache.get("support") for _ in range(50)))

    assert {config.name for config in configs if config} == {"support"}
    assert (len(configs), store.num_reads) == (50, 1)


async def test_an_unknown_name_is_remembered_as_unknown(store: MemoryInstances, cache: InstanceCache):
    assert [await cache.get("nobody"), await cache.get("nobody")] == [None, None]
    assert store.num_reads == 1


async def test_a_read_that_began_before_a_change_is_not_kept(store: MemoryInstances, cache: InstanceCache):
    store.gate.close()
    early = asyncio.create_task(cache.get("support"))
    await held(store.gate)
    cache.forget("support")
    store.gate.open()
    await early
    store.update("support", {"agent_id": "new"})

    config = await cache.get("support")

    assert config is not None
    assert config.agent_id == "new"


async def test_a_known_instance_waits_for_a_hanging_database_only_once_in_a_while(store: MemoryInstances):
    clock = HandClock()
    cache = InstanceCache(store, clock, wait_s=0.01)
    first = await cache.get("support")
    clock.advance(10)
    store.gate.close()

    again = [await cache.get("support") for _ in range(20)]

    assert again == [first] * 20
    assert store.num_reads == 2
    cache.close()


async def test_an_instance_is_read_anew_once_the_database_answers_again(store: MemoryInstances):
    clock = HandClock()
    cache = InstanceCache(store, clock, wait_s=0.01)
    store.failure = StoreError("The file cannot be read.")
    with pytest.raises(StoreError) as caught:
        await cache.get("support")
    store.failure = None

    config = await cache.get("support")

    assert (caught.value.status_code, caught.value.retryable) == (503, True)
    assert config is not None
    cache.close()


async def test_names_asked_for_while_the_database_hangs_do_not_pile_up(store: MemoryInstances):
    cache = InstanceCache(store, HandClock(), wait_s=0.01)
    store.gate.close()

    refused = await asyncio.gather(*(cache.get(f"invented-{n}") for n in range(300)), return_exceptions=True)

    assert {type(refusal) for refusal in refused} == {StoreError}
    assert len(cache._reads) == instance_cache.MAX_READS
    cache.close()


async def test_invented_names_do_not_fill_the_memory(cache: InstanceCache):
    for n in range(instance_cache.MAX_KNOWN + 50):
        await cache.get(f"invented-{n}")

    assert len(cache._known) == instance_cache.MAX_KNOWN
