"""Divergences of diagonal Gaussians, given as mean m and log variance v (..., L); all are means over the L dimensions.

Per dimension, with variances e^v:

    KL(p || N(0, 1))       (m^2 + e^v - v - 1) / 2                                  (Kingma & Welling, 2014, appendix B)
    KL(p || q)             (e^(v_p - v_q) + (m_p - m_q)^2 e^(-v_q) - 1 + v_q - v_p) / 2
    symmetric KL           (KL(p || q) + KL(q || p)) / 2: the log variances cancel
    squared 2-Wasserstein  (m_p - m_q)^2 + (e^(v_p / 2) - e^(v_q / 2))^2

Suffixes: K lanes, I images, C classes, L latent dimension.
"""

import torch
from torch import Tensor


def kl_to_prior(mean: Tensor, log_var: Tensor, free: Tensor | float = 0.0) -> Tensor:
    """Compute KL to N(0, I) (...), nats per dimension; each dimension costs at least `free` nats, without gradient."""
    return torch.clamp((mean**2 + log_var.exp() - log_var - 1) / 2, min=torch.as_tensor(free).to(mean)).mean(-1)


def wasserstein(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Compute the squared 2-Wasserstein distance of diagonal Gaussians (..., L), mean over dimensions."""
    return ((mean0 - mean1) ** 2 + ((log_var0 / 2).exp() - (log_var1 / 2).exp()) ** 2).mean(-1)


def symmetric_kl(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Compute the mean of both KL divergences of diagonal Gaussians (..., L), mean over dimensions."""
    square, ratio = (mean0 - mean1) ** 2, log_var0 - log_var1
    one_way = ratio.exp() + square * (-log_var1).exp()
    return ((one_way + (-ratio).exp() + square * (-log_var0).exp()) / 4 - 0.5).mean(-1)


def pairwise_kl(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Compute KL(image || text) (K, I, C) of Gaussians (K, I, L) and (K, C, L), mean over dimensions: two products."""
    precision = (-log_var1).exp()
    cross = (log_var0.exp() + mean0**2) @ precision.mT - 2 * mean0 @ (mean1 * precision).mT
    of_text = (mean1**2 * precision + log_var1).sum(-1)[:, None]
    return ((cross + of_text - log_var0.sum(-1)[:, :, None]) / mean0.shape[-1] - 1) / 2
