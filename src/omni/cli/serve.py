"""``omni serve`` and ``omni sandbox``: run the server, run the simulators alone."""

import asyncio
import gc
import logging
import logging.config
import signal
import socket
import sys
from contextlib import suppress
from ipaddress import ip_address
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from omni.app import SANDBOX_PATH, create_app
from omni.errors import SettingsError
from omni.sandbox.server import Sandbox
from omni.settings import Settings, load_settings
from omni.web.api_key import api_key_path

serve_app = typer.Typer(pretty_exceptions_enable=False)
sandbox_app = typer.Typer(pretty_exceptions_enable=False)

# How many connections may wait to be accepted while the loop is busy.
_BACKLOG = 2048
_LOOPBACK = "127.0.0.1"
# Full collections walk every turn that waits, and held all webhooks up for 100 ms twice a second under load; the application makes one
# when it has nothing to do (``app``). What dies young is found by the collections before that.
_GC_THRESHOLDS = (20_000, 20, 100)


@serve_app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; the setting API_HOST when not given.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one; else API_PORT.")] = None,
    *,
    sandbox: Annotated[
        bool | None,
        typer.Option(
            "--sandbox/--no-sandbox", help="Mount the simulated phone and agent; else only without instances."
        ),
    ] = None,
) -> None:
    """Run Omni: the webhook, the REST API, and the sandbox when no instance is configured."""
    settings = load_settings()
    _log_to_stderr(settings)
    with _listen(host or settings.api_host, settings.api_port if port is None else port) as listener:
        _serve(settings, listener, with_sandbox=sandbox)


@sandbox_app.command()
def sandbox(
    port: Annotated[int, typer.Option(help="Port to listen on, 0 for a free one.")] = 8883,
    omni_url: Annotated[str, typer.Option(help="Where the Omni to be tried listens.")] = "http://127.0.0.1:8882",
    instance: Annotated[str, typer.Option(help="The instance at that Omni that points here.")] = "sandbox",
    api_key: Annotated[str, typer.Option(help="API key of that Omni.", envvar="AUTOMAGIK_OMNI_API_KEY")] = "",
) -> None:
    """Run the simulated Evolution API, phone and Hive agent alone, for an Omni elsewhere on this machine."""
    settings = load_settings()
    _log_to_stderr(settings)
    simulated = Sandbox(
        webhook_url=f"{omni_url}/webhook/evolution/{instance}",
        instance_name=instance,
        api_base=omni_url,
        api_key=api_key,
    )
    with _listen(_LOOPBACK, port) as listener:
        base_url = f"http://{_LOOPBACK}:{listener.getsockname()[1]}"
        console = Console()
        for name in ("phone", "evolution", "hive"):
            console.print(f"{name:<10} {base_url}/{name}", soft_wrap=True)
        _leave_on_sigterm()
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve_sandbox(simulated, listener, settings))


def _serve(settings: Settings, listener: socket.socket, *, with_sandbox: bool | None) -> None:
    bound_host, bound_port = listener.getsockname()[:2]
    own_host = _LOOPBACK if ip_address(bound_host).is_unspecified else bound_host
    base_url = f"http://[{own_host}]:{bound_port}" if ":" in own_host else f"http://{own_host}:{bound_port}"
    # The sandbox page carries the API key; it is offered by itself to this machine only.
    offers_sandbox = with_sandbox if with_sandbox is not None or ip_address(bound_host).is_loopback else False
    app = create_app(settings, base_url=base_url, with_sandbox=offers_sandbox)
    _greet(settings, base_url, has_sandbox=app.state.sandbox is not None)
    _run(app, listener, settings)


async def _serve_sandbox(simulated: Sandbox, listener: socket.socket, settings: Settings) -> None:
    await simulated.start()
    try:
        await _Server(_config(simulated.asgi, settings), simulated).serve(sockets=[listener])
    finally:
        await simulated.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it; without it an answer's second packet waits 40 ms for the first one's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        # From here on callers wait instead of being refused: the address is printed before the server is up.
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({exc.strerror}); set AUTOMAGIK_OMNI_API_HOST and AUTOMAGIK_OMNI_API_PORT"
        ) from exc
    return listener


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(settings.stop_deadline_ms // 1000, 1),
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Ends the sandbox's open pages before it waits for responses that are still being written."""

    def __init__(self, config: uvicorn.Config, simulated: Sandbox | None) -> None:
        super().__init__(config)
        self._simulated = simulated

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._simulated is not None:
            self._simulated.hang_up()
        await super().shutdown(sockets)


def _run(app: FastAPI, listener: socket.socket, settings: Settings) -> None:
    # What stands by now stays for good. Walking it in every full collection held the loop up for 60 to 200 ms under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    _leave_on_sigterm()
    with suppress(KeyboardInterrupt):  # the same after Ctrl-C
        _Server(_config(app, settings), app.state.sandbox).run(sockets=[listener])


def _leave_on_sigterm() -> None:
    # uvicorn stops in order and raises the signal again afterwards; to be stopped as asked is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _greet(settings: Settings, base_url: str, *, has_sandbox: bool) -> None:
    console = Console()
    console.print(f"[bold]Omni[/] listens on {base_url}", soft_wrap=True)
    if has_sandbox:
        console.print(f"  write to the sandbox phone:  [bold]{base_url}{SANDBOX_PATH}/phone/[/]", soft_wrap=True)
    console.print(f"  webhook for Evolution:       {base_url}/webhook/evolution/<instance>", soft_wrap=True)
    console.print(f"  REST API and its manual:     {base_url}/docs", soft_wrap=True)
    where = "AUTOMAGIK_OMNI_API_KEY" if settings.api_key else str(api_key_path(settings))
    console.print(f"  API key:                     {where}", soft_wrap=True)


def _log_to_stderr(settings: Settings) -> None:
    logging.config.dictConfig({
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"fields": {"()": "omni.cli.log_format.FieldFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "fields"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {"omni": {"level": settings.log_level}, "uvicorn.error": {"level": "WARNING"}},
    })  # fmt: skip
