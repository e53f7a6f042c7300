"""Keeps each chat's turns in order: one queue and one task per chat, gone when nothing waits.

One chat's turns are answered one after another, because an agent server does not see a run of the same session that is still going
on; chats never wait for each other. Each turn's row in the ledger follows it: ``running`` when its answer is begun, ``delivering`` when
the whole answer is in the outbox, ``done`` when nothing is left to do. A turn that never began keeps its row, and is taken up again at the
next start.

Runs on the event loop only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec import structs

from omni.faults import fault_facts
from omni.gateway.starting_line import StartingLine
from omni.gateway.turn import Turn
from omni.ports import Ledger, PutInbound
from omni.records import InboxRecord, InboxState

log = logging.getLogger(__name__)

STOPPED_BEFORE = "Omni stopped before this turn began; it is taken up again at the next start"

# What each state adds to the version the row had when the turn was queued, so that no order of writing can undo a later state.
_VERSION_STEPS: dict[InboxState, int] = {"stored": 0, "running": 1, "delivering": 2, "done": 3}

_Chat = tuple[str, str]


class ChatQueues:
    """All chats' queues. ``answer`` is given one turn at a time per chat and must not raise for what an agent or a channel does."""

    def __init__(self, answer: Callable[[Turn], Awaitable[object]], *, ledger: Ledger) -> None:
        self._answer = answer
        self._ledger = ledger
        self._waiting: dict[_Chat, deque[Turn]] = {}
        self._tasks: dict[_Chat, asyncio.Task[None]] = {}
        self._num_waiting = 0
        self._starting_line = StartingLine()

    @property
    def num_waiting(self) -> int:
        """Turns queued and not yet begun."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Chats with a turn being answered."""
        return len(self._tasks)

    def put(self, turn: Turn) -> None:
        """Queue a turn behind those of its chat; before one that was written later and waits still. Never blocks."""
        chat = (turn.instance.name, turn.message.chat_key)
        turns = self._waiting.setdefault(chat, deque())
        turns.insert(_place_of(turn, turns), turn)
        self._num_waiting += 1
        if chat not in self._tasks:
            self._tasks[chat] = asyncio.get_running_loop().create_task(self._run_chat(chat), name="omni-chat")

    async def aclose(self, *, deadline_s: float) -> None:
        """Begin no further turn, let running ones finish until the deadline, then cut them off; each is on record."""
        for turns in self._waiting.values():
            for turn in turns:
                turn.trace.end_turn("interrupted", error_message=STOPPED_BEFORE, error_stage="interrupted")
            turns.clear()
        self._num_waiting = 0
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=deadline_s)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    async def _run_chat(self, chat: _Chat) -> None:
        turns = self._waiting[chat]
        try:
            await self._starting_line.wait()
            while turns:
                turn = turns.popleft()
                self._num_waiting -= 1
                await self._run_turn(turn)
        finally:
            del self._tasks[chat]
            del self._waiting[chat]

    async def _run_turn(self, turn: Turn) -> None:
        record = turn.record
        if record is not None:
            record = structs.replace(record, num_takes=record.num_takes + 1)
            self._mark(record, "running")
            turn = structs.replace(
                turn,
                on_delivering=partial(self._mark, record, "delivering"),
                on_closed=lambda _: self._mark(record, "done"),
            )
        try:
            await self._answer(turn)
        except Exception as exc:  # noqa: BLE001 - around one message's task (docs/decisions/0006-broad-excepts.md)
            # A bug of ours must cost one turn, not the chat; it is an ERROR because a person should act.
            facts = {"trace_id": turn.trace.trace_id, **fault_facts(exc)}
            log.error("turn_failed", extra=facts)  # noqa: TRY400 - a traceback could hold text
            turn.trace.end_turn("error", error_message=type(exc).__name__, error_stage="processing")
            if turn.on_closed is not None:
                turn.on_closed("error")

    def _mark(self, record: InboxRecord, state: InboxState) -> None:
        self._ledger.post(PutInbound(at_state(record, state)))


def at_state(record: InboxRecord, state: InboxState) -> InboxRecord:
    """The row of a queued turn in a later state; what the message said is kept until it is done."""
    message = None if state == "done" else record.message
    return structs.replace(record, state=state, version=record.version + _VERSION_STEPS[state], message=message)


def _place_of(turn: Turn, turns: deque[Turn]) -> int:
    """Behind all turns that were not written later, by WhatsApp's stamp; webhooks may overtake each other."""
    sent_at_s = turn.message.sent_at_s
    place = len(turns)
    if sent_at_s is not None:
        while place:
            before_s = turns[place - 1].message.sent_at_s
            if before_s is None or before_s <= sent_at_s:
                break
            place -= 1
    return place
