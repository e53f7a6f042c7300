"""The checker finds every kind of fault, by its name, and finds none in books that balance.

A check that cannot fail proves nothing, so each kind has books that are clean but for that one thing, and one test holds the list
of them against the list of kinds.
"""

from collections.abc import Callable

import pytest
from msgspec import structs
from tests.faults.account import FAULT_KINDS, LOST, OUT_OF_ORDER, REPEATED
from tests.faults.broken_books import BROKEN, TURN, cut_desk, message_repeated, turn_out_of_order
from tests.faults.checker import judge
from tests.faults.clean_books import SMALL, Desk, change_message, change_trace, clean_desk
from tests.faults.plans import plan_run


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_each_thing_that_can_go_wrong_is_found_under_its_name(broken: Callable[[], Desk]) -> None:
    assert set(judge(broken().books()).kinds) == BROKEN[broken]


def test_every_kind_of_fault_is_found_in_some_broken_books() -> None:
    """A kind that no books provoke would be a check that cannot fail."""
    found = {kind for kinds in BROKEN.values() for kind in kinds} | {"verify_disagrees"}
    assert found == set(FAULT_KINDS)


def test_what_verify_says_is_a_fault_word_for_word() -> None:
    books = structs.replace(clean_desk().books(), disagreements=("trace 1: content differs",))
    assert [str(fault) for fault in judge(books).faults] == [
        "verify_disagrees at omni traces verify: trace 1: content differs"
    ]


def test_books_that_balance_have_no_fault_and_every_count() -> None:
    books = clean_desk().books()
    account = judge(books)
    num_chunks = sum(len(turn.pieces) for turn in SMALL.turns)
    assert account.faults == ()
    assert account.counts == {
        "messages written": 4,
        "messages acknowledged": 4,
        "webhooks posted": 4,
        "answered whole": 4,
        "agent asked": 4,
        "chunks written": num_chunks,
        "chunks kept": num_chunks,
        "messages sent": 12,
        "  of these notices": 0,
        "messages on record": 12,
        "  of these not sent": 0,
        "traces completed": 4,
    }


@pytest.mark.parametrize("num_paragraphs", [0, 1, 2])
@pytest.mark.parametrize("num_pieces", range(1, len(TURN.pieces)))
def test_a_turn_cut_anywhere_is_in_order_when_its_failure_is_on_record(num_pieces: int, num_paragraphs: int) -> None:
    """A beginning and one notice: what a kill may leave behind, wherever it cuts, in the middle of a mark as well."""
    assert judge(cut_desk(num_pieces, num_paragraphs).books()).faults == ()


def test_a_turn_begun_again_before_anybody_saw_it_is_in_order() -> None:
    desk = Desk()
    for turn in desk.plan.turns:
        desk.post(turn)
        if turn is TURN:
            first = desk.answer(turn, num_pieces=2, num_paragraphs=0)
            # No notice went out either: nobody was told anything.
            key_ids = {message.key_id for message in first.messages if message.is_notice}
            desk.accepted = [message for message in desk.accepted if message.key_id not in key_ids]
            desk.outbox = [row for row in desk.outbox if row.key_id not in key_ids]
            change_trace(desk, 0, messages=tuple(m for m in first.messages if not m.is_notice))
            desk.inbox.clear()
        desk.answer(turn)
    assert judge(desk.books()).faults == ()


def test_a_late_message_that_is_recorded_and_not_answered_is_in_order() -> None:
    desk = Desk()
    late = structs.replace(TURN, expectation="recorded")
    desk.plan = structs.replace(desk.plan, turns=(late, *desk.plan.turns[1:]))
    for turn in desk.plan.turns:
        desk.post(turn)
        desk.answer(turn)
    key_ids = {message.key_id for message in desk.traces[0].messages}
    desk.asked.pop(0)
    desk.accepted = [message for message in desk.accepted if message.key_id not in key_ids]
    desk.outbox = [row for row in desk.outbox if row.key_id not in key_ids]
    change_trace(desk, 0, ending="error", chunks=(), contents=(), messages=())
    assert judge(desk.books()).faults == ()


def test_messages_taken_at_the_same_time_may_be_answered_in_any_order() -> None:
    """Webhooks overtake each other; only what was acknowledged before the other was posted has to come first."""
    desk = turn_out_of_order()
    desk.posted[1].first_posted_ns = desk.posted[0].first_posted_ns
    assert judge(desk.books()).faults == ()


def test_a_message_whose_fate_nobody_knows_may_have_arrived() -> None:
    desk = clean_desk()
    gone = desk.traces[0].messages[2]
    change_message(desk, 0, 2, status="failed", key_id=None, error_kind="ambiguous")
    change_trace(desk, 0, ending="send_failed")
    desk.outbox = [
        structs.replace(row, state="failed", key_id=None) if row.key_id == gone.key_id else row for row in desk.outbox
    ]
    assert judge(desk.books()).faults == ()


def test_a_question_nobody_has_posted_yet_is_not_missed() -> None:
    desk = Desk()
    desk.post(TURN)
    desk.answer(TURN)
    assert judge(desk.books()).faults == ()


def test_the_table_names_counts_and_faults() -> None:
    lines = judge(message_repeated().books()).table().splitlines()
    assert lines[0] == "run 1, seed 7"
    assert [line for line in lines if line.split()[:1] in (["lost"], ["duplicated"], ["faults"])] == [
        "  lost                              0",
        "  duplicated                        1",
        "  faults                            3",
    ]
    assert "  ! message_repeated at chat 0 message 0: paragraph 1" in lines


def test_no_kind_counts_twice() -> None:
    kinds = (*LOST, *REPEATED, *OUT_OF_ORDER)
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) <= set(FAULT_KINDS)


def test_plans_are_the_same_for_the_same_seed_and_differ_between_runs() -> None:
    assert plan_run(3, seed=1) == plan_run(3, seed=1)
    assert plan_run(3, seed=1).turns[0].pieces != plan_run(3, seed=2).turns[0].pieces
    assert {"".join(turn.pieces) == turn.text for turn in plan_run(3, seed=1).turns} == {True}


def test_the_piece_that_completes_a_paragraph_is_the_first_with_the_whole_blank_line() -> None:
    for turn in plan_run(5, seed=11).turns:
        for place, index in enumerate(turn.completing_pieces[:-1]):
            behind = "\n\n".join(turn.paragraphs[: place + 1]) + "\n\n"
            assert len("".join(turn.pieces[: index + 1])) >= len(behind) > len("".join(turn.pieces[:index]))
