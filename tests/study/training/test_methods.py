"""Laws that hold for every method a study can train."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from models.baselines import (
    CalibratedStackingConfig,
    CLIPAdapterConfig,
    CoOpConfig,
    LinearProbeConfig,
    TipAdapterConfig,
)
from models.heads import TransductiveVoteConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from models.transductive import InMaPConfig, TransCLIPConfig, ZLaPConfig
from study.evaluation.metrics import evaluate
from study.protocol.trial_data import TrialData, oracle_data
from study.training.loop import TrainingOptions, train_pack
from study.training.methods import METHODS, static_fields
from study.training.refit import refit_pack
from study.training.scoring import LaneResult

PVA = PVAConfig(latent_dim=12, hidden=8, batch_size=16, score="relative")
CONFIGS: list[Any] = [
    SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8, batch_size=16),
    PVA,
    replace(PVA, score="cosine", alignment="w2", prompts="none"),
    replace(PVA, variational=False, residual=False),
    replace(PVA, separation=False),
    CLIPAdapterConfig(width=8, batch_size=16),
    TipAdapterConfig(shots=2, batch_size=16),
    TipAdapterConfig(variant="F", shots=2, batch_size=16),
    CoOpConfig(batch_size=64),
    replace(PVA, prompts="per_class", batch_size=64),
    LinearProbeConfig(batch_size=16),
    CalibratedStackingConfig(),
    ZLaPConfig(neighbours=3),
    TransCLIPConfig(),
    InMaPConfig(),
    TransductiveVoteConfig(),
]
IDS = [f"{type(c).__name__}-{i}" for i, c in enumerate(CONFIGS)]


def of(result: LaneResult) -> dict[str, Any]:
    return {k: v for k, v in asdict(result).items() if k != "train_seconds"}


def test_every_method_is_tested() -> None:
    assert {type(c) for c in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_lane_of_seven_is_the_lane_alone(data: TrialData, config: Any) -> None:
    """Random numbers, batches, sweeps and scores of a lane do not depend on its neighbours."""
    variants = [replace(config, lr=lr) if hasattr(config, "lr") else config for lr in (1e-3, 3e-3, 1e-2, 3e-4)]
    variants = [*variants, *variants[:3]]
    seeds = list(range(7))
    together = train_pack(
        variants, seeds=seeds, data=data, options=TrainingOptions(epochs=3, rungs=(1,), criterion="h")
    )
    for i in (0, 2, 6):
        (alone,) = train_pack(
            [variants[i]], seeds=[seeds[i]], data=data, options=TrainingOptions(epochs=3, rungs=(1,), criterion="h")
        )
        assert of(together[i])["curve"] == [(e, pytest.approx(s, abs=1e-5)) for e, s in alone.curve]
        assert of(together[i])["metrics"] == pytest.approx(alone.metrics, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_pruned_neighbour_leaves_no_trace(data: TrialData, config: Any) -> None:
    (alone,) = train_pack([config], seeds=[5], data=data, options=TrainingOptions(epochs=3, criterion="h"))
    _, survivor, _ = train_pack(
        [config] * 3,
        seeds=[1, 5, 9],
        data=data,
        judge=lambda e, s: [False, True, False],
        options=TrainingOptions(epochs=3, rungs=(1,), criterion="h"),
    )
    assert survivor.metrics == pytest.approx(alone.metrics, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if hasattr(c, "lr") and not isinstance(c, CalibratedStackingConfig)], ids=str
)
def test_a_diverging_lane_poisons_nothing(data: TrialData, config: Any) -> None:
    if not any(True for _ in _parameters(config, data)):
        pytest.skip("nothing is trained")
    good, bad = train_pack(
        [config, replace(config, lr=1e30)], seeds=[0, 1], data=data, options=TrainingOptions(epochs=3, criterion="h")
    )
    (alone,) = train_pack([config], seeds=[0], data=data, options=TrainingOptions(epochs=3, criterion="h"))
    assert good.state == "complete" and good.metrics == pytest.approx(alone.metrics, rel=1e-4, abs=1e-4)
    assert bad.state == "failed"


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_scoring_in_between_changes_nothing(data: TrialData, config: Any) -> None:
    """A search that judges at rungs trains what one without rungs trains."""
    with_rungs, without = (
        train_pack([config], seeds=[3], data=data, options=TrainingOptions(epochs=3, rungs=rungs, criterion="h"))[0]
        for rungs in ((1, 2), ())
    )
    assert with_rungs.curve[-1] == without.curve[-1]
    assert with_rungs.metrics == without.metrics


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_refit_trains_what_the_search_trained(data: TrialData, config: Any) -> None:
    """Swept knobs are part of the refitted configuration, and no part of its training."""
    (result,) = train_pack([config], seeds=[3], data=data, options=TrainingOptions(epochs=2, criterion="h"))
    found = {name: result.metrics[name] for name in METHODS[type(config)].swept if name in result.metrics}
    other = {name: value + 1 for name, value in found.items()}
    swept, moved = (
        refit_pack([replace(config, **knobs)], seeds=[3], data=data, epochs=2)[0] for knobs in (found, other)
    )
    trained = [name for name, _ in _module(config, data).named_parameters()]
    assert all(torch.equal(swept.weights[name], moved.weights[name]) for name in trained)


def _parameters(config: Any, data: TrialData) -> Any:
    return _module(config, data).parameters()


def _module(config: Any, data: TrialData) -> Any:
    trainable = torch.ones(1, len(data.source_labels_I), dtype=torch.bool)
    return METHODS[type(config)].build([config], [0], data.seen_C[None], trainable, data)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_methods_that_may_not_use_the_target_never_do(data: TrialData, config: Any) -> None:
    noise = replace(data, target_features_TD=torch.full_like(data.target_features_TD, torch.nan))
    (clean,) = train_pack([config], seeds=[0], data=data, options=TrainingOptions(epochs=2, criterion="h"))
    (noisy,) = train_pack([config], seeds=[0], data=noise, options=TrainingOptions(epochs=2, criterion="h"))
    assert (of(clean) == of(noisy)) != METHODS[type(config)].uses_target


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_swept_knobs_come_with_the_result_and_fit_the_configuration(
    data: TrialData, features: Any, config: Any
) -> None:
    (result,) = train_pack([config], seeds=[0], data=data, options=TrainingOptions(epochs=2, criterion="h"))
    found = {name: result.metrics[name] for name in METHODS[type(config)].swept if name in result.metrics}
    expected = set(METHODS[type(config)].swept)
    if isinstance(config, PVAConfig) and not config.separation:
        expected -= {"tau"}
    assert set(found) == expected
    (refit,) = refit_pack([replace(config, **found)], seeds=[0, 1], data=data, epochs=2)
    (metrics, _) = evaluate(refit.predictions_ST, features.target_labels, data.seen_C)
    assert metrics["test_h"] > 0.2  # chance is 0.08
    # the division agrees with the prediction: each image goes to one of its two candidates
    division = refit.division
    if not (isinstance(config, PVAConfig) and not config.separation):
        either = (refit.predictions_ST == division.seen_KI) | (refit.predictions_ST == division.unseen_KI)
        assert either.all()
    assert data.seen_C[division.seen_KI].all() and not data.seen_C[division.unseen_KI].any()


def test_an_oracle_chooses_its_threshold_on_the_test_images(data: TrialData, features: Any) -> None:
    (honest,) = train_pack([PVA], seeds=[0], data=data, options=TrainingOptions(epochs=2, criterion="h"))
    (oracle,) = train_pack(
        [PVA],
        seeds=[0],
        data=oracle_data(data, features.target_labels),
        options=TrainingOptions(epochs=2, criterion="h"),
    )
    assert honest.metrics["tau"] != oracle.metrics["tau"]


def test_static_fields_leave_lane_knobs_out() -> None:
    assert static_fields(LinearProbeConfig()) == (("batch_size", 128),)
