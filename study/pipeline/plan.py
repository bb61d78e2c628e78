"""What a study is going to do, asked before any of it starts: packs that fit the memory, and the time it takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet
from search_spaces import Space, Value
from study.cluster.capacity import Capacity, find_capacity, gpu_share, local_capacity
from study.cluster.tasks import find_gpus, time_lanes, time_lanes_here
from study.outputs.provenance import Clock, DataCounts, RecordedOptions, RunRecord, command, current_environment
from study.pipeline.spec import StudySpec
from study.protocol.trial_data import TrialData
from study.training.pack import Pack, pack_on_folds

LARGEST_AUTO_PACK = 16
"""`--pack auto` goes no further: the sampler learns between packs, not within one."""

PACKS_PER_ACTOR = 4
"""Packs each actor should get to train under `--pack auto`, so that the sampler can learn and actors end together."""

ACTORS_OF_SINGLES = 8
"""Actors on CPUs that the driver keeps busy with packs of one configuration that take a second."""

LITTLE_WORK = 4e10
"""Bytes that refits move on two cores in the 20 s that a Ray Train run takes to start; SRE-CLIP's: 1.7e10 in 9 s."""

COMPLETE = 0.3
"""Share of configurations that halving trains to the end, about: these vote."""

MOST_REQUESTED = 64
"""Packs that `--max-packs auto` asks an autoscaler for at most."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will do in each of its rotations."""

    data: DataCounts
    """What it has to learn from, in numbers."""
    packs: Mapping[str, int]
    """Configurations in a pack, by space."""
    megabytes: Mapping[str, float]
    """Memory that one configuration of a pack takes, about, by space."""
    at_once: int
    """Packs that run at the same time, once an autoscaler has started the nodes that it is asked for."""
    work: Sequence[str]
    """What is searched and refitted, a line each."""
    refit_workers: int
    """Workers of the refits' Ray Train run; 0: plain Ray tasks."""
    seconds: float
    """Training time of a rotation with that many packs at a time, baselines included."""
    votes: float
    """Time of a rotation in which configurations predict all target images, under every head; 0 without a consensus."""

    def text(self, rotations: int, rejected: int) -> str:
        """Return the plan for the terminal; `rejected`: images that could not be read."""
        data = self.data
        return "\n".join(
            [
                f"  images     {data.source_images} labelled source images of {data.seen_classes} seen "
                f"classes, {data.target_images} unlabelled target images, "
                f"{data.unseen_classes} unseen classes"
                f"{f', {rejected} unreadable images left out' if rejected else ''}",
                *self.work,
                f"  rotations  {rotations}",
                f"  memory     about {max(self.packs[s] * self.megabytes[s] for s in self.packs):.0f} MB of tensors "
                f"in the largest pack",
                f"  time       about {max(1, rotations * self.seconds):.0f} s of training"
                f"{f', {max(1, rotations * self.votes):.0f} s of votes' if self.votes else ''}",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study whose features are there and whose work is planned: what all its rotations share."""

    spec: StudySpec
    """The study."""
    cache: Path | str
    """Folder or URI of the feature cache."""
    features: FeatureSet
    """The cache, read; of its target images those that the study may see."""
    new: FeatureSet | None
    """The same with the target images that it may not see (`--test-share`); None where it sees all."""
    plan: Plan
    """What it will do."""
    console: Console
    """Where it says so."""
    clock: Clock
    """How long its stages take."""
    scorings_before: int
    """Times that the study's test split was scored before this run."""

    @property
    def title(self) -> str:
        """What is studied, in a line."""
        return f"{self.spec.options.study.space} on {self.features.benchmark} with {self.features.clip}"

    def run_record(self, rotation: int | None = None, *, interrupted: bool = False, scored: bool = True) -> RunRecord:
        """Return all that is needed to run the study (or the one rotation) again, and where it ran.

        `scored`: whether this run has scored the test split.
        """
        spec, plan = self.spec, self.plan
        return RunRecord(
            name=spec.name if rotation is None else f"{spec.name}, rotation {rotation}",
            command=command(),
            reference=spec.reference,
            criterion=spec.criterion,
            data=plan.data,
            concurrent=plan.at_once,
            options=RecordedOptions.of(spec.options),
            feature_fingerprint=self.features.fingerprint,
            environment=current_environment(),
            packs=plan.packs,
            megabytes_per_configuration=plan.megabytes,
            configurations_per_minute=self.clock.per_minute,
            seconds={stage: round(seconds, 2) for stage, seconds in self.clock.seconds.items()},
            scorings=self.scorings_before + scored,
            status="interrupted" if interrupted else "finished",
        )


def choose_gpus(spec: StudySpec, data: TrialData, console: Console) -> StudySpec:
    """Return the study with its packs' share of a GPU decided, and say it on the console: `--gpus-per-pack auto`."""
    resources = spec.options.resources
    if resources.gpus_per_pack != "auto":
        return spec
    share, gpus = 0.0, find_gpus()
    if gpus and not gpus.name:
        console.print(f"  Ray counts {gpus.count} GPUs, but torch sees none there: packs train on CPUs", soft_wrap=True)
    elif gpus and resources.workers_per_pack > 1:
        share = 1.0
    elif gpus:
        pack = LARGEST_AUTO_PACK if resources.pack == "auto" else resources.pack
        share = gpu_share(
            gpus=gpus.count,
            cpus=gpus.cpus,
            memory=gpus.memory,
            pack_bytes=pack * max(_bytes(space, data) for space in (spec.space, *spec.baselines)),
            packs=math.ceil(spec.options.search.configs / pack) * (1 + len(spec.baselines)),
            cpus_per_pack=resources.cpus_per_pack,
        )
    if gpus and share:
        each = f"{gpus.name} ({gpus.memory / 2**30:.0f} GiB)"
        text = f"  GPUs       {gpus.count} x {each}, {share:g} of one for each pack"
        console.print(text, soft_wrap=True, highlight=False)
    return replace(spec, options=replace(spec.options, resources=replace(resources, gpus_per_pack=share)))


def make_plan(spec: StudySpec, data: TrialData, console: Console, *, here: bool = False) -> Plan:
    """Plan a study on the Ray that is initialised; `here`: on this machine, without any. Raises `UserError`.

    Waits for the first node that holds a pack, if the autoscaler must start it, and says so on the console.

    Estimates the memory and times an epoch of every method's default configuration: what a benchmark or checkpoint
    lacks for one of them shows here, before the search starts.
    """
    space, ablation, again = spec.space, spec.ablation, bool(spec.rerun)
    search, selection, resources = spec.options.search, spec.options.selection, spec.options.resources
    variants = len(ablation.variants) if ablation else 1
    refits = 1 if again else variants if ablation else selection.top
    searches = 0 if again or (ablation and not selection.re_search) else variants
    useful = _useful_packs(spec) if searches or spec.baselines else 1
    capacity = local_capacity(resources) if here else find_capacity(resources, useful, console)
    at_once = capacity.most
    bytes_of = {s.name: _bytes(s, data) for s in (space, *spec.baselines)}
    for searched_space in (space, *spec.baselines) if searches else spec.baselines:
        _check_static_values(searched_space, data)
    packs = {name: _pack_size(spec, bytes_, capacity) for name, bytes_ in bytes_of.items()}
    timed = [space, *spec.baselines]
    votes = spec.votes(space) and hasattr(space.config(**space.defaults()), "head")
    if here:
        times = time_lanes_here(timed, data, votes=votes)
    else:
        times = time_lanes(timed, data, resources, console, votes=votes)
    pruned = 0.5 if search.prunes else 1.0

    def training(of: Space, searches: int, refits: int) -> float:
        configs = searches * search.configs * pruned if of.knobs else 1
        lanes = configs * selection.folds + refits * selection.seeds
        return lanes * search.epochs * times.epoch[of.name] / at_once

    complete = searches * search.configs * (COMPLETE if search.prunes else 1.0)
    voters = complete * selection.folds + refits * selection.seeds
    also = "".join(f", {baseline.method}" for baseline in spec.baselines if baseline.knobs)
    searched = (
        f"{search.configs} configurations{' of each variant' if ablation else ''}"
        f"{f' each of {space.method}{also}' if also else ''} x {selection.folds} folds x {search.epochs} epochs "
        f"in packs of {packs[space.name]}, {'up to ' if at_once > capacity.now else ''}{at_once} at once "
        f"({resources.cpus_per_pack:g} CPUs, {resources.gpus:g} GPUs each)"
    )
    return Plan(
        data=DataCounts(
            source_images=len(data.source_labels_I),
            target_images=len(data.target_features_TD),
            seen_classes=int(data.seen_C.sum()),
            unseen_classes=int((~data.seen_C).sum()),
        ),
        packs=packs,
        megabytes={name: round(bytes_ / 1e6, 1) for name, bytes_ in bytes_of.items()},
        at_once=at_once,
        work=[
            f"  search     {searched if searches else 'none: configurations are given'}",
            *_first(spec, packs[space.name]),
            f"  refit      {refits} x {selection.seeds} seeds on all seen classes, then the test split once",
        ],
        refit_workers=_refit_workers(spec, data, bytes_of, refits),
        seconds=training(space, searches, refits) + sum(training(b, 1, 1) for b in spec.baselines),
        votes=times.votes * voters / at_once,
    )


def _refit_workers(spec: StudySpec, data: TrialData, bytes_of: Mapping[str, int], refits: int) -> int:
    """Return the workers of the refits: `--refit-workers`, or none where a Ray Train run starts longer than it runs.

    By the memory that training moves, which is known before, and not by a timing: two runs with a seed must not differ.
    """
    resources, search, selection = spec.options.resources, spec.options.search, spec.options.selection
    if resources.refit_workers != "auto":
        return resources.refit_workers
    moved = 0.0
    for space in (spec.space, *spec.baselines):
        steps = search.epochs * math.ceil(len(data.source_labels_I) / space.config().batch_size)
        lanes = (refits if space is spec.space else 1) * selection.seeds
        moved += steps * lanes * bytes_of[space.name] / selection.folds
    return 1 if moved > LITTLE_WORK else 0


def _first(spec: StudySpec, pack: int) -> list[str]:
    """Say which configurations are tried before any is drawn, and when the search ends at the latest."""
    search, lines = spec.options.search, []
    if spec.enqueued:
        tried = min(len(spec.enqueued), -(-search.configs // pack) - 1)
        lines.append(f"  first      the defaults, then {tried} of {', '.join(search.enqueue)}")
    if search.time:
        lines.append(f"  at most    {search.time} for the searches of a rotation, the same share for each method")
    return lines


def _useful_packs(spec: StudySpec) -> int:
    """Return the packs that a study can use at once: `--max-packs`, or so many that each actor trains some.

    With `--pack auto` as many as a pack has configurations: neither the sampler nor the actors come off badly.
    """
    resources, configs = spec.options.resources, spec.options.search.configs
    if resources.max_packs != "auto":
        return resources.max_packs
    pack: float
    if resources.pack == "auto":
        pack = max(1.0, min(LARGEST_AUTO_PACK, math.sqrt(configs / PACKS_PER_ACTOR)))
    else:
        pack = resources.pack
    return min(MOST_REQUESTED, math.ceil(configs / pack / PACKS_PER_ACTOR))


def _bytes(space: Space, data: TrialData) -> int:
    """Return the memory of a configuration in training. Raises `UserError` where the method cannot be built."""
    return _build(space, space.defaults(), data).bytes()


def _check_static_values(space: Space, data: TrialData) -> None:
    """Raise `UserError` where a value of a static knob, which the search may draw, cannot be built."""
    for knob, params in space.static_values():
        _build(space, params, data, tried=f" with {knob.name}={params[knob.name]}")


def _build(space: Space, params: Mapping[str, Value], data: TrialData, *, tried: str = "") -> Pack:
    try:
        return pack_on_folds([space.config(**params)], seeds=[0], data=data, epochs=1)
    except ValueError as error:  # its module refuses this benchmark or checkpoint
        raise UserError(f"{space.method}{tried} cannot be trained on this benchmark and checkpoint: {error}") from error


def _pack_size(spec: StudySpec, bytes_: int, capacity: Capacity) -> int:
    """Return the configurations in a pack, which share their static knobs: `--pack`, or a choice.

    What gives every actor `PACKS_PER_ACTOR` packs, at most `LARGEST_AUTO_PACK`. On CPUs not more than memory holds, and
    no more than the driver needs: there a configuration alone, with its folds, trains as fast as in a pack (between 8
    and 1 in a pack the CPU time of one differs by less than a tenth), and each draws static knobs of its own.

    Not by a timing: the sampler learns between packs, so a noisy choice would make two runs with a seed differ.
    What the default configuration's estimate misses on other static knobs, actors mend by halving.
    """
    resources = spec.options.resources
    if resources.pack != "auto":
        return resources.pack
    fitting = LARGEST_AUTO_PACK
    if not resources.gpus:  # a GPU's memory is not known here
        memory = capacity.memory / capacity.now
        fitting = int(min(-(-capacity.most // ACTORS_OF_SINGLES), LARGEST_AUTO_PACK, memory // max(bytes_, 1)))
    return max(1, min(fitting, -(-spec.options.search.configs // (PACKS_PER_ACTOR * capacity.most))))
