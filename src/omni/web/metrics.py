"""Where Prometheus reads Omni's figures: ``GET /metrics``, with the API key like everything an operator asks for.

What is counted and how it is written is not known here; the text comes from the part that is handed in. docs/reference/prometheus.md
lists the metrics and shows the scraper's settings.
"""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from omni.web.auth import KeyedRoute
from omni.web.context import context_of

router = APIRouter(route_class=KeyedRoute)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# Not in the API's description: its text is for one reader, in that reader's own format.
@router.get("/metrics", include_in_schema=False)
async def get_metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format. Touches no database."""
    render = context_of(request).parts.metrics
    assert render is not None  # the route is there only when there are metrics
    # In a thread of the loop's own: those for the store may all be waiting for it, which is when somebody looks here.
    return Response(await asyncio.to_thread(render), media_type=_CONTENT_TYPE)
