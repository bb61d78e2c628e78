"""A method of your own, to copy: a learned residual on each class text (TaskRes: Yu et al., 2023, arXiv 2211.10277).

    cp study/training/method_template.py my_method.py        # change it, then:
    python study/run.py --plugin my_method.py --space task-residual

Class prototypes P_c = normalise(t_c + alpha x_c), from class texts t (C, D), with learned x (C, D). At the start x = 0,
so an untrained module is zero-shot CLIP. The loss is the cross-entropy of labelled images over seen classes.

Suffixes: K lanes, B batch, C classes, D CLIP dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.stacked import StackedModule, check_fields, check_static, lane_field, normalise
from search_spaces import Knob, Space, learning_rate, weight_decay
from study.protocol.trial_data import TrialData
from study.training.methods import register


@dataclass(frozen=True, kw_only=True)
class TaskResidualConfig:
    """One configuration."""

    LANE_KNOBS: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "alpha"})

    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-4
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, at_least_one=("batch_size",), positive=("lr", "alpha"), not_negative=("weight_decay",))


class TaskResidual(StackedModule):
    """K lanes: every parameter and lane buffer has the lane axis first."""

    alpha_K: Tensor
    seen_KC: Tensor
    texts_CD: Tensor

    def __init__(self, configs: Sequence[TaskResidualConfig], seen_KC: Tensor, data: TrialData) -> None:
        super().__init__()
        check_static(configs)
        self.logit_scale = data.logit_scale
        self.register_buffer("texts_CD", data.name_features_CD)  # all lanes share it
        self.register_lane("seen_KC", seen_KC)  # classes that have labelled images
        self.register_lane("alpha_K", lane_field(configs, "alpha"))
        self.residual_KCD = nn.Parameter(torch.zeros(len(configs), *data.name_features_CD.shape))

    def logits(self, images_BD: Tensor) -> Tensor:
        """Compute logits (K, B, C) of image features, the same for all lanes (B, D) or of each lane (K, B, D)."""
        prototypes_KCD = normalise(self.texts_CD + self.alpha_K[:, None, None] * self.residual_KCD)
        return self.logit_scale * images_BD @ prototypes_KCD.mT

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the loss (K,) of a training step."""
        logits_KBC = self.logits(images_KBD).masked_fill(~self.seen_KC[:, None], float("-inf"))
        loss_KB = nn.functional.cross_entropy(logits_KBC.transpose(1, 2), labels_KB, reduction="none")
        return {"classification": loss_KB.mean(1)}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return what each lane minimises."""
        return losses["classification"]


def build(
    configs: Sequence[Any], seeds: Sequence[int], seen_KC: Tensor, trainable_KI: Tensor, data: TrialData
) -> TaskResidual:
    """Return the module of a pack; a method that draws weights draws them from `seeds`, one per lane."""
    return TaskResidual(configs, seen_KC, data)


SPACE = Space(
    name="task-residual",
    method="Task Residual",
    config=TaskResidualConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",  # a method that may see target images can take consensus
    baselines=("linear-probe", "tip-adapter"),
    knobs=(
        learning_rate(low=1e-4, high=1e-2, default=1e-3, why="how far training goes in its few hundred steps"),
        weight_decay(),
        Knob(name="alpha", scope="lane", low=0.1, high=1.0, log=True, default=0.3, why="reach of the residual"),
    ),
)

register(SPACE, build=build)  # uses_target=True lets a method see unlabelled target images
