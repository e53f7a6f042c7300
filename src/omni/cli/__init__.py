"""The command ``omni``: serve, sandbox, traces, instances. Every command answers ``--help``; reading commands answer ``--json``.

Exit codes: 0 done, 1 the thing asked for is not there or failed, 2 wrong arguments or settings (`omni traces verify` has codes of its own).

Commands are imported when they are called: reading a trace needs no HTTP server, and starting one takes two seconds of CPU.
"""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from omni import __version__
from omni.errors import OmniError, SettingsError

# Name -> (module, its Typer application); listed in the order of `omni --help`.
_COMMANDS = {
    "serve": ("omni.cli.serve", "serve_app"),
    "sandbox": ("omni.cli.serve", "sandbox_app"),
    "traces": ("omni.cli.traces", "traces_app"),
    "instances": ("omni.cli.instances", "instances_app"),
}


class _LazyCommands(TyperGroup):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override] # typer's Context is click's
        """The names, in the order of the help."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override] # as above
        """The command of that name, None when there is none."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command = typer.main.get_command(getattr(import_module(module), name))
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_LazyCommands,
    name="omni",
    help="WhatsApp to streaming AI agents, with traces that tell the truth.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
        complain(exc)
        sys.exit(2)
    except OmniError as exc:
        complain(exc)
        sys.exit(1)


def complain(error: OmniError) -> None:
    """Say on standard error what is wrong, in one line."""
    # As text, not as markup: the sentence may quote what was typed.
    Console(stderr=True).print(Text.assemble(("omni:", "bold red"), f" {error}"), highlight=False, soft_wrap=True)
