"""Hold a share of the target images out of training, criterion and consensus: what is new to a transductive study.

Suffixes: T target images.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.feature_store import SPLITS, FeatureSet

TestShare = float | Literal["split"]
"""Share of the target images that is held out, or those that the benchmark itself calls test."""

TEST = SPLITS.index("test")


def split_target(features: FeatureSet, share: TestShare, seed: int) -> tuple[FeatureSet, FeatureSet]:
    """Return a benchmark with the target images that a study may see, and one with those that it may not.

    A share is drawn with the seed, without labels. Raises `UserError` where one of the two would have no image.
    """
    count = len(features.target.keys)
    held_out_T = torch.zeros(count, dtype=torch.bool)
    if share == "split":
        held_out_T = features.target.split_I == TEST
    else:
        order_T = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        held_out_T[order_T[: round(share * count)]] = True
    held_out = int(held_out_T.sum())
    if not 0 < held_out < count:
        found = f"{share} holds {held_out} of {count} of {features.benchmark} out"
        raise UserError(f"must leave target images on both sides, {found}", option="test_share")
    return _with_target(features, ~held_out_T), _with_target(features, held_out_T)


def _with_target(features: FeatureSet, chosen_T: Tensor) -> FeatureSet:
    """Return a benchmark with some of its target images."""
    target, rows_T = features.target, chosen_T.nonzero().flatten()
    part = replace(
        target,
        features_ID=target.features_ID[rows_T],
        split_I=target.split_I[rows_T],
        keys=target.keys.take(rows_T.numpy()),
        rows_I=rows_T,
    )
    return replace(features, target=part)
