"""How a Hive server is reached: below which path it serves runs, and in which header it wants its key.

Hive 0.1.x serves below ``/playground`` and reads ``x-api-key``; later versions serve at the root and read ``Authorization: Bearer``. Nobody
has to configure that: ``HiveAccess`` walks through the possibilities a server's own answers leave open, and remembers per server
what it took. A 404 about the agent and a 401 about every header are final answers, not reasons to go on guessing.

No I/O here; ``hive`` makes the calls.
"""

from typing import Literal
from urllib.parse import quote

from msgspec import Struct

from omni.model import AgentRequest

KeyStyle = Literal["both", "x-api-key", "bearer"]

PLAYGROUND = "/playground"
# Both headers at once are taken by every version seen; a server or proxy that minds one of them gets each alone.
_KEY_STYLES: tuple[KeyStyle, ...] = ("both", "x-api-key", "bearer")
_NO_SUCH_PATH = "Not Found"  # the web framework's own words; a missing agent is "Agent not found"


class Route(Struct, frozen=True):
    """One way to reach a server's runs."""

    prefix: str
    key_style: KeyStyle


class Search:
    """The ways to reach one server that are still open; ``route`` is the one to try now."""

    __slots__ = ("_key_styles", "_prefixes")

    def __init__(self, prefixes: list[str], key_styles: list[KeyStyle]) -> None:
        self._prefixes = prefixes
        self._key_styles = key_styles

    @property
    def route(self) -> Route:
        """The way to try now."""
        return Route(self._prefixes[0], self._key_styles[0])

    def rule_out(self, status: int, detail: str) -> bool:
        """Take an error answer into account; True when another way is left to try."""
        if status == 404 and detail == _NO_SUCH_PATH:
            candidates: list[str] | list[KeyStyle] = self._prefixes
        elif status == 401:
            candidates = self._key_styles
        else:
            return False
        if len(candidates) == 1:
            return False
        del candidates[0]
        return True


class HiveAccess:
    """What is known of each server, by base URL. One per client; used on the event loop only."""

    def __init__(self) -> None:
        self._route_by_server: dict[str, Route] = {}

    def search(self, request: AgentRequest) -> Search:
        """The ways to reach the request's server, the remembered one first."""
        server, is_playground = _server_of(request.base_url)
        prefixes = [PLAYGROUND, ""] if is_playground else ["", PLAYGROUND]
        key_styles = list(_KEY_STYLES) if request.api_key else [_KEY_STYLES[0]]
        known = self._route_by_server.get(server)
        if known is not None:
            prefixes.sort(key=lambda prefix: prefix != known.prefix)
            key_styles.sort(key=lambda style: style != known.key_style)
        return Search(prefixes, key_styles)

    def remember(self, request: AgentRequest, route: Route) -> None:
        """Note the way a server took. A call without a key says nothing about the header a key belongs in."""
        server, _ = _server_of(request.base_url)
        known = self._route_by_server.get(server)
        if not request.api_key and known is not None:
            route = Route(route.prefix, known.key_style)
        self._route_by_server[server] = route


def shows_the_way(status: int, detail: str) -> bool:
    """Whether a refusal came from behind the right path and with an accepted key: bad form, or no such agent."""
    return status in (400, 422) or (status == 404 and detail != _NO_SUCH_PATH)


def run_url(request: AgentRequest, route: Route) -> str:
    """The URL that starts a run of the request's agent or team."""
    server, _ = _server_of(request.base_url)
    return f"{server}{route.prefix}/{request.agent_kind}s/{quote(request.agent_id, safe='')}/runs"


def key_headers(api_key: str | None, style: KeyStyle) -> dict[str, str]:
    """The headers that carry the key; none without a key."""
    # Keys are pasted into configurations, often with a line end.
    key = (api_key or "").strip()
    headers: dict[str, str] = {}
    if key and style != "bearer":
        headers["x-api-key"] = key
    if key and style != "x-api-key":
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _server_of(base_url: str) -> tuple[str, bool]:
    """The base URL without slashes at its end and without the playground path; whether it had that path."""
    server = base_url.strip().rstrip("/")
    if server.endswith(PLAYGROUND):
        return server.removesuffix(PLAYGROUND).rstrip("/"), True
    return server, False
