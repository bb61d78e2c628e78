"""A study's options, resolved and checked before any work: what this module lets through can be run."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

import search_spaces
from data_prep.benchmarks import get_benchmark, with_roles
from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.transfer import ARROW
from data_prep.checkpoint import CLIP, Checkpoint
from data_prep.errors import UserError
from data_prep.storage import Storage, locate
from data_prep.templates import find_templates
from search_spaces import Ablation, Space, Value
from search_spaces.changes import describe, find_space
from search_spaces.plugins import load_plugins
from study.options import Options, SearchOptions, SelectionOptions, StudyOptions
from study.outputs.folder import IDENTITY, open_storage, read_json
from study.outputs.hub import check_push
from study.outputs.trackers import check_tracker
from study.pipeline.candidates import Candidate, candidate_of_row, enqueued_params
from study.protocol.folds import check_folds
from study.protocol.scores import Criterion
from study.protocol.trial_data import check_rotation
from study.search.halving import rung_epochs
from study.search.records import SamplerName, StudyIdentity
from study.training.loop import TrainingOptions
from study.training.methods import learns_prompts, method_of


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A study that can be run: every option resolved, every rule checked."""

    options: Options
    """The options as given; of a row that is made again, those under which it was made."""
    name: str
    """Name of the study and of its folder."""
    storage: Storage
    """The study's folder."""
    identity: StudyIdentity
    """The options that a resumed study must repeat."""
    space: Space
    """The study's own method and its knobs; of an ablation, the method that is taken apart."""
    ablation: Ablation | None
    """The ablation, if the study is one."""
    baselines: tuple[Space, ...]
    """Baselines beside the study's own method."""
    rerun: Candidate | None
    """The one row that is made again, if the study does nothing else."""
    benchmark: str
    """Benchmark, as `get_benchmark` takes it."""
    notes: tuple[str, ...]
    """What the benchmark's reader has to say of it."""
    target_images: pa.Table
    """The target's images for small pictures in the report: key, path and data. No label."""
    clip_path: str
    """Folder or hub id of the checkpoint, as every node can open it."""
    rotations: tuple[int, ...]
    """Rotations of the unseen classes, a whole study each."""
    criterion: Criterion
    """What scores configurations."""
    enqueued: tuple[Mapping[str, Value], ...]
    """Knobs of configurations that are tried first, after the defaults."""

    @property
    def reference(self) -> str:
        """Method on the leaderboard that the others are compared with: the study's own, or an ablation's full model."""
        if self.rerun:
            return self.rerun.entry.method
        return self.ablation.method(next(iter(self.ablation.variants))) if self.ablation else self.space.method

    @property
    def training(self) -> TrainingOptions:
        """How configurations are trained while they are searched; `--precision auto` is decided on the cluster."""
        search = self.options.search
        rungs = tuple(rung_epochs(search.epochs)) if search.prunes else ()
        graphs = self.options.resources.cuda_graphs
        return TrainingOptions(epochs=search.epochs, rungs=rungs, criterion=self.criterion, cuda_graphs=graphs)

    @property
    def sampler(self) -> SamplerName:
        """What draws configurations, of the study's own space and of its baselines alike.

        A consensus needs voters that err in different ways: a sampler that learns draws ever more of the same.
        """
        return self.options.search.sampler or ("random" if self.votes(self.space) else "tpe")

    def votes(self, space: Space) -> bool:
        """Return whether a space's configurations are ranked by the consensus of what they predict for the target."""
        return self.criterion == "consensus" and method_of(space).uses_target

    @property
    def refit_seeds(self) -> list[int]:
        """Seeds of every refit."""
        return [self.options.search.seed * 1000 + i for i in range(self.options.selection.seeds)]


