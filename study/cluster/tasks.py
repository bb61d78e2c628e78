"""Work on the cluster that is no search: scoring given configurations on the folds, timing, comparing precisions."""

import functools
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import ray
import torch
from rich.console import Console

from data_prep.errors import UserError
from models.heads import fitted_heads
from models.stacked import MethodConfig, unit_features
from models.transductive import NearestImages
from search_spaces import Space
from study.cluster.capacity import WaitingLine, needs
from study.cluster.session import single_node
from study.options import ResourceOptions
from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.loop import TrainingOptions, train_pack
from study.training.methods import static_fields
from study.training.pack import Pack, Precision
from study.training.precision import why_not_bfloat16
from study.training.scoring import LaneResult

LANES_TIMED = 4
"""Lanes of the pack whose epoch is timed."""
IMAGES_TIMED = 1024
"""Target images whose votes are timed."""

R = TypeVar("R", covariant=True)


class PackWork(Protocol[R]):
    """Work on configurations that share their static knobs; one result for each."""

    def __call__(self, configs: Sequence[MethodConfig], *, data: TrialData) -> Sequence[R]:
        """Do the work here and now."""


def data_on_worker(arrays: Mapping[str, Any], cpus: float, gpus: float) -> TrialData:
    """Return trial data on the device of an actor or task with these resources; set its threads to its CPUs.

    Raises RuntimeError where it was given a GPU that torch does not see: it would train on the CPU in silence.
    """
    if gpus and not torch.cuda.is_available():
        raise RuntimeError(f"{socket.gethostname()} has no CUDA, but Ray counts GPUs there")
    # more threads than CPUs make two actors on two cores ten times slower than one thread each
    torch.set_num_threads(max(1, int(cpus)))
    return TrialData.from_arrays(arrays).to("cuda" if gpus else "cpu")


def score_on_folds(
    configs: Sequence[MethodConfig],
    *,
    seed: int,
    arrays: ray.ObjectRef,
    training: TrainingOptions,
    resources: ResourceOptions,
) -> list[LaneResult]:
    """Score given configurations as a search would: for methods and variants that have nothing to search.

    None is pruned, and all train in float32. `arrays`: reference to `TrialData.to_arrays()`.
    """
    options = replace(training, rungs=(), precision="float32")
    return map_packs(functools.partial(_score_pack, seed=seed, options=options), configs, arrays, resources)


def _score_pack(
    configs: Sequence[MethodConfig], *, data: TrialData, seed: int, options: TrainingOptions
) -> list[LaneResult]:
    return train_pack(configs, seeds=[seed] * len(configs), data=data, options=options)


def choose_precision(
    space: Space,
    training: TrainingOptions,
    resources: ResourceOptions,
    arrays: ray.ObjectRef,
    *,
    pack: int,
    console: Console,
) -> Precision:
    """Return the precision of a search for which `--precision auto` was given, tried where packs will run; say why.

    `arrays`: reference to `TrialData.to_arrays()`; `pack`: configurations of a pack.
    """
    lr = float(space.config().lr)
    configs = [space.config(**space.defaults() | {"lr": lr * 2 ** (i / 2 - 2)}) for i in range(8)]
    task = ray.remote(_why_not_bfloat16).options(num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus)
    why_not = ray.get(task.remote(arrays, configs, resources, training.criterion, pack))
    said = f"float32: {why_not}" if why_not else "bfloat16: faster, and eight configurations rank alike"
    console.print(f"{space.method}: {said}", soft_wrap=True, highlight=False, markup=False)
    return "float32" if why_not else "bfloat16"


def _why_not_bfloat16(
    arrays: Mapping[str, Any],
    configs: Sequence[MethodConfig],
    resources: ResourceOptions,
    criterion: Criterion,
    pack: int,
) -> str:
    data = data_on_worker(arrays, resources.cpus_per_pack, resources.gpus)
    return why_not_bfloat16(configs, seeds=range(len(configs)), data=data, criterion=criterion, pack=pack)


@dataclass(frozen=True, kw_only=True)
class GPUs:
    """The GPUs of a cluster."""

    count: int
    """How many Ray counts."""
    cpus: float
    """CPUs of the cluster."""
    name: str
    """Name of one; "" where torch sees none: Ray counts what it was told."""
    memory: int = 0
    """Its bytes."""


def find_gpus() -> GPUs | None:
    """Return the GPUs of the cluster; None where no node has any now."""
    resources = ray.cluster_resources()
    count = int(resources.get("GPU", 0))
    if not count:
        return None
    name, memory = ray.get(ray.remote(_look_at_gpu).options(num_cpus=0, num_gpus=1e-4).remote())
    return GPUs(count=count, cpus=resources.get("CPU", 0), name=name, memory=memory)


