"""Refit configurations on all seen classes with several seeds.

Suffixes: S seeds, T target images, G residual strengths, K lanes, C classes.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.stacked import MethodConfig
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.pack import Division, Pack
from study.training.pack_checkpoint import PackCheckpoint


@dataclass(frozen=True, kw_only=True)
class Refit:
    """One configuration, refitted."""

    predictions_ST: Tensor
    """Predicted class of every target image, for every seed."""
    division: Division
    """The same images at any threshold between seen and unseen classes, a lane per seed."""
    train_seconds: float
    """Its share of the training time, all seeds."""
    weights: dict[str, Tensor]
    """The first seed's lane: all its tensors (1, ...) by name."""
    diverged: bool
    """Whether the loss of any seed was not finite."""
    new: tuple[Tensor, Division] | None = None
    """The same two for images that the study never saw (`--test-share`)."""
    unseen_GT: Tensor | None = None
    """Best unseen class of the first seed at each of `LAMBDAS`, int16; None where there is no residual to vary."""


def refit_pack(
    configs: Sequence[MethodConfig],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    checkpoint: PackCheckpoint | None = None,
    new_features_ID: Tensor | None = None,
) -> list[Refit]:
    """Refit configurations that share their static knobs, in this process: configurations x seeds are the lanes.

    `new_features_ID`: of images that the study never saw; they are classified when all is trained.
    """
    started = time.perf_counter()
    lanes = [(config, seed) for config in configs for seed in seeds]
    pack = Pack(
        [config for config, _ in lanes],
        seeds=[seed for _, seed in lanes],
        seen_KC=seen_classes(data, None).expand(len(lanes), -1),
        trainable_KI=trainable_images(data, None).expand(len(lanes), -1),
        data=data,
        epochs=epochs,
    )
    if checkpoint and (saved := checkpoint.load()):
        pack.restore(saved[0])
    while pack.epoch[0] < epochs:
        pack.train_epoch()
        if checkpoint:
            checkpoint.save(pack)
    predictions_KT, division = _classified(pack, data.target_features_TD)
    new = None if new_features_ID is None else _classified(pack, new_features_ID.to(data.target_features_TD.device))
    seconds = (time.perf_counter() - started) / len(configs)
    unseen_KGT = pack.unseen_by_lambda(data.target_features_TD)
    of_config = [slice(i * len(seeds), (i + 1) * len(seeds)) for i in range(len(configs))]
    return [
        Refit(
            predictions_ST=predictions_KT[lanes_of],
            division=division.of(lanes_of),
            new=None if new is None else (new[0][lanes_of], new[1].of(lanes_of)),
            train_seconds=seconds,
            weights={name: t[lanes_of][:1].detach().cpu().clone() for name, t in pack.module.lanes().items()},
            diverged=bool(pack.diverged_K[lanes_of].any()),
            unseen_GT=None if unseen_KGT is None else unseen_KGT[lanes_of.start],
        )
        for lanes_of in of_config
    ]


def _classified(pack: Pack, features_ID: Tensor) -> tuple[Tensor, Division]:
    """Return the predicted classes (K, I) of target images, on the CPU, and their division."""
    classify = functools.partial(pack.classify, features_ID)
    return pack.data.competing.predict_target(classify).cpu(), pack.divide(features_ID)
