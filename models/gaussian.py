"""Divergences of diagonal Gaussians, given as mean and log variance (..., L); all are means over the L dimensions.

Suffixes: K lanes, I images, C classes, L latent dimension.
"""

import torch
from torch import Tensor


def kl_to_prior(mean: Tensor, log_var: Tensor, free: Tensor | float = 0.0) -> Tensor:
    """KL to N(0, I) (...), nats per dimension; what a dimension has below `free` nats costs nothing."""
    return torch.clamp((mean**2 + log_var.exp() - log_var - 1) / 2, min=torch.as_tensor(free).to(mean)).mean(-1)


def wasserstein(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal Gaussians (..., L), mean over dimensions."""
    return ((mean0 - mean1) ** 2 + ((log_var0 / 2).exp() - (log_var1 / 2).exp()) ** 2).mean(-1)


def symmetric_kl(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Mean of both KL divergences of diagonal Gaussians (..., L), mean over dimensions."""
    square, ratio = (mean0 - mean1) ** 2, log_var0 - log_var1
    one_way = ratio.exp() + square * (-log_var1).exp()
    return ((one_way + (-ratio).exp() + square * (-log_var0).exp()) / 4 - 0.5).mean(-1)


def pairwise_kl(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """KL(image || text) (K, I, C) of diagonal Gaussians (K, I, L) and (K, C, L), mean over dimensions: two products."""
    precision = (-log_var1).exp()
    cross = (log_var0.exp() + mean0**2) @ precision.mT - 2 * mean0 @ (mean1 * precision).mT
    of_text = (mean1**2 * precision + log_var1).sum(-1)[:, None]
    return ((cross + of_text - log_var0.sum(-1)[:, :, None]) / mean0.shape[-1] - 1) / 2
