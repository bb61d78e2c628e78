"""What stands on the leaderboard under which name."""

from dataclasses import dataclass, replace

import pytest

import search_spaces
from data_prep.errors import UserError
from models.heads import Head
from search_spaces import Space, Value
from study.pipeline.candidates import calibrated_entry, row_name, searched_candidate
from study.pipeline.choice import Choice
from study.search.records import Configuration
from study.training.method_template import SPACE, TaskResidualConfig, build
from study.training.methods import register


@pytest.mark.parametrize(
    ("space", "params", "head", "name"),
    [
        ("pva", {"score": "cosine"}, "none", "id"),
        ("pva", {"score": "relative"}, "none", "id-relative"),
        ("sre", {"adjacency": "symmetric"}, "none", "id"),
        ("sre", {"adjacency": "identity"}, "vote", "id-identity-vote"),
        ("sre", {"align": "cosine", "class_prior": "estimated"}, "inmap", "id-cosine-estimated-inmap"),
        ("linear-probe", {}, "none", "id"),
    ],
)
def test_a_row_says_what_the_article_of_its_method_has_not(
    space: str, params: dict[str, Value], head: Head, name: str
) -> None:
    found = search_spaces.load(space)
    assert isinstance(found, Space)
    assert row_name(found, "id", params, head) == name


def test_a_method_of_ones_own_says_what_its_article_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(TaskResidualConfig):
        start: str = "zero"

    monkeypatch.setattr(search_spaces, "REGISTERED", {})
    own = replace(SPACE, name="own-residual", config=Own)
    register(own, build=build, ours={"start": ["mean"]})
    assert [row_name(own, "id", {"start": start}) for start in ("zero", "mean")] == ["id", "id-mean"]
    with pytest.raises(UserError, match="ours must name fields of Own; it has no begin"):
        register(replace(own, name="other-residual"), build=build, ours={"begin": ["mean"]})


def test_under_a_head_h_and_constant_of_the_folds_are_the_head_s() -> None:
    space = search_spaces.load("sre")
    assert isinstance(space, Space)
    own = {"val_h_mean": 0.5, "seen_constant": 2.0, "val_h_calibrated": 0.55, "target_mi": 0.7}
    configuration = Configuration(
        index=0, number=0, config_id="id", params={}, seed=0, state="complete", score=0.1, metrics=own, curve=[],
        epochs=1, train_seconds=0.0, reason="", pareto=False,
    )  # fmt: skip
    of_head = {"val_h_mean": 0.6, "seen_constant": 1.5, "val_h_calibrated": 0.65}
    for choice, expected in (
        (Choice(configuration=configuration, score=None), own),
        (Choice(configuration=configuration, score=None, head="vote", of_head=of_head), {**own, **of_head}),
    ):
        entry = searched_candidate(space, choice).entry
        assert entry.metrics == expected
        calibrated = calibrated_entry(entry, ())
        assert calibrated is not None and calibrated.score is not None
        assert calibrated.method == "SRE-CLIP, calibrated" and calibrated.score.value == expected["val_h_calibrated"]
        assert calibrated_entry(entry, [entry.method]) is None  # not of its second refit
    # of an earlier version's votes nothing is known of the head, and a constant of other logits is none of its own
    old = searched_candidate(space, Choice(configuration=configuration, score=None, head="vote")).entry
    assert old.metrics == {"val_h_mean": 0.5, "target_mi": 0.7} and calibrated_entry(old, ()) is None
