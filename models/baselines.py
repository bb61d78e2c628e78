"""Baselines on the same cached features.

Suffixes: C classes, P prompt templates, D CLIP dimension.
"""

import torch.nn.functional as F
from torch import Tensor


def zero_shot_prototypes(name_features_CPD: Tensor, lemma_features_CD: Tensor) -> dict[str, Tensor]:
    """Zero-shot CLIP's class prototypes (C, D), L2-normalised, by the text they come from (Radford et al., 2021).

    `name_features_CPD`: each class name in each template, the single template first. `lemma_features_CD`: each class
    synset's WordNet lemmas, averaged over lemmas and templates.
    """
    return {
        "single template": F.normalize(name_features_CPD[:, 0], dim=-1),
        "ensemble": F.normalize(name_features_CPD.mean(1), dim=-1),
        "WordNet lemmas": F.normalize(lemma_features_CD, dim=-1),
    }


def nearest_prototype(image_features_ID: Tensor, prototypes_CD: Tensor) -> Tensor:
    """Class (I,) whose prototype has the largest cosine with each image feature."""
    return (image_features_ID @ prototypes_CD.T).argmax(-1)
