"""Transductive heads: a training-free method on a trained method's own features and prototypes, at inference.

A trained module turns target images into features f(x_i) (T, D) and classes into prototypes P (C, D). A head takes them
in the place of CLIP's image and text features, and classifies all target images at once (`transductive.py` has the
equations). It sees no label and changes no weight. The article of SRE-CLIP has none: this is ours.

Suffixes: T target images, C classes, D CLIP dimension, B batch.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from models.baselines import BaselineConfig
from models.prompts import ClassTexts
from models.transductive import InMaP, InMaPConfig, TransCLIP, TransCLIPConfig, Transductive, ZLaP, ZLaPConfig

Head = Literal["none", "inmap", "transclip", "zlap"]

HEADS: tuple[Head, ...] = get_args(Head)
"""All heads; none leaves a method's own predictions."""

TITLES: dict[Head, str] = {"none": "", "inmap": "InMaP", "transclip": "TransCLIP", "zlap": "ZLaP"}

STEPS = 80
"""Descent steps of InMaP's proxies, which start at the trained prototypes: a head is fitted for every lane."""

_METHODS: dict[Head, tuple[Callable[..., Transductive], BaselineConfig]] = {
    "inmap": (InMaP, InMaPConfig(steps=STEPS)),
    "transclip": (TransCLIP, TransCLIPConfig()),
    "zlap": (ZLaP, ZLaPConfig()),
}


class FittedHead:
    """A head on one lane's features (T, D) and prototypes (C, D), both L2-normalised."""

    def __init__(self, head: Head, features_TD: Tensor, prototypes_CD: Tensor, logit_scale: float) -> None:
        module, config = _METHODS[head]
        texts = ClassTexts(features_CD=prototypes_CD, logit_scale=logit_scale)
        self._method = module([config], texts=texts, target_features_TD=features_TD).to(features_TD.device)

    def target_logits(self, rows_B: Tensor) -> Tensor:
        """Return the logits (B, C) of target images by their rows."""
        return self._method.target_logits(rows_B)

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of other images by their features."""
        return self._method.other_logits(features_BD)


def head_logits(head: Head, features_TD: Tensor, prototypes_CD: Tensor, logit_scale: float) -> Tensor:
    """Return the logits (T, C) of all target images by a lane's features and prototypes, under a head."""
    if head == "none":
        return logit_scale * features_TD @ prototypes_CD.T
    every_T = torch.arange(len(features_TD), device=features_TD.device)
    return FittedHead(head, features_TD, prototypes_CD, logit_scale).target_logits(every_T)
