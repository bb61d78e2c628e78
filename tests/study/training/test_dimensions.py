"""Every value that a search may draw trains on features as wide as those of real checkpoints."""

from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import normalize

import search_spaces
from search_spaces import Space
from study.protocol.trial_data import TrialData
from study.training.pack import pack_on_folds

PROMPTS = {"coop", "pva-prompts"}
"""Spaces that need the text tower itself."""
SPACES = [
    space
    for name in search_spaces.shipped()
    if isinstance(space := search_spaces.load(name), Space) and name not in PROMPTS
]


def widened(data: TrialData, dim: int) -> TrialData:
    """The same data with features of another length."""
    old = data.source_features_ID.shape[1]
    turn_DE = torch.randn(old, dim, generator=torch.Generator().manual_seed(0))
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    features = {n: v for n, v in values.items() if isinstance(v, torch.Tensor) and v.dim() and v.shape[-1] == old}
    wide = {n: normalize(v @ turn_DE, dim=-1) for n, v in features.items() if v.is_floating_point()}
    return replace(data, **wide)


@pytest.mark.parametrize("dim", [512, 768])  # ViT-B/32 and ViT-L/14
@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_what_a_search_draws_trains_on_features_of_real_checkpoints(space: Space, dim: int, data: TrialData) -> None:
    wide = widened(data, dim)
    assert wide.source_features_ID.shape[1] == wide.node_features_ND.shape[1] == dim
    for params in (space.defaults(), *(params for _, params in space.static_values())):
        pack = pack_on_folds([space.config(**params)], seeds=[0], data=wide, epochs=1)
        pack.train_epoch()
        assert not bool(pack.diverged_K.any()), params
