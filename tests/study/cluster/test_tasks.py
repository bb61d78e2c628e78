"""How long the parts of a search take, asked before it starts."""

import pytest
import torch
import toy

import search_spaces
from study.cluster import tasks


def test_votes_of_many_images_are_timed_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 3.0])  # the nearest images, and all that votes take
    monkeypatch.setattr(tasks, "IMAGES_TIMED", 2)
    monkeypatch.setattr(tasks, "_seconds", lambda work, data: (work(), next(seconds))[1])
    times = tasks.time_lanes_here([], toy.trial_data(), votes=True)  # four images
    assert times == tasks.Times(epoch={}, votes=1.0 * 4 + 2.0 * 2)


def test_timing_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    times = tasks.time_lanes_here([search_spaces.load("linear-probe")], toy.trial_data(), votes=False)
    assert times.epoch["linear-probe"] > 0 and times.votes == 0
    assert torch.get_num_threads() == before
