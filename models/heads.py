"""Transductive heads: a training-free method on a trained method's own features and prototypes, at inference.

A trained module turns target images into features f(x_i) (T, D) and classes into prototypes P (C, D). A head takes them
in the place of CLIP's image and text features, and classifies all target images at once (`transductive.py` has the
equations). It sees no label and changes no weight. The article of SRE-CLIP has none: this is ours.

`vote` lets the three heads vote. An image's logits are the votes of each class plus, to decide between equals, the mean
of the heads' probabilities. On CLIP's own features it is a baseline of its own, `TransductiveVote`.

Suffixes: T target images, C classes, D CLIP dimension, B batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.baselines import BaselineConfig
from models.prompts import ClassTexts
from models.transductive import (
    InMaP,
    InMaPConfig,
    NearestImages,
    OnNeighbours,
    TransCLIP,
    TransCLIPConfig,
    Transductive,
    ZLaP,
    ZLaPConfig,
)

Head = Literal["none", "inmap", "transclip", "zlap", "vote"]

HEADS: tuple[Head, ...] = get_args(Head)
"""All heads; none leaves a method's own predictions."""

STEPS = 80
"""Descent steps of InMaP's proxies, which start at the trained prototypes: a head is fitted for every lane."""

_METHODS: dict[Head, tuple[Callable[..., Transductive], BaselineConfig]] = {
    "inmap": (InMaP, InMaPConfig(steps=STEPS)),
    "transclip": (TransCLIP, TransCLIPConfig()),
    "zlap": (ZLaP, ZLaPConfig()),
}


class FittedHead:
    """A head on one lane; several methods vote."""

    def __init__(self, methods: Sequence[Transductive], images: int) -> None:
        """`methods`: each fitted to the same target images, as many as `images` says."""
        self._methods, self._images = methods, images

    def target_logits(self, rows_B: Tensor | None = None) -> Tensor:
        """Return the logits (B, C) of target images by their rows, by default of all."""
        if rows_B is None:
            rows_B = torch.arange(self._images, device=self._methods[0].text_features_CD.device)
        return voted([method.target_logits(rows_B) for method in self._methods])

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of other images by their features."""
        return voted([method.other_logits(features_BD) for method in self._methods])


def fitted_heads(
    features_TD: Tensor, prototypes_CD: Tensor, logit_scale: float, heads: Sequence[Head] = HEADS[1:]
) -> dict[Head, FittedHead]:
    """Return heads on a lane's features (T, D) and prototypes (C, D), both L2-normalised.

    Each method is fitted once, when logits are first asked for: `vote` has the fits of the others. Those that need the
    nearest images of each image share them.
    """
    texts = ClassTexts(features_CD=prototypes_CD, logit_scale=logit_scale)
    near_images = NearestImages(features_TD)
    methods: dict[Head, Transductive] = {}
    for name, (method, config) in _METHODS.items():
        if name in heads or "vote" in heads:
            shared = {} if method is InMaP else {"near_images": near_images}
            head = method([config], texts=texts, target_features_TD=features_TD, **shared)
            methods[name] = head.to(features_TD.device)
    return {
        head: FittedHead(list(methods.values()) if head == "vote" else [methods[head]], len(features_TD))
        for head in heads
    }


def voted(logits: Sequence[Tensor]) -> Tensor:
    """Return the votes plus mean probabilities (B, C) of several heads' logits (B, C) each; a single one's own."""
    if len(logits) == 1:
        return logits[0]
    one_hot = [F.one_hot(of_one.argmax(-1), of_one.shape[-1]) for of_one in logits]
    mean_BC = torch.stack([of_one.softmax(-1) for of_one in logits]).mean(0)
    return torch.stack(one_hot).sum(0) + mean_BC


@dataclass(frozen=True, kw_only=True)
class TransductiveVoteConfig(BaselineConfig):
    """The head `vote` on CLIP's own features: ZLaP, TransCLIP and InMaP at their authors' settings."""


class TransductiveVote(OnNeighbours):
    """The vote of ZLaP, TransCLIP and InMaP: what SRE-CLIP's strongest head gives without anything trained.

    Not of an article: the rival with the same rights as a method under this head.
    """

    fitted: FittedHead | None = None

    def _vote(self) -> FittedHead:
        if self.fitted is None:
            self.fitted = fitted_heads(self.target_TD, self.text_features_CD, self.logit_scale, ["vote"])["vote"]
        return self.fitted

    def target_logits(self, rows_B: Tensor) -> Tensor:
        return self._vote().target_logits(rows_B)

    def other_logits(self, images_BD: Tensor) -> Tensor:
        return self._vote().logits(images_BD)
