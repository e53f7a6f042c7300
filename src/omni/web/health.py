"""The two pages anyone may open: whether Omni is up, and where everything is."""

from html import escape
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse, Response

from omni.clock import wall_datetime
from omni.web.context import context_of
from omni.web.times import iso_utc

router = APIRouter(tags=["health"])

_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Omni</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }}
li {{ margin: .5rem 0 }}
</style>
</head>
<body>
<h1>Omni</h1>
<p>WhatsApp messages in, streamed answers of AI agents out, and a trace of every one.</p>
<ul>
{links}
</ul>
</body>
</html>
"""


class HealthReply(BaseModel):
    """Whether Omni is up, and what its parts say of themselves."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(description="`healthy`, or another word when a part says it is not.")
    timestamp: str = Field(description="The server's time. ISO 8601, UTC, without offset.")


@router.get("/health", summary="Tell whether Omni is up", response_model=HealthReply)
async def get_health(request: Request) -> Response:
    """Open to everyone, so it names no instance and no person. Touches no database."""
    parts = context_of(request).parts
    reply: dict[str, Any] = {"status": "healthy", "timestamp": iso_utc(wall_datetime(parts.clock.wall_ns()))}
    return Response(msgspec.json.encode(reply | parts.health()), media_type="application/json")


@router.get("/", include_in_schema=False)
async def get_landing_page(request: Request) -> HTMLResponse:
    """A page of links, with nothing fetched from elsewhere."""
    links = [
        ("docs", "REST API", "every route, with its parameters and answers"),
        ("health", "Health", "whether Omni is up"),
    ]
    sandbox_path = context_of(request).parts.sandbox_path
    if sandbox_path is not None:
        links.insert(0, (sandbox_path.lstrip("/"), "Sandbox phone", "write to an agent as a WhatsApp user would"))
    # Relative addresses, so that the page works behind a proxy that serves Omni under a path of its own.
    items = "\n".join(
        f'<li><a href="{escape(path)}">{escape(name)}</a>: {escape(about)}</li>' for path, name, about in links
    )
    return HTMLResponse(_PAGE.format(links=items), headers={"Content-Security-Policy": _CONTENT_POLICY})
