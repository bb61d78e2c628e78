"""How many configurations a pack holds, and what share of a GPU it gets, when nobody says so."""

import io
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from study.cluster.capacity import Capacity
from study.cluster.tasks import GPUs
from study.options import Options, ResourceOptions, SearchOptions
from study.pipeline import plan
from study.pipeline.plan import _pack_size, choose_gpus

MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class Spec:
    """As much of a study's specification as the plan of its GPUs needs."""

    options: Options
    space: Any = None
    baselines: tuple[None, ...] = ()


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


A100 = GPUs(count=2, cpus=32, name="A100", memory=40 * 2**30)


@pytest.mark.parametrize(
    ("found", "workers", "share", "said"),
    [
        (None, 1, 0.0, ""),
        (GPUs(count=2, cpus=32, name=""), 1, 0.0, "Ray counts 2 GPUs, but torch sees none there: packs train on CPUs"),
        (
            GPUs(count=2, cpus=32, name="A100", memory=40 * 2**30),
            1,
            0.25,
            "2 x A100 (40 GiB), 0.25 of one for each pack",
        ),
        (A100, 2, 1.0, "2 x A100 (40 GiB), 1 of one for each pack"),
    ],
)
def test_gpus_are_used_where_there_are_some_and_never_pretended(
    found: GPUs | None, workers: int, share: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_gpus", lambda: found)
    monkeypatch.setattr(plan, "_bytes", lambda space, data: 100 * MEGABYTE)
    shown = io.StringIO()
    options = replace(Options(), resources=ResourceOptions(workers_per_pack=workers, pack=8))
    spec: Any = Spec(options=options)  # 64 configurations: 8 packs, 4 for each GPU
    decided = choose_gpus(spec, None, Console(file=shown, width=200))  # type: ignore[arg-type]
    assert decided.options.resources.gpus_per_pack == decided.options.resources.gpus == share
    assert said in " ".join(shown.getvalue().split())
    given: Any = Spec(options=replace(options, resources=ResourceOptions(gpus_per_pack=0.5)))
    assert choose_gpus(given, None, Console(file=shown)) is given  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "images", "workers"),
    [("auto", 1_000, 0), ("auto", 100_000, 1), (0, 100_000, 0), (3, 1_000, 3)],
)
def test_little_work_is_refitted_without_ray_train(given: Any, images: int, workers: int) -> None:
    method: Any = SimpleNamespace(name="m", config=lambda: SimpleNamespace(batch_size=256))
    spec: Any = Spec(options=replace(Options(), resources=ResourceOptions(refit_workers=given)), space=method)
    data: Any = SimpleNamespace(source_labels_I=range(images))
    assert plan._refit_workers(spec, data, {"m": 30 * MEGABYTE}, 5) == workers
