"""What a study is going to do, asked before any of it starts: packs that fit the memory, and the time it takes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import torch

from search_spaces import Ablation, Space
from study.cluster.session import concurrent_packs
from study.options import Options
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.pack import Pack, pack_on_folds

LARGEST_AUTO_PACK = 16
"""`--pack auto` goes no further: the sampler learns between packs, not within one."""

PACKS_PER_ACTOR = 4
"""Packs each actor should get to train under `--pack auto`, so that the sampler can learn and actors end together."""

LANES_TIMED = 4
"""Lanes of the pack whose epoch is timed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will do in each of its rotations."""

    images: Mapping[str, int]
    """What it has to learn from, in numbers."""
    packs: Mapping[str, int]
    """Configurations in a pack, by space."""
    megabytes: Mapping[str, float]
    """Memory that one configuration of a pack takes, about, by space."""
    at_once: int
    """Packs that run at the same time."""
    work: Sequence[str]
    """What is searched and refitted, a line each."""
    seconds: float
    """Training time of a rotation on processors like this machine's, baselines included."""

    def text(self, rotations: int, rejected: int) -> str:
        """For the terminal; `rejected`: images that could not be read."""
        images = self.images
        return "\n".join(
            [
                f"  images     {images['source_images']} labelled source images of {images['seen_classes']} seen "
                f"classes, {images['target_images']} unlabelled target images, "
                f"{images['unseen_classes']} unseen classes"
                f"{f', {rejected} unreadable images left out' if rejected else ''}",
                *self.work,
                f"  rotations  {rotations}",
                f"  memory     about {max(self.packs[s] * self.megabytes[s] for s in self.packs):.0f} MB of tensors "
                f"in the largest pack",
                f"  time       about {max(1, rotations * self.seconds):.0f} s of training",
            ]
        )


def make_plan(
    space: Space,
    baselines: Sequence[Space],
    options: Options,
    data: TrialData,
    ablation: Ablation | None = None,
    *,
    again: bool = False,
) -> Plan:
    """The plan of a study on the Ray that is initialised; `again`: of one row that is made once more.

    Estimates the memory and times an epoch of every method's default configuration: what a benchmark or checkpoint
    lacks for one of them shows here, before the search starts.
    """
    search, selection, resources = options.search, options.selection, options.resources
    at_once = concurrent_packs(resources.cpus_per_pack, resources.gpus_per_pack, resources.workers_per_pack)
    bytes_of = {s.name: _bytes(s, data) for s in (space, *baselines)}
    packs = {name: _pack_size(options, bytes_, at_once) for name, bytes_ in bytes_of.items()}
    halving = 0.5 if search.halves else 1.0
    variants = len(ablation.variants) if ablation else 1

    def training(of: Space, searches: int, refits: int) -> float:
        configs = searches * search.configs * halving if of.knobs else 1
        lanes = configs * selection.folds + refits * selection.seeds
        return lanes * search.epochs * _seconds_per_epoch(of, data) / at_once

    refits = 1 if again else variants if ablation else selection.top
    searches = 0 if again or (ablation and not selection.re_search) else variants
    also = "".join(f", {baseline.method}" for baseline in baselines if baseline.knobs)
    searched = (
        f"{search.configs} configurations{' of each variant' if ablation else ''}"
        f"{f' each of {space.method}{also}' if also else ''} x {selection.folds} folds x {search.epochs} epochs "
        f"in packs of {packs[space.name]}, {at_once} at once "
        f"({resources.cpus_per_pack:g} CPUs, {resources.gpus_per_pack:g} GPUs each)"
    )
    return Plan(
        images={
            "source_images": len(data.source_labels_I),
            "target_images": len(data.target_features_TD),
            "seen_classes": int(data.seen_C.sum()),
            "unseen_classes": int((~data.seen_C).sum()),
        },
        packs=packs,
        megabytes={name: round(bytes_ / 1e6, 1) for name, bytes_ in bytes_of.items()},
        at_once=at_once,
        work=[
            f"  search     {searched if searches else 'none: configurations are given'}",
            f"  refit      {refits} x {selection.seeds} seeds on all seen classes, then the test split once",
        ],
        seconds=training(space, searches, refits) + sum(training(b, 1, 1) for b in baselines),
    )


def _bytes(space: Space, data: TrialData) -> int:
    """Memory of a configuration in training."""
    return pack_on_folds([space.config(**space.defaults())], seeds=[0], data=data, epochs=1).bytes()


def _pack_size(options: Options, bytes_: int, at_once: int) -> int:
    """Configurations in a pack: `--pack`, or `PACKS_PER_ACTOR`, at most `LARGEST_AUTO_PACK` and what memory holds.

    Not by a timing: the sampler learns between packs, so a noisy choice would make two runs with a seed differ.
    What the default configuration's estimate misses on other static knobs, actors mend by halving.
    """
    resources = options.resources
    if resources.pack != "auto":
        return resources.pack
    fitting = LARGEST_AUTO_PACK
    if not resources.gpus_per_pack:  # a GPU's memory is not known here
        fitting = int(
            min(LARGEST_AUTO_PACK, ray.cluster_resources().get("memory", math.inf) / at_once // max(bytes_, 1))
        )
    return max(1, min(fitting, -(-options.search.configs // (PACKS_PER_ACTOR * at_once))))


def _seconds_per_epoch(space: Space, data: TrialData) -> float:
    """Seconds that one lane's epoch of the default configuration takes on one thread of this machine."""
    config = space.config(**space.defaults())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pack = Pack(
        [config] * LANES_TIMED,
        seeds=list(range(LANES_TIMED)),
        seen_KC=seen_classes(data, 0).expand(LANES_TIMED, -1),
        trainable_KI=trainable_images(data, 0).expand(LANES_TIMED, -1),
        data=data,
        epochs=2,
    )
    pack.train_epoch()
    started = time.perf_counter()
    pack.train_epoch()
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) / LANES_TIMED
