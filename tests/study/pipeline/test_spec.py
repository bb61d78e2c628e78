"""Rules of options that need no work."""

from pathlib import Path
from typing import Any

import pytest

import search_spaces
from data_prep.checkpoint import Checkpoint
from data_prep.errors import UserError
from search_spaces import Space
from study.options import SearchOptions
from study.pipeline.spec import _for_checkpoint


def space(name: str) -> Space:
    loaded = search_spaces.load(name)
    assert isinstance(loaded, Space)
    return loaded


def checkpoint(kind: str) -> Checkpoint:
    return Checkpoint(name="mine", folder=Path(), identity={}, model_type=kind, dimension=4)


BASELINES = (space("linear-probe"), space("coop"))


@pytest.mark.parametrize(
    ("said", "on_one", "on_several"), [("auto", True, False), ("yes", True, True), ("no", False, False)]
)
def test_packs_wait_at_rungs_on_one_machine_unless_told(said: Any, on_one: bool, on_several: bool) -> None:
    search = SearchOptions(repeatable=said)
    assert (search.waits(alone=True), search.waits(alone=False)) == (on_one, on_several)


def test_clip_has_all_baselines() -> None:
    assert _for_checkpoint(checkpoint("clip"), space("pva-prompts"), BASELINES, "coop") == (BASELINES, ())


@pytest.mark.parametrize("chosen", ["auto", "all"])
def test_of_other_families_baselines_that_learn_prompts_are_left_out_and_said(chosen: str) -> None:
    kept, notes = _for_checkpoint(checkpoint("siglip"), space("pva"), BASELINES, chosen)
    assert [baseline.name for baseline in kept] == ["linear-probe"]
    assert notes == ("left out: coop, which learns prompts through the text tower of CLIP; mine is another model",)


def test_of_other_families_what_was_named_is_refused() -> None:
    with pytest.raises(UserError, match="^baselines must leave out coop, which learns prompts"):
        _for_checkpoint(checkpoint("siglip"), space("pva"), BASELINES, "linear-probe,coop")
    with pytest.raises(UserError, match="^clip must be CLIP: pva-prompts learns prompts through the text tower"):
        _for_checkpoint(checkpoint("open_clip"), space("pva-prompts"), (), "none")
