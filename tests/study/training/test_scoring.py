"""Cross-fitted knobs and constants."""

from dataclasses import replace

import pytest
import torch

from models.baselines import CalibratedStackingConfig, LinearProbeConfig, TipAdapterConfig
from models.heads import HEADS
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from study.protocol.consensus import training_free_labels
from study.protocol.task import WithinHalves
from study.protocol.trial_data import TrialData, scored_images
from study.training.loop import TrainingOptions, train_pack
from study.training.pack import pack_on_folds
from study.training.scoring import CALIBRATED_H, CONSTANT, _halves

ONE = TrainingOptions(epochs=1)


def test_halves_share_every_class() -> None:
    assert _halves(torch.tensor([2, 0, 0, 2, 1, 2, 0])).tolist() == [True, True, False, False, True, True, True]


def test_h_of_a_swept_method_is_not_that_of_the_images_it_was_swept_on(data: TrialData) -> None:
    shuffled_I = torch.randperm(len(data.source_labels_I), generator=torch.Generator().manual_seed(0))
    noise = replace(data, source_labels_I=data.source_labels_I[shuffled_I])
    config = CalibratedStackingConfig()
    (result,) = train_pack([config], seeds=[0], data=noise, options=ONE)
    pack = pack_on_folds([config], seeds=[0], data=noise, epochs=1)
    scored_KI = torch.stack([scored_images(noise, fold) for fold in range(noise.folds)])
    swept = pack.module.sweep(noise.source_features_ID, noise.source_labels_I, allowed_KI=scored_KI)
    in_sample = sum(s.h[0] for s in swept) / len(swept)
    assert result.metrics["val_h_mean"] < in_sample
    # what the refit takes is chosen on all of the images
    (knobs,) = pack.calibrate(noise.source_features_ID, noise.source_labels_I, scored_KI, [[0, 1, 2]])
    assert result.metrics["constant"] == pytest.approx(knobs["constant"])


@pytest.mark.parametrize(
    ("config", "calibrated"),
    [
        (LinearProbeConfig(batch_size=32), True),
        (TipAdapterConfig(shots=4), True),
        (CalibratedStackingConfig(), False),
        (PVAConfig(latent_dim=12, hidden=8, batch_size=32), False),
        (PVAConfig(latent_dim=12, hidden=8, batch_size=32, separation=False, tau=None), True),
    ],
    ids=["linear probe", "tip-adapter", "calibrated stacking", "pva", "pva without separation"],
)
def test_every_method_without_a_threshold_of_its_own_gets_one(
    data: TrialData, config: object, calibrated: bool
) -> None:
    (result,) = train_pack([config], seeds=[0], data=data, options=ONE)  # type: ignore[list-item]
    assert (CONSTANT in result.metrics) == (CALIBRATED_H in result.metrics) == calibrated
    apart = replace(data, competing=WithinHalves())  # no image can be of the wrong half
    (result,) = train_pack([config], seeds=[0], data=apart, options=ONE)  # type: ignore[list-item]
    assert CONSTANT not in result.metrics


def test_a_constant_takes_seen_classes_back_that_took_all(data: TrialData) -> None:
    """Trained on seen classes only, a linear probe gives them images of the others; its constant gives these back."""
    config = LinearProbeConfig(batch_size=16, lr=3e-2)
    (result,) = train_pack([config], seeds=[0], data=data, options=TrainingOptions(epochs=8))
    assert result.metrics[CONSTANT] > 0
    assert result.metrics[CALIBRATED_H] > result.metrics["val_h_mean"] + 0.02


def test_the_folds_say_of_each_head_what_they_say_of_a_configuration_that_has_it(data: TrialData) -> None:
    """Every row may have a constant, also one that a head classifies; H of such a row is the head's own."""
    small = SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8, batch_size=32, lr=1e-3)
    voting = replace(data, reference_T=training_free_labels(data))
    options = TrainingOptions(epochs=2, criterion="consensus")
    (plain,) = train_pack([small], seeds=[0], data=voting, options=options)
    assert plain.votes is not None and list(plain.votes.metrics) == list(HEADS[1:])
    for head, of_head in plain.votes.metrics.items():
        (alone,) = train_pack([replace(small, head=head)], seeds=[0], data=voting, options=options)
        assert of_head.keys() <= alone.metrics.keys()
        for name, value in of_head.items():
            assert value == pytest.approx(alone.metrics[name], abs=0.02), (head, name)
        assert of_head[CALIBRATED_H] > 0.5
    apart = replace(voting, competing=WithinHalves())
    (result,) = train_pack([small], seeds=[0], data=apart, options=options)
    assert result.votes is not None and not result.votes.metrics
