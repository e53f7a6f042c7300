"""Fixtures of the HTTP tests: a desk of in-memory parts with one instance, and a client that carries the API key."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from tests.unit.web.fakes import Desk, client_of


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.add_instance()
    yield desk
    desk.instances.gate.open()
    desk.traces.gate.open()


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(desk.app()) as client:
        yield client
