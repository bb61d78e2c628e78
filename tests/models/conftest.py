"""A tiny task: six classes in a small hierarchy, eight-dimensional features."""

import pytest
import torch
import torch.nn.functional as F

from models.sre_clip import ClassGraph


@pytest.fixture
def graph() -> ClassGraph:
    g = torch.Generator().manual_seed(0)
    return ClassGraph(
        name_features_CD=F.normalize(torch.randn(6, 8, generator=g), dim=-1),
        node_features_ND=F.normalize(torch.randn(9, 8, generator=g), dim=-1),
        class_node_C=torch.tensor([0, 1, 2, 3, 4, 5]),
        edges_E2=torch.tensor([[0, 6], [1, 6], [2, 7], [3, 7], [4, 8], [5, 8], [6, 8], [7, 8]]),
        logit_scale=20.0,
    )