def _look_at_gpu() -> tuple[str, int]:
    if not torch.cuda.is_available():
        return "", 0
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long the parts of a search take on a worker, for one lane: seconds on one thread, or on the GPU."""

    epoch: Mapping[str, float]
    """An epoch of the default configuration, by space."""
    votes: float
    """The heads' predictions for all target images, at the end of a training; 0 where there are none."""
    no_cuda: str = ""
    """Name of the worker's machine, if Ray counts a GPU there that torch does not see; nothing is timed then."""


def time_lanes(
    spaces: Sequence[Space], data: TrialData, resources: ResourceOptions, console: Console, *, votes: bool
) -> Times:
    """Return how long the parts of a search take where packs will run.

    On this machine's processors in this process, on one thread: a worker would take seconds to start. Elsewhere on a
    worker with a pack's resources, for which this waits; the console says so. Raises `UserError` where it has no CUDA.
    """
    if not resources.gpus and single_node():
        return time_lanes_here(spaces, data, votes=votes)
    task = ray.remote(_time_lanes).options(num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus)
    done: Any = task.remote(list(spaces), data.to_arrays(), resources, votes)
    waiting = WaitingLine(console, f"a worker with {needs(resources)} that times an epoch")
    while not ray.wait([done], timeout=1.0)[0]:
        waiting.say()
    times: Times = ray.get(done)
    if times.no_cuda:
        raise UserError(
            f"must be 0 where workers have no CUDA, got {resources.gpus:g}: Ray counts GPUs on "
            f"{times.no_cuda}, but torch sees none there",
            option="gpus_per_pack",
        )
    return times


def time_lanes_here(spaces: Sequence[Space], data: TrialData, *, votes: bool) -> Times:
    """Return how long the parts of a search take in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        epoch = {space.name: _seconds_per_epoch(space, data) for space in spaces}
        return Times(epoch=epoch, votes=_seconds_of_votes(data) if votes else 0.0)
    finally:
        torch.set_num_threads(threads)


def _time_lanes(spaces: Sequence[Space], arrays: Mapping[str, Any], resources: ResourceOptions, votes: bool) -> Times:
    if resources.gpus and not torch.cuda.is_available():
        return Times(epoch={}, votes=0.0, no_cuda=socket.gethostname())
    return time_lanes_here(spaces, data_on_worker(arrays, resources.cpus_per_pack, resources.gpus), votes=votes)


def _seconds_per_epoch(space: Space, data: TrialData) -> float:
    """Return the seconds that one lane's epoch of the default configuration takes."""
    config = space.config(**space.defaults())
    pack = Pack(
        [config] * LANES_TIMED,
        seeds=list(range(LANES_TIMED)),
        seen_KC=seen_classes(data, 0).expand(LANES_TIMED, -1),
        trainable_KI=trainable_images(data, 0).expand(LANES_TIMED, -1),
        data=data,
        epochs=2,
    )
    _seconds(pack.train_epoch, data)  # the first one also allocates
    return _seconds(pack.train_epoch, data) / LANES_TIMED


def _seconds_of_votes(data: TrialData) -> float:
    """Return the seconds of a lane's votes, from those of some images.

    To find the nearest images takes time with the square of the images, the rest with their number.
    """
    images_TD = unit_features(data.target_features_TD[:IMAGES_TIMED])

    def vote() -> None:
        for head in fitted_heads(images_TD, data.name_features_CD, data.logit_scale).values():
            head.target_logits()

    nearest = _seconds(lambda: NearestImages(images_TD).of_each(1), data)
    times = len(data.target_features_TD) / len(images_TD)
    return nearest * times**2 + max(0.0, _seconds(vote, data) - nearest) * times


def _seconds(work: Callable[[], object], data: TrialData) -> float:
    started = time.perf_counter()
    work()
    if data.source_labels_I.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def map_packs(
    work: PackWork[R], configs: Sequence[MethodConfig], arrays: ray.ObjectRef, resources: ResourceOptions
) -> list[R]:
    """Do `work` on packs of configurations that share their static knobs, a Ray task each; results in the order given.

    `arrays`: reference to `TrialData.to_arrays()`.
    """
    packs = packs_of(configs)
    task: Any = ray.remote(_task).options(num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus)
    running = [task.remote(work, arrays, [configs[i] for i in pack], resources) for pack in packs]
    try:
        return in_order(packs, ray.get(running))
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _task(
    work: PackWork[R], arrays: Mapping[str, Any], configs: Sequence[MethodConfig], resources: ResourceOptions
) -> Sequence[R]:
    return work(configs, data=data_on_worker(arrays, resources.cpus_per_pack, resources.gpus))


def packs_of(configs: Sequence[MethodConfig]) -> list[list[int]]:
    """Return the indices of configurations by packs: those that share their static knobs."""
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault((type(config), *static_fields(config)), []).append(i)
    return list(packs.values())


def in_order(packs: Sequence[Sequence[int]], results: Sequence[Sequence[R]]) -> list[R]:
    """Return the packs' results in the order of their configurations."""
    of_index = {i: r for pack, done in zip(packs, results, strict=True) for i, r in zip(pack, done, strict=True)}
    return [of_index[i] for i in range(len(of_index))]
