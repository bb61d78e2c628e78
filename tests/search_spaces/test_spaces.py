import hashlib
import json
from dataclasses import fields

import pytest

import search_spaces
from data_prep.errors import UserError
from models.heads import HEADS
from search_spaces import Ablation, Knob, Space
from study.training.methods import METHODS

KNOBS = {
    "calibrated-stacking": "4f53cda18c2baa0c",
    "clip-adapter": "be8cbad1c272c0a2",
    "coop": "f045a6966b432e3d",
    "inmap": "4f53cda18c2baa0c",
    "linear-probe": "2f63147d4b9c58eb",
    "pva": "0bc6489c98e7dd2b",
    "pva-ablation": "0bc6489c98e7dd2b",
    "pva-prompts": "65fbeea2a910a1a2",
    "sre": "95bf76ffdc62d354",
    "sre-ablation": "95bf76ffdc62d354",
    "tip-adapter": "4f53cda18c2baa0c",
    "tip-adapter-f": "2fd69850190cd2aa",
    "transclip": "4f53cda18c2baa0c",
    "transductive-vote": "4f53cda18c2baa0c",
    "zlap": "4f53cda18c2baa0c",
}
"""Hashes of all that a space says of its knobs."""


@pytest.mark.parametrize("name", search_spaces.shipped())
def test_knobs_are_those_that_studies_were_begun_with(name: str) -> None:
    """A study resumes only under the same knobs: change a hash with a knob, and know that older studies end there."""
    loaded = search_spaces.load(name)
    knobs = (loaded.space if isinstance(loaded, Ablation) else loaded).knobs
    facts = [[k.name, k.scope, k.low, k.high, k.log, k.choices, k.when, k.default, k.why] for k in knobs]
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16] == KNOBS[name]


@pytest.mark.parametrize("name", search_spaces.shipped())
def test_every_shipped_space_is_whole(name: str) -> None:
    loaded = search_spaces.load(name)
    assert loaded.name == name
    space = loaded.space if isinstance(loaded, Ablation) else loaded
    lane_knobs = {k.name for k in space.knobs if k.scope == "lane"}
    config = space.config(**space.defaults())
    assert {k.name for k in space.knobs} <= {f.name for f in fields(config)}
    assert type(config) in METHODS
    assert lane_knobs <= config.LANE_KNOBS
    assert not {k.name for k in space.knobs if k.scope == "static"} & config.LANE_KNOBS
    for knob in space.knobs:
        for value in knob.choices or (knob.low, knob.high):
            space.config(**{**space.defaults(), knob.name: int(value) if knob.is_int else value})
    if isinstance(loaded, Ablation):
        for changes in loaded.variants.values():
            space.config(**{**space.defaults(), **changes})


@pytest.mark.parametrize("name", search_spaces.shipped())
def test_the_default_is_the_middle_of_its_range(name: str) -> None:
    """No default was tuned: half-way, on the knob's own scale, to the digit that one would write."""
    loaded = search_spaces.load(name)
    for knob in (loaded.space if isinstance(loaded, Ablation) else loaded).knobs:
        if knob.low is not None and knob.high is not None:
            middle = (knob.low * knob.high) ** 0.5 if knob.log else (knob.low + knob.high) / 2
            assert knob.default == pytest.approx(middle, rel=0.06), knob.name


def test_a_space_shows_its_defaults_as_those_of_the_configuration() -> None:
    space = search_spaces.load("sre")
    assert isinstance(space, Space)
    config = space.config()
    for knob in space.knobs:
        assert getattr(config, knob.name) == knob.default, knob.name


def test_a_conditional_knob_is_active_only_where_its_condition_holds() -> None:
    space = search_spaces.load("sre")
    assert isinstance(space, Space)
    flat = {**space.defaults(), "gcn_layers": 0}
    assert {"adjacency", "gcn_width"}.isdisjoint(k.name for k in space.active(flat))
    deep = {k.name for k in space.active({**space.defaults(), "gcn_layers": 2})}
    assert {"adjacency", "gcn_width"} <= deep


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(low=1.0), "give either choices or low and high"),
        (dict(low=0.0, high=1.0, log=True), "a log scale needs low > 0, got 0.0"),
        (dict(low=1.0, high=2.0), r"default must lie in \[1.0, 2.0\], got 0.5"),
        (dict(choices=(1, 2)), "default must be one of"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Knob(name="x", scope="lane", default=0.5, why="", **given)


def test_an_unknown_space_names_the_nearest() -> None:
    with pytest.raises(UserError, match="^space must be one of .* got 'srs' .nearest: sre.$") as error:
        search_spaces.load("srs")
    assert error.value.on_command_line().startswith("--space must be one of")
    with pytest.raises(UserError, match="^baselines must be"):
        search_spaces.load("srs", option="baselines")


def test_a_variant_of_a_winner_without_a_graph_network_takes_the_default_one() -> None:
    """Of a winner with gcn_layers=0 nothing would be left without the residual: such a study ended with a traceback."""
    ablation = search_spaces.load("sre-ablation")
    assert isinstance(ablation, Ablation)
    alone, winner = "no residual (GCN only)", {**ablation.space.defaults(), "gcn_layers": 0}
    assert ablation.params(alone, winner)["gcn_layers"] == 1
    assert ablation.params(alone, {**winner, "gcn_layers": 2})["gcn_layers"] == 2
    assert ablation.params("no adapter", winner)["gcn_layers"] == 0
    for variant in ablation.variants:
        ablation.space.config(**ablation.params(variant, winner))
    (layers,) = [k for k in ablation.researched(alone).knobs if k.name == "gcn_layers"]
    assert layers.choices == (1, 2) and layers.default == 1


def test_every_head_stands_beside_the_method_that_may_choose_it() -> None:
    """On CLIP's own features a head is a rival with the same rights: without its row nobody sees what training adds."""
    baselines = set(search_spaces.load("sre").baselines)
    alone = {head: "transductive-vote" if head == "vote" else head for head in HEADS if head != "none"}
    assert set(alone.values()) <= baselines