def resolve(options: Options) -> StudySpec:
    """Resolve a study's options and check every rule that needs no work. Raises `UserError`."""
    row: dict[str, Any] | None = None
    if options.study.rerun:
        options, row = _options_of_row(options, options.study.rerun)
    study, search, selection, output = options.study, options.search, options.selection, options.output
    load_plugins(study.plugin)
    chosen = find_space(study.space, study.set)
    ablation = chosen if isinstance(chosen, Ablation) else None
    space = chosen.space if isinstance(chosen, Ablation) else chosen
    method = method_of(space)
    for setting in study.set:
        if (name := setting.partition("=")[0].strip()) in (*method.swept, "head"):
            rule = f"must leave out {name}: its best value is found exactly for every configuration"
            raise UserError(f"{rule} of {space.method}, it is not searched", option="set")
    criterion = selection.criterion or space.criterion
    if criterion != "h" and not method.uses_target:
        raise UserError(
            f"must be h for {space.method}, which may not see target images; got {criterion}", option="criterion"
        )
    baselines = _baselines(search.baselines, space, is_ablation=bool(ablation))
    _check_workers(options, [space, *baselines])
    benchmark = f"{study.train_on}{ARROW}{study.test_on}" if study.train_on else study.benchmark or space.benchmark
    benchmark = with_roles(benchmark, study.source, study.target)
    read = get_benchmark(benchmark, study.data_root, allow_partial=study.allow_partial)
    rotations = _rotations(study.rotation, read)
    for rotation in rotations:
        check_folds(selection.folds, int((~read.classes.unseen_RC[rotation]).sum()))
    if not study.train_on:
        options = replace(options, study=replace(study, benchmark=benchmark, source=None, target=None))
    checkpoint = read.checkpoint(study.clip)
    baselines, left_out = _for_checkpoint(checkpoint, space, baselines, search.baselines)
    if study.templates:
        find_templates(study.templates)
    for option, given in (("winner", selection.winner), ("re_search", selection.re_search)):
        if given and not ablation:
            raise UserError(f"must come with an ablation, got it with --space {study.space}", option=option)
    if options.resources.dashboard and not find_spec("aiohttp_cors"):  # of Ray's own extra
        raise UserError('needs Ray\'s: pip install -e ".[dashboard]"', option="dashboard")
    if output.push:
        check_push(output.push)
    if output.log:
        check_tracker(output.log)
    if output.resume and output.name is None:
        raise UserError("must come with the --name of the study to continue, got none", option="resume")
    if output.ledger:
        from study.search.database import connect  # half a second, which a journal saves

        connect(output.ledger)
    locate(output.cache, option="cache")
    slug = re.sub(r"[^\w.-]", "-", read.slug)
    name = output.name or f"{chosen.name}-{slug}-{datetime.now():%Y%m%d-%H%M%S}"
    storage = open_storage(output.storage, name)
    identity = StudyIdentity(
        space=chosen.name,
        benchmark=benchmark,
        clip=study.clip,
        rotation=study.rotation,
        templates=study.templates,
        epochs=search.epochs,
        seed=search.seed,
        objective=search.objective,
        select=selection.select,
        folds=selection.folds,
        ledger=output.ledger,
        knobs=describe(space),
        enqueue=search.enqueue,
        test_share=selection.test_share,
    )
    check_folder(storage, identity, resume=output.resume)
    return StudySpec(
        options=options,
        name=name,
        storage=storage,
        identity=identity,
        space=space,
        ablation=ablation,
        baselines=baselines,
        rerun=None if row is None else candidate_of_row(space, row),
        benchmark=benchmark,
        notes=(*read.notes, *left_out),
        target_images=read.domain("target").select(["key", "path", "data"]),
        # a node that does not see the driver's download makes its own
        clip_path=checkpoint.identity.get("hub") or str(checkpoint.folder),
        rotations=rotations,
        criterion=criterion,
        enqueued=_enqueued(search, space, selection.select, has_search=not (ablation or row)),
    )


def _enqueued(search: SearchOptions, space: Space, select: str, *, has_search: bool) -> tuple[dict[str, Value], ...]:
    """Return the knobs that are tried first. Raises `UserError`."""
    if not search.enqueue:
        return ()
    if not has_search:
        raise UserError("must come with the search of a method's space", option="enqueue")
    found = enqueued_params(search.enqueue, space, select)
    if len(found) >= search.configs:
        rule = f"must leave room for the defaults: {len(found)} configurations, --configs {search.configs}"
        raise UserError(rule, option="enqueue")
    return found


