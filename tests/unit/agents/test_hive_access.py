"""A server's own answers lead to its path and key header, and what worked is tried first from then on."""

import pytest

from omni.agents.hive_access import HiveAccess, Route, key_headers, run_url, shows_the_way
from omni.model import AgentRequest


def request(base_url="http://hive:8886", **changes):
    fields = {
        "base_url": base_url,
        "api_key": "k",
        "agent_kind": "agent",
        "agent_id": "wire",
        "message": "oi",
        "session_id": "s",
        "user_id": "u",
    }
    return AgentRequest(**(fields | changes))


def walk(access, asked, answers):
    """The routes a search tries while it is given these error answers."""
    search = access.search(asked)
    tried = [search.route]
    for answer in answers:
        if not search.rule_out(*answer):
            break
        tried.append(search.route)
    return tried


NO_PATH, NO_KEY, NO_AGENT = (404, "Not Found"), (401, "Authorization header required"), (404, "Agent not found")


@pytest.mark.parametrize(
    ("asked", "answers", "tried"),
    [
        (request(), [NO_AGENT], [("", "both")]),
        (request(), [(422, "Not Found"), NO_PATH], [("", "both")]),
        (request(), [NO_PATH, NO_PATH], [("", "both"), ("/playground", "both")]),
        (request("http://hive/playground/"), [NO_PATH, NO_PATH], [("/playground", "both"), ("", "both")]),
        (request(), [NO_KEY] * 3, [("", "both"), ("", "x-api-key"), ("", "bearer")]),
        (request(api_key=None), [NO_KEY] * 3, [("", "both")]),
        (
            request(),
            [NO_PATH, NO_KEY, NO_KEY, NO_PATH],
            [("", "both"), ("/playground", "both"), ("/playground", "x-api-key"), ("/playground", "bearer")],
        ),
    ],
)
def test_a_search_ends_when_answers_leave_nothing_to_try(asked, answers, tried):
    assert walk(HiveAccess(), asked, answers) == [Route(*way) for way in tried]


def test_what_worked_is_tried_first_and_the_rest_after_it():
    access = HiveAccess()
    access.remember(request(), Route("/playground", "x-api-key"))
    assert walk(access, request("http://hive:8886/"), [NO_PATH, NO_KEY, NO_KEY]) == [
        Route("/playground", "x-api-key"),
        Route("", "x-api-key"),
        Route("", "both"),
        Route("", "bearer"),
    ]
    assert access.search(request("http://other:8886")).route == Route("", "both")


def test_a_call_without_key_does_not_forget_where_the_key_goes():
    access = HiveAccess()
    access.remember(request(), Route("", "bearer"))
    access.remember(request(api_key=""), Route("/playground", "both"))
    assert access.search(request()).route == Route("/playground", "bearer")


@pytest.mark.parametrize(
    ("answer", "is_way"),
    [
        ((400, ""), True),
        ((422, ""), True),
        (NO_AGENT, True),
        (NO_PATH, False),
        (NO_KEY, False),
        ((403, ""), False),
        ((500, ""), False),
    ],
)
def test_some_refusals_show_that_path_and_key_were_right(answer, is_way):
    assert shows_the_way(*answer) is is_way


@pytest.mark.parametrize(
    ("asked", "prefix", "url"),
    [
        (request("http://hive:8886"), "", "http://hive:8886/agents/wire/runs"),
        (request("http://hive:8886//"), "/playground", "http://hive:8886/playground/agents/wire/runs"),
        (request(" http://hive/playground/ "), "/playground", "http://hive/playground/agents/wire/runs"),
        (request("http://hive/playground"), "", "http://hive/agents/wire/runs"),
        (
            request("https://h/api/v2", agent_kind="team", agent_id="a/b é"),
            "",
            "https://h/api/v2/teams/a%2Fb%20%C3%A9/runs",
        ),
    ],
)
def test_run_url(asked, prefix, url):
    assert run_url(asked, Route(prefix, "both")) == url


@pytest.mark.parametrize(
    ("key", "style", "headers"),
    [
        ("k", "both", {"x-api-key": "k", "Authorization": "Bearer k"}),
        ("k\n", "x-api-key", {"x-api-key": "k"}),
        (" k", "bearer", {"Authorization": "Bearer k"}),
        ("", "both", {}),
        (None, "both", {}),
        ("\n", "both", {}),
    ],
)
def test_key_headers(key, style, headers):
    assert key_headers(key, style) == headers
