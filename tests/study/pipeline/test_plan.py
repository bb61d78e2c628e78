"""How many configurations a pack holds when nobody says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from study.cluster.capacity import Capacity
from study.options import ResourceOptions, SearchOptions
from study.pipeline.plan import _pack_size

MEGABYTE = 10**6


@pytest.mark.parametrize(
    ("actors", "configs", "gpus", "megabytes", "size"),
    [
        (2, 64, 0, 10, 1),  # a laptop: each configuration has static knobs of its own
        (8, 1000, 0, 10, 1),
        (64, 1000, 0, 10, 4),  # every actor gets four packs
        (64, 10_000, 0, 10, 8),  # the driver could not keep 64 actors busy with single ones
        (1000, 100_000, 0, 10, 16),
        (64, 10_000, 0, 400, 2),  # memory for two
        (2, 64, 1, 10, 8),  # a GPU is filled by what is stacked
        (1, 10_000, 0.5, 10, 16),
    ],
)
def test_packs_are_as_small_as_devices_and_driver_allow(
    actors: int, configs: int, gpus: float, megabytes: int, size: int
) -> None:
    options = SimpleNamespace(resources=ResourceOptions(gpus_per_pack=gpus), search=SearchOptions(configs=configs))
    spec: Any = SimpleNamespace(options=options)
    capacity = Capacity(now=actors, most=actors, memory=1000.0 * MEGABYTE * actors)
    assert _pack_size(spec, megabytes * MEGABYTE, capacity) == size
    options.resources = ResourceOptions(gpus_per_pack=gpus, pack=5)
    assert _pack_size(spec, megabytes * MEGABYTE, capacity) == 5