def _options_of_row(options: Options, rerun: str) -> tuple[Options, dict[str, Any]]:
    """Return the options under which a row was made, with the resources and outputs of now, and its JSON."""
    try:
        folder, _, file = rerun.rpartition("/")
        row = json.loads(locate(folder or ".", option="rerun").read(file) or b"null")
        of_row = {block: dict(row["options"][block]) for block in ("study", "search", "selection")}
        root, no_ablation = of_row["study"]["data_root"], {"winner": None, "re_search": False}
        study = {
            **of_row["study"],
            "data_root": Path(root) if root else None,
            "templates": tuple(of_row["study"]["templates"]),
            "plugin": tuple(of_row["study"].get("plugin", ())),
            "rotation": row["rotation"],
            "set": (),  # a row has all fields of its configuration
            "rerun": rerun,
        }
        load_plugins(study["plugin"])
        if row["space"] in search_spaces.names():
            study["space"] = row["space"]
        limits = {"baselines": "none", "enqueue": (), "time": None}
        restored = replace(
            options,
            study=StudyOptions(**study),
            search=SearchOptions(**{**of_row["search"], **limits}),
            selection=SelectionOptions(**{**of_row["selection"], **no_ablation, "criterion": row["criterion"]}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"must be a file configs/ID.json of a study of this version, got {rerun}: {error!r}", option="rerun"
        ) from None
    return restored, row


def _rotations(rotation: int | str, benchmark: Benchmark) -> tuple[int, ...]:
    """Return the rotations that are studied."""
    count = benchmark.classes.unseen_RC.shape[0]
    if rotation == "all":
        return tuple(range(count))
    check_rotation(int(rotation), count, benchmark.name)
    return (int(rotation),)


def _baselines(chosen: str, space: Space, *, is_ablation: bool) -> tuple[Space, ...]:
    """Return the spaces of `--baselines`; auto: the method's, and none for an ablation."""
    if chosen == "auto":
        chosen = "none" if is_ablation else "all"
    names = {"all": space.baselines, "none": ()}.get(chosen, tuple(filter(None, chosen.split(","))))
    spaces = []
    for baseline in map(functools.partial(search_spaces.load, option="baselines"), names):
        if isinstance(baseline, Ablation):
            raise UserError(f"must be methods' spaces, not ablations; got {baseline.name}", option="baselines")
        spaces.append(baseline)
    return tuple(spaces)


def _for_checkpoint(
    checkpoint: Checkpoint, space: Space, baselines: tuple[Space, ...], chosen: str
) -> tuple[tuple[Space, ...], tuple[str, ...]]:
    """Return the baselines that a checkpoint can have, and a note of those that are left out. Raises `UserError`.

    `chosen`: value of `--baselines`; those that were named are not left out.
    """
    if checkpoint.model_type == CLIP:
        return baselines, ()
    other = "is another model" if checkpoint.model_type else "has features of texts only"
    rule = f"learns prompts through the text tower of CLIP; {checkpoint.name} {other}"
    if learns_prompts(space):
        raise UserError(f"must be CLIP: {space.name} {rule}", option="clip")
    without = [baseline.name for baseline in baselines if learns_prompts(baseline)]
    if without and chosen not in ("auto", "all"):
        raise UserError(f"must leave out {without[0]}, which {rule}", option="baselines")
    kept = tuple(baseline for baseline in baselines if baseline.name not in without)
    return kept, tuple(f"left out: {name}, which {rule}" for name in without)


def _check_workers(options: Options, spaces: Sequence[Space]) -> None:
    """Check that the workers of a pack and of a refit can share its batches, and their GPUs."""
    resources = options.resources
    gpus = resources.gpus
    for option, workers in (
        ("workers_per_pack", resources.workers_per_pack),
        ("refit_workers", resources.workers_of_refits),
    ):
        for space in spaces:
            choices = next((k.choices for k in space.knobs if k.name == "batch_size" and k.choices), None)
            batches = [int(b) for b in choices or (space.config().batch_size,)]
            odd = [b for b in batches if workers and b % workers]
            if odd:
                raise UserError(
                    f"must divide every batch size of {space.name}, got {workers} for {odd[0]}", option=option
                )
        if workers > 1 and gpus % 1:
            raise UserError(f"needs whole GPUs, got {workers} workers with --gpus-per-pack {gpus:g}", option=option)
    if resources.workers_per_pack > 1 and options.search.refill:
        raise UserError(f"must be 1 with --refill, got {resources.workers_per_pack}", option="workers_per_pack")


def check_folder(storage: Storage, identity: StudyIdentity, *, resume: bool) -> None:
    """Refuse a folder that holds a study, or, with `--resume`, another one."""
    content = read_json(storage, IDENTITY)
    if content is None:
        return
    if not resume:
        raise UserError(f"must be new or --resume given: {storage.shown} already holds a study", option="name")
    identity.require(content, storage.shown)
