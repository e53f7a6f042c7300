"""The command ``omni``: serve, sandbox, traces, instances. Every command answers ``--help``; reading commands answer ``--json``.

Exit codes: 0 done, 1 the thing asked for is not there or failed, 2 wrong arguments or settings.
"""

import sys
from typing import Annotated

import typer
from rich.console import Console

from omni import __version__
from omni.cli.instances import instances_app
from omni.cli.serve import sandbox, serve
from omni.cli.traces import traces_app
from omni.errors import OmniError, RecordNotFound, SettingsError

app = typer.Typer(
    name="omni",
    help="WhatsApp to streaming AI agents, with traces that tell the truth.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve)
app.command()(sandbox)
app.add_typer(traces_app, name="traces")
app.add_typer(instances_app, name="instances")


@app.callback(invoke_without_command=True)
def _options(
    *, version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False
) -> None:
    if version:
        typer.echo(f"omni {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors of ours are one clear line, not a traceback."""
    try:
        app()
    except SettingsError as exc:
        _complain(exc)
        sys.exit(2)
    except RecordNotFound as exc:
        _complain(exc)
        sys.exit(1)
    except OmniError as exc:
        _complain(exc)
        sys.exit(1)


def _complain(error: OmniError) -> None:
    Console(stderr=True).print(f"[bold red]omni:[/] {error}", highlight=False, soft_wrap=True)
