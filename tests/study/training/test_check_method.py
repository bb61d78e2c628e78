"""The checker of other people's methods: it passes those that we ship, and says in words what is wrong with others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import search_spaces
from search_spaces import Ablation, Knob
from study.training.check_method import check_method
from study.training.method_template import SPACE, TaskResidual, TaskResidualConfig
from study.training.methods import Method


@pytest.mark.parametrize(
    "name", ["sre", "pva", "tip-adapter-f", "coop", "zlap", "calibrated-stacking", "task-residual"]
)
def test_methods_that_we_ship_keep_the_laws(name: str) -> None:
    found = search_spaces.load(name)
    assert check_method(found.space if isinstance(found, Ablation) else found) == []


class Averaged(TaskResidual):
    """Uses the mean of all lanes' residuals."""

    def logits(self, images_BD: Tensor) -> Tensor:
        prototypes_KCD = self.texts_CD + self.alpha_K[:, None, None] * self.residual_KCD.mean(0)
        return self.logit_scale * images_BD @ nn.functional.normalize(prototypes_KCD, dim=-1).mT


class Unregistered(TaskResidual):
    """Keeps a lane's value where `keep` does not find it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reach_K = self.alpha_K.clone()

    def logits(self, images_BD: Tensor) -> Tensor:
        return super().logits(images_BD) * self.reach_K[:, None, None]


class LanesLast(TaskResidual):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain_1K = nn.Parameter(torch.ones(1, len(self.alpha_K)))


class Summed(TaskResidual):
    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return losses["classification"].sum()


class Seedless(TaskResidual):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.residual_KCD.data += torch.randn_like(self.residual_KCD)


class Idle(TaskResidual):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.unused_K = nn.Parameter(torch.ones(len(self.alpha_K)))


class Transposed(TaskResidual):
    def predicts(self, images_BD: Tensor) -> Tensor:
        return super().logits(images_BD).mT

    logits = predicts


class Broken(TaskResidual):
    def losses(self, *_: Any) -> dict[str, Tensor]:
        raise IndexError("no such loss")


class Embedding(TaskResidual):
    def embed(self, images_TD: Tensor) -> tuple[Tensor, Tensor]:
        return images_TD.expand(len(self.alpha_K), -1, -1), self.texts_CD.expand(len(self.alpha_K), -1, -1)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Averaged, "residual_KCD: the loss of lane 0 depends on other lanes' values"),
        (Unregistered, "training fails: RuntimeError"),
        (LanesLast, "gain_1K: the first axis must be the lanes, 3 here"),
        (Summed, "loss total must be one number for each lane, 3; got one number"),
        (Seedless, "the same seeds must give the same module"),
        (Idle, "unused_K: the loss does not depend on it"),
        (Transposed, "logits must be lanes x images x classes, 3 x 40 x 12; got 3 x 12 x 40"),
        (Broken, "losses or total fails: IndexError: no such loss ("),
        (Embedding, "embed is for heads, and none is tried: the configuration needs a field `head`"),
    ],
)
def test_what_is_wrong_is_said_in_words(module: type[TaskResidual], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(configs: Any, seeds: Any, seen_KC: Tensor, _: Tensor, data: Any) -> TaskResidual:
        return module(configs, seen_KC, data)

    monkeypatch.setattr(TaskResidualConfig, "zerosweep_method", Method(build=build))
    wrong = check_method(SPACE)
    assert any(line.startswith(said) for line in wrong), wrong


def test_scopes_that_contradict_the_configuration_are_said() -> None:
    knob = Knob(name="alpha", scope="static", low=0.1, high=1.0, default=0.5, why="")
    wrong = check_method(replace(SPACE, knobs=(knob,)))
    assert wrong == ["alpha: scope of the knob and LANE_KNOBS must agree on what lanes may differ in"]
