"""The loop: every case takes its own steps and ends with its own status."""

from dataclasses import dataclass

import pytest
import torch
from analytic import names
from torch import Tensor

from isoresponse.loop import Status, count_statuses, failed, iterate, join, put, status_tensor, take


@dataclass(frozen=True)
class Counter:
    left: Tensor
    steps: Tensor
    note: str = "kept"


def counting(left):
    return Counter(torch.tensor(left), torch.zeros(len(left), dtype=torch.int64))


def count_down(state, cases):
    left = state.left - 1
    status = status_tensor(Status.RUNNING, left).masked_fill(left == 0, int(Status.DONE))
    return Counter(left, state.steps + 1), status.masked_fill(left == 6, int(Status.FLAT))


def test_every_case_stops_at_its_own_step():
    state, status = iterate(count_down, counting([1, 3, 2]), 10)
    assert state.left.tolist() == [0, 0, 0]
    assert state.steps.tolist() == [1, 3, 2]
    assert status.tolist() == [Status.DONE] * 3


def test_the_limit_ends_only_those_still_running():
    state, status = iterate(count_down, counting([1, 6, 2]), 2)
    assert state.steps.tolist() == [1, 2, 2]
    assert names(status) == ["DONE", "MAX_STEPS", "DONE"]


def test_a_failed_case_is_frozen_and_the_others_go_on():
    state, status = iterate(count_down, counting([7, 5]), 10)
    assert state.left.tolist() == [6, 0]
    assert names(status) == ["FLAT", "DONE"]


def test_a_finished_case_leaves_the_batch_and_step_is_told_who_remains():
    seen = []

    def step(state, cases):
        seen.append(cases.tolist())
        assert len(state.left) == len(cases)
        return count_down(state, cases)

    iterate(step, counting([2, 1, 3]), 10)
    assert seen == [[0, 1, 2], [0, 2], [2]]


def test_no_steps_leave_the_state_as_it_was():
    state, status = iterate(count_down, counting([2, 1]), 0)
    assert state.left.tolist() == [2, 1]
    assert status.tolist() == [Status.MAX_STEPS] * 2


def test_an_empty_batch_ends_at_once():
    state, status = iterate(count_down, Counter(torch.zeros(0), torch.zeros(0, dtype=torch.int64)), 5)
    assert len(state.left) == len(status) == 0


def test_the_state_given_is_not_changed():
    given = counting([2, 1])
    iterate(count_down, given, 10)
    assert given.left.tolist() == [2, 1]


@pytest.mark.parametrize("cases", [torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=["indices", "mask"])
def test_take_restricts_tensors_and_keeps_the_rest(cases):
    part = take(counting([5, 6, 7]), cases)
    assert part.left.tolist() == torch.tensor([5, 6, 7])[cases].tolist()
    assert part.note == "kept"


def test_put_undoes_take():
    whole, cases = counting([5, 6, 7]), torch.tensor([2, 0])
    assert put(whole, cases, take(whole, cases)).left.tolist() == [5, 6, 7]
    assert put(whole, cases, counting([1, 2])).left.tolist() == [2, 6, 1]


def test_join_undoes_splitting():
    whole = counting([5, 6, 7])
    parts = [take(whole, torch.tensor([0])), take(whole, torch.tensor([1, 2]))]
    assert join(parts).left.tolist() == [5, 6, 7]


def test_failed_are_exactly_the_statuses_without_an_answer():
    without = {Status.FLAT, Status.BLOCKED, Status.UNREACHABLE, Status.NOT_FINITE, Status.TOO_WIDE, Status.UNDEFINED}
    assert {s for s in Status if s.failed} == without
    mask = failed(torch.tensor([int(s) for s in Status]))
    assert {s for s, bad in zip(Status, mask.tolist(), strict=True) if bad} == without


def test_every_status_has_its_own_sentence_and_failures_say_so():
    sentences = [s.sentence for s in Status]
    assert len(set(sentences)) == len(Status)
    assert all(s.sentence.startswith("failed") == s.failed for s in Status)


def test_statuses_are_counted_by_name_in_their_own_order():
    counts = count_statuses(torch.tensor([5, 1, 1, 2]))
    assert counts == {"DONE": 2, "MAX_STEPS": 1, "FLAT": 1}
    assert list(counts) == ["DONE", "MAX_STEPS", "FLAT"]
