"""Scenario e: sends that go wrong in every way that was recorded, and in the ways that leave nobody knowing whether a message went out.

Each trouble has a person of its own: one paragraph of the first answer runs into it, the second answer finds everything in order.
Typing signs are refused throughout, in every way that was recorded; nobody may notice more of it than that there is none.
"""

from collections.abc import Sequence
from typing import Literal

import pytest
from msgspec import Struct
from tests.faults.books import KeptTrace
from tests.faults.conftest import TIMEOUT_S
from tests.faults.front import (
    PRESENCE_ROUTE,
    RESET_SENT,
    RESET_UNSENT,
    SEND_ROUTE,
    SILENT_SENT,
    SILENT_UNSENT,
    Trouble,
    recorded_troubles,
)
from tests.faults.plans import Part, RunPlan, plan_run
from tests.faults.world import Run, open_world

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

TRANSIENT = ("send_fail", "send_unconnected")
"""Refusals of the captures that pass: a WhatsApp socket that is gone, or was never there."""
OUTLASTING = 20
"""More attempts than a message gets."""


class Case(Struct, frozen=True, kw_only=True):
    """One person's trouble and what it must come to."""

    name: str
    troubles: Sequence[Trouble]
    paragraph: int
    ending: Literal["completed", "send_failed"]


def cases() -> list[Case]:
    """All of them; the paragraph that is hit is the first for some, so that nothing has gone out, and a later one for others."""
    found = []
    for place, (name, trouble) in enumerate(recorded_troubles(SEND_ROUTE).items()):
        if name in TRANSIENT:
            found.append(Case(name=name, troubles=[trouble] * 3, paragraph=place % 2, ending="completed"))
            again = [trouble] * OUTLASTING
            found.append(Case(name=f"{name} for good", troubles=again, paragraph=1, ending="send_failed"))
        else:
            found.append(Case(name=name, troubles=[trouble], paragraph=place % 2, ending="send_failed"))
    for place, trouble in enumerate((SILENT_UNSENT, SILENT_SENT, RESET_UNSENT, RESET_SENT)):
        found.append(Case(name=trouble.name, troubles=[trouble], paragraph=place % 2, ending="completed"))
    return found


def outcomes(run: Run, plan: RunPlan, traces: Sequence[KeptTrace]) -> dict[str, tuple[str | None, int]]:
    """For each person's first message how its trace ended and how many of its paragraphs arrived."""
    found = {}
    for chat, case in enumerate(cases()):
        turn = plan.of_chat(chat)[0]
        endings = [trace.ending for trace in traces if trace.message_id == turn.mark.message_id]
        arrived = [sent for sent in run.accepted if sent.chat == chat and sent.text in turn.paragraphs]
        found[case.name] = (endings[0] if len(endings) == 1 else f"{len(endings)} traces", len(arrived))
    return found


async def test_every_recorded_error_and_every_broken_connection_ends_as_it_must(tmp_path, seed: int) -> None:
    """What passes is sent in the end, what is refused for good ends the turn there, what is unknown is found out before it is sent again."""
    plan = plan_run(0, seed=seed, num_chats=len(cases()), num_messages=2, num_paragraphs=(3, 3), wait_s=0.05)
    async with open_world(tmp_path, seed=seed) as world:
        run = world.begin(plan)
        for chat, case in enumerate(cases()):
            world.front.order(Part(plan.of_chat(chat)[0].mark, case.paragraph), case.troubles)
        world.front.refuse_presences(recorded_troubles(PRESENCE_ROUTE).values())
        run.write_all()
        await run.settled()
        account = await run.judged(with_verify=True)
        kept = await run.kept()

    expected = {
        case.name: (case.ending, 3 if case.ending == "completed" else case.paragraph) for case in cases()
    }  # fmt: skip
    assert outcomes(run, plan, kept.traces) == expected
    assert account.faults == ()
    num_failed = sum(case.ending == "send_failed" for case in cases())
    assert account.counts["answered whole"] == len(plan.turns) - num_failed
    assert world.front.num_refused_presences > 0
    assert {name for _, name in world.front.shown} == {trouble.name for case in cases() for trouble in case.troubles}
