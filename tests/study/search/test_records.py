"""Which study is it? What study.json and a ledger say, to the byte, and the one message where they differ."""

import json
from dataclasses import replace

import pytest
import toy

from data_prep.errors import UserError
from study.search.records import StudyIdentity, require_same

OF_SEARCH = toy.IDENTITY.of_search(
    benchmark="Toy",
    clip="toy/clip",
    fingerprint="f00d",
    rotation=1,
    pruning=True,
    sampler="tpe",
    criterion="h",
    precision="float32",
)


def test_study_json_is_as_it_always_was() -> None:
    identity = replace(toy.IDENTITY, rotation="all", templates=("a photo of {}.",), clip=None)
    assert json.dumps(identity.study_json()) == (
        '{"space": "toy", "benchmark": "toy", "clip": null, "rotation": "all", "templates": ["a photo of {}."], '
        '"epochs": 4, "seed": 0, "objective": "h", "select": "pseudo-unseen", "folds": 3, "ledger": null, '
        '"knobs": [], "enqueue": [], "test_share": null}'
    )


def test_a_ledgers_identity_is_as_it_always_was() -> None:
    x = {"x": ["lane", 0.0, 1.0, False, None, None]}
    space = replace(toy.SPACE, name="other", knobs=toy.SPACE.knobs[-1:])
    assert json.dumps(OF_SEARCH.ledger_json(space)) == (
        '{"space": "other", "objective": "h", "benchmark": "Toy", "clip": "toy/clip", "fingerprint": "f00d", '
        '"rotation": 1, "epochs": 4, "pruning": true, "sampler": "tpe", "seed": 0, "select": "pseudo-unseen", '
        f'"folds": 3, "criterion": "h", "precision": "float32", "knobs": {json.dumps(x)}, "training": 5}}'
    )
    assert OF_SEARCH.ledger_json(toy.SPACE)["knobs"]["width"] == ["static", 4, 64, True, None, ["layers", [1, 2]]]


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (replace(toy.IDENTITY, epochs=8), "epochs was 8, now 4"),
        (replace(toy.IDENTITY, seed=1, clip=None), "clip was None, now 'toy'; seed was 1, now 0"),
    ],
)
def test_another_study_is_one_clear_line(identity: StudyIdentity, message: str) -> None:
    toy.IDENTITY.require(toy.IDENTITY.study_json(), "results/toy")
    with pytest.raises(UserError) as error:
        toy.IDENTITY.require(identity.study_json(), "results/toy")
    rule = f"must repeat the study's options, results/toy holds another study: {message}"
    assert error.value.on_command_line() == f"--resume {rule}"


def test_other_knobs_are_one_clear_line() -> None:
    mine, theirs = (OF_SEARCH.ledger_json(s) for s in (toy.SPACE, replace(toy.SPACE, knobs=toy.SPACE.knobs[1:])))
    with pytest.raises(UserError, match="needs the knobs of space toy as they were when results/toy was begun"):
        require_same(theirs, mine, "results/toy")


def test_results_of_another_training_are_not_mixed() -> None:
    mine = OF_SEARCH.ledger_json(toy.SPACE)
    older = {name: value for name, value in mine.items() if name != "training"}
    with pytest.raises(UserError, match="cannot mix results: .* than that of results/toy"):
        require_same(older, mine, "results/toy")
