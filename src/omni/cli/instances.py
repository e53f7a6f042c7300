"""``omni instances``: which WhatsApp instances are configured, and adding one without writing JSON."""

from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omni.cli.opening import open_database
from omni.model import InstanceConfig
from omni.settings import load_settings
from omni.store.instances import SqlInstanceStore
from omni.tracing.redact import mask_secret
from omni.web.instance_forms import InstanceForm, new_instance_values

instances_app = typer.Typer(
    help="Configure WhatsApp instances and the agents that answer for them.", no_args_is_help=True
)


@instances_app.command("list")
def list_instances(
    *, as_json: Annotated[bool, typer.Option("--json", help="One JSON array, keys masked.")] = False
) -> None:
    """List the configured instances."""
    with open_database() as database:
        store = SqlInstanceStore(database)
        instances = [store.get(str(row["name"])) for row in store.list_rows(limit=1000)]
    known = [instance for instance in instances if instance is not None]
    if as_json:
        typer.echo(msgspec.json.encode([_masked(instance) for instance in known]).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "agent", "mode", "Hive or agent API", "Evolution API", "active"):
        table.add_column(name)
    for instance in known:
        table.add_row(
            Text(instance.name),
            Text(f"{instance.agent_type} {instance.agent_id or '?'} ({instance.agent_instance_type})"),
            "streaming" if instance.streaming_enabled else "whole",
            Text(instance.agent_api_url or "?"),
            Text(instance.evolution_url or "?"),
            "yes" if instance.is_active else "no",
        )
    Console().print(table)


@instances_app.command("add")
def add_instance(
    name: Annotated[
        str, typer.Argument(help="The instance's name, also at Evolution unless --whatsapp-instance differs.")
    ],
    agent_url: Annotated[str, typer.Option(help="Where Hive listens, e.g. http://127.0.0.1:8886")],
    evolution_url: Annotated[str, typer.Option(help="Where Evolution API listens, e.g. http://127.0.0.1:8080")],
    evolution_key: Annotated[
        str, typer.Option(help="Evolution's key or the instance's token.", envvar="OMNI_EVOLUTION_KEY")
    ],
    agent: Annotated[str, typer.Option(help="Id of the agent or team.")],
    *,
    agent_key: Annotated[
        str, typer.Option(help="Hive's API key; none when it has none.", envvar="OMNI_AGENT_KEY", show_default=False)
    ] = "",
    whatsapp_instance: Annotated[str | None, typer.Option(help="The instance's name at Evolution.")] = None,
    team: Annotated[bool, typer.Option("--team", help="--agent names a team.")] = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Deliver while the agent writes.")] = True,
    timeout: Annotated[
        int, typer.Option(min=1, max=3600, help="Seconds of silence before the agent is given up.")
    ] = 60,
    language: Annotated[str | None, typer.Option(help="Language of its notices, en or pt; else LANGUAGE.")] = None,
    notice: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=TEXT", help="Its own words for one kind of notice; repeat it for several."),
    ] = None,
) -> None:
    """Add a WhatsApp instance answered by a Hive agent or team."""
    values = _checked({
        "name": name,
        "channel_type": "whatsapp",
        "whatsapp_instance": whatsapp_instance or name,
        "evolution_url": evolution_url,
        "evolution_key": evolution_key,
        "agent_instance_type": "hive",
        "agent_api_url": agent_url,
        "agent_api_key": agent_key,
        "agent_id": agent,
        "agent_type": "team" if team else "agent",
        "agent_stream_mode": stream,
        "agent_timeout": timeout,
        "language": language,
        "notice_texts": _notice_texts(notice),
    })  # fmt: skip
    with open_database() as database:
        SqlInstanceStore(database).create(values)
    port = load_settings().api_port
    address = f"http://<this host>:{port}/webhook/evolution/{quote(name)}"
    typer.echo(f"added {name}; set Evolution's webhook to {address}")


@instances_app.command("remove")
def remove_instance(name: Annotated[str, typer.Argument(help="The instance's name.")]) -> None:
    """Remove an instance; its traces stay."""
    with open_database() as database:
        SqlInstanceStore(database).delete(name)
    typer.echo(f"removed {name}")


def _notice_texts(notices: list[str] | None) -> dict[str, str] | None:
    """Texts by kind, from KIND=TEXT. Raises typer.BadParameter."""
    parted = [notice.partition("=") for notice in notices or ()]
    if not all(sign for _, sign, _ in parted):
        raise typer.BadParameter("must be KIND=TEXT", param_hint="--notice")
    return {kind.strip(): text for kind, _, text in parted} or None


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The column values, judged as the REST API judges them. Raises typer.BadParameter."""
    try:
        return new_instance_values(InstanceForm.model_validate(values))[0]
    except ValidationError as exc:
        problems = [
            f"{'.'.join(map(str, error['loc']))}: {str(error['msg']).removeprefix('Value error, ')}"
            for error in exc.errors()
        ]
        raise typer.BadParameter("; ".join(problems)) from exc


def _masked(instance: InstanceConfig) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.structs.asdict(instance)
    for key in ("evolution_key", "agent_api_key", "webhook_secret"):
        if values[key]:
            values[key] = mask_secret(values[key])
    return values
