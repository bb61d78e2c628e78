"""A lane in a pack of 1, of 7 and of 64 is the same lane: every model, every lane knob.

Losses of every step agree to 1e-4 (relative), weights to 2e-4 and logits to 2e-3 after two epochs, float32: products of
another batch shape add in another order, and AdamW's first steps turn a gradient's sign into a full step.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_configs import CONFIGS, ENCODED
from torch import Tensor

from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.methods import METHODS
from study.training.pack import Pack

CHANGED: dict[str, float] = dict(
    **dict(lr=4e-3, weight_decay=0.3, rho=1.5, residual_scale=2.0, relation_temperature=0.3, target_temperature=1.4),
    **dict(w_srs=1.0, w_align=1.0, w_ent=0.5, w_div=2.0, w_bal=5.0, pseudo_label_threshold=0.8, unseen_prior=0.8),
    **dict(sigma_init=0.2, noise=0.3, w_kl=0.1, kl_warm_up=5.0, free_bits=0.05, w_out=1.0, kappa=0.5),
    **dict(residual_lambda=2.0, tau=0.3, ratio=0.6, alpha=3.0, beta=2.0, constant=1.0),
)
"""A value of each lane knob that is not its default."""


def trained(configs: list[Any], numbers: list[int], data: TrialData) -> list[tuple[Tensor, list[Tensor], Tensor]]:
    """Losses of all steps, weights and logits of each lane; seed and fold of a lane come from its number."""
    pack = Pack(
        [configs[n] for n in numbers],
        seeds=[100 + n for n in numbers],
        seen_KC=torch.stack([seen_classes(data, n % 3) for n in numbers]),
        trainable_KI=torch.stack([trainable_images(data, n % 3) for n in numbers]),
        data=data,
        epochs=2,
    )
    history: list[Tensor] = []
    total = pack.module.total

    def recorded(losses: dict[str, Tensor]) -> Tensor:
        history.append(total(losses))
        return history[-1]

    pack.module.total = recorded
    for _ in range(pack.epochs):
        pack.train_epoch()
    losses_SK = torch.stack(history).detach()
    logits_KIC = torch.cat(list(pack.predict(data.target_features_TD)), dim=1)
    weights = [p.detach() for p in pack.module.parameters()]
    return [(losses_SK[:, k], [p[k] for p in weights], logits_KIC[k]) for k in range(len(numbers))]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_lane_is_the_same_in_packs_of_1_7_and_64(data: TrialData, name: str) -> None:
    config = CONFIGS[name]
    knobs = sorted(k for k in config.LANE_KNOBS if k != "tau" or config.separation)
    configs = [replace(config, **{knobs[n % len(knobs)]: CHANGED[knobs[n % len(knobs)]]}) for n in range(64)]
    size = 64 if name not in ENCODED else 12
    of_64 = trained(configs, list(range(size)), data)
    sevens = [trained(configs, list(range(n, n + 7)), data) for n in range(0, min(len(knobs), size - 6), 7)]
    of_7 = [lane for lanes in sevens for lane in lanes]
    for n in range(min(len(knobs), len(of_7))):
        (alone,) = trained(configs, [n], data)
        for losses, weights, logits in (of_64[n], of_7[n]):
            torch.testing.assert_close(losses, alone[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(weights, alone[1], rtol=0, atol=2e-4)
            torch.testing.assert_close(logits, alone[2], rtol=0, atol=2e-3)


def test_every_trained_model_and_lane_knob_is_compared() -> None:
    untrained = {"CalibratedStackingConfig", "ZLaPConfig", "TransCLIPConfig", "InMaPConfig", "TransductiveVoteConfig"}
    assert {type(c).__name__ for c in CONFIGS.values()} == {c.__name__ for c in METHODS} - untrained
    assert {k for c in METHODS for k in c.LANE_KNOBS} == set(CHANGED)
