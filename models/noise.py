"""Normal noise that a lane's seed, step and row decide: drawn on the device, for all lanes at once.

A stream of torch's for each lane would be a draw and a copy per lane and step, on the CPU: on an accelerator that takes
longer than the step. A counter needs no stream: the noise of any step is there without that of the steps before, the
same in a pack and alone, whichever rows are asked for.

Source: the output function of SplitMix64 (Steele, Lea and Flood, 2014: Fast splittable pseudorandom number generators,
section 3), and Box and Muller (1958).

Shapes: K lanes, B rows, D dimensions.
"""

import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
"""Step of the counter: the odd number nearest to 2^64 over the golden ratio."""


def _signed(value: int) -> int:
    """Return the 64 bits of a value as torch's signed integer."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return x shifted to the right without its sign."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def mixed(x: Tensor) -> Tensor:
    """Return 64 random bits (int64) for each counter (int64); products are modulo 2^64."""
    x = (x ^ _shifted(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x = x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(0x94D049BB133111EB))
    return x.bitwise_xor_(_shifted(x, 31))


def normal_rows(seeds_K: Tensor, steps_K: Tensor, rows_KB: Tensor, dimension: int) -> Tensor:
    """Return standard normal noise (K, B, D), float32.

    `seeds_K`, `steps_K`: int64, whose noise it is, and at which step. `rows_KB`: int64, numbers of the rows; a row of
    the same number has the same noise. Another D has other noise.
    """
    keys_K11 = mixed(mixed(seeds_K * _signed(GAMMA)) + steps_K)[:, None, None]
    pairs = (dimension + 1) // 2
    places_P = torch.arange(1, pairs + 1, device=rows_KB.device) * _signed(GAMMA)
    bits_KBP = mixed((keys_K11 + rows_KB[:, :, None] * _signed(pairs * GAMMA % 2**64)) + places_P)
    # 2^-32 and not 0 is the smallest number, whose logarithm is finite
    radius_KBP = _shifted(bits_KBP, 32).add_(1).float().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle_KBP = bits_KBP.bitwise_and_(0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
    return torch.cat([angle_KBP.cos().mul_(radius_KBP), angle_KBP.sin_().mul_(radius_KBP)], dim=-1)[:, :, :dimension]
