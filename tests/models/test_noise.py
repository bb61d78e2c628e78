"""Noise that seed, step and row decide: literal bits, the laws that packs rest on, and the distribution."""

import math

import pytest
import torch
from scipy import stats

from models.noise import GAMMA, mixed, normal_rows


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def noise(seeds: list[int], steps: list[int], rows: list[int], dimension: int = 8) -> torch.Tensor:
    lanes = len(seeds)
    return normal_rows(torch.tensor(seeds), torch.tensor(steps), torch.tensor(rows).expand(lanes, -1), dimension)


def test_the_bits_are_those_of_splitmix64() -> None:
    """The first numbers of the published generator for seed 1234567: its counter goes up by GAMMA."""
    counters = [signed((1234567 + i * GAMMA) % 2**64) for i in (1, 2, 3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [b % 2**64 for b in mixed(torch.tensor(counters)).tolist()] == expected


def test_a_lane_s_noise_does_not_depend_on_its_neighbours_or_on_other_rows() -> None:
    pack = noise([3, 7, 5], [0, 2, 9], [4, 0, 200])
    assert torch.equal(noise([7], [2], [4, 0, 200]), pack[1:2])
    assert torch.equal(noise([5], [9], [200]), pack[2:, 2:])
    assert pack.shape == (3, 3, 8) and pack.dtype == torch.float32


@pytest.mark.parametrize("dimension", [1, 7, 8])
def test_every_seed_step_row_and_dimension_has_its_own(dimension: int) -> None:
    drawn = [noise([a], [b], [0, 1, 2**31], dimension).flatten() for a in (0, 1, 2**32) for b in (0, 1)]
    values = torch.cat(drawn)
    assert len(values) == 2 * 3 * 3 * dimension == len(values.unique())


def test_it_is_standard_normal_and_uncorrelated() -> None:
    drawn = noise(list(range(16)), [3] * 16, list(range(200)), 64).double()
    values = drawn.flatten()
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    for other in (values.roll(1), values.roll(64), drawn.roll(1, 0).flatten(), drawn.roll(32, 2).flatten()):
        assert abs(float((values * other).mean())) < 3 / math.sqrt(len(values))
    next_step = noise(list(range(16)), [4] * 16, list(range(200)), 64).double().flatten()
    assert abs(float((values * next_step).mean())) < 3 / math.sqrt(len(values))
    assert values.abs().max() < math.sqrt(2 * 32 * math.log(2))  # 32 bits reach no further
