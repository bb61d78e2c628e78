"""The study's options: what the command line takes, and what a Python caller builds.

Each block is a group of `--help`; every option is checked before any work starts.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import OmitArgPrefixes, UseAppendAction

from data_prep.command_line import with_help
from data_prep.errors import UserError, nearest


def _check(value: object, rule: str, *, option: str, holds: bool) -> None:
    """Raise `UserError` where a rule of one option does not hold."""
    if not holds:
        raise UserError(f"must be {rule}, got {value}", option=option)


def _check_types(options: object) -> None:
    """Raise `UserError` where a Python caller gives what the command line would not take; paths may be strings."""
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        choices = [choice for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
        if Path in kinds and isinstance(value, str):
            object.__setattr__(options, name, Path(value))
        elif isinstance(value, str) and str not in kinds and choices and value not in choices:
            numbers = "a number or " if {int, float} & set(kinds) else ""
            got = f"{value!r}{nearest(value, choices)}"
            raise UserError(f"must be {numbers}{', '.join(choices)}; got {got}", option=name)
        elif not (value in choices or _is_of(value, kinds)):
            words = [k.__name__ if isinstance(k, type) else str(k) for k in kinds if get_origin(k) is not Literal]
            raise UserError(f"must be {' or '.join([*words, *choices])}; got {value!r}", option=name)


def _is_of(value: object, kinds: Sequence[Any]) -> bool:
    """Return whether a value is of one of these types of options."""
    if isinstance(value, bool):  # which Python takes for a number
        return bool in kinds
    of = tuple(get_origin(kind) or kind for kind in kinds if get_origin(kind) is not Literal)
    return isinstance(value, (*of, int) if float in of else of)


@dataclass(frozen=True, kw_only=True)
@with_help
class StudyOptions:
    """What is studied"""

    space: str = "sre"
    """Search space, a method's knobs with their ranges: sre, pva, pva-prompts, or that of a baseline, such as
    tip-adapter-f; an ablation, which takes a method apart: sre-ablation, pva-ablation; or FILE.yaml (--print-space
    writes one to begin with) or FILE.py, which exports SPACE."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """Once for each knob that is to be searched otherwise: lr=1e-3 (fixed), lr=1e-4..1e-2:log (a range),
    adapter=memory,tokens (values). Of the study's own method; baselines keep their spaces."""
    plugin: UseAppendAction[tuple[str, ...]] = ()
    """File or module with a method of your own (models/README.md says how to write one); once for each. Nodes of a
    cluster get it with the study."""
    benchmark: str | None = None
    """Benchmark: icons2emoji, icons2emoji-gzsl (embedded, nothing to download; the default is that of the space's
    task), a published one under --data-root, or your own data: folder:PATH of images, features:PATH, or hf:PATH_OR_NAME
    of Hugging Face datasets."""
    source: str | None = None
    """Of your own data: the labelled folder, domain or split, where it is not called source or train."""
    target: str | None = None
    """Of your own data: the unlabelled folder, domain or split, where it is not called target or test."""
    train_on: str | None = None
    """With --test-on: benchmark whose labelled images, of all its classes, are trained on."""
    test_on: str | None = None
    """With --train-on: benchmark whose test images are classified among its own classes (cross-dataset)."""
    clip: str | None = None
    """CLIP checkpoint: Hugging Face hub id or local folder; the benchmark's own by default."""
    data_root: Path | None = None
    """Folder of downloaded data sets, for benchmarks that are not embedded."""
    allow_partial: bool = False
    """Go on with what is there of an incomplete data set; every row of the leaderboard says so."""
    max_rejected: float = 0.001
    """Share of images that may be unreadable; they are left out and listed in the feature cache."""
    templates: tuple[str, ...] = ()
    """Prompts: a template set (single, imagenet7, imagenet80, ...) or prompts with {}; the benchmark's own by
    default."""
    rotation: int | Literal["all"] = 0
    """Which classes are the unseen ones; all: a whole study per rotation, and their average."""
    rerun: str | None = None
    """File configs/ID.json of a study, or its URI: that one row again, refitted and scored as it was then. Space,
    benchmark, seeds and epochs are those of the file, whatever else is given here."""

    def __post_init__(self) -> None:
        _check_types(self)
        both = self.train_on is not None, self.test_on is not None
        _check(self.test_on, "given together with --train-on", option="test_on", holds=both[0] == both[1])
        _check(self.benchmark, "left out with --train-on", option="benchmark", holds=not (self.benchmark and both[0]))
        _check(
            self.rotation, "0 or more, or all", option="rotation", holds=self.rotation == "all" or self.rotation >= 0
        )


@dataclass(frozen=True, kw_only=True)
@with_help
class SearchOptions:
    """How it is searched"""

    configs: int = 64
    """Configurations to finish (trained to the end, pruned or diverged)."""
    epochs: int = 20
    """Epochs of a configuration that is not pruned; an epoch passes once over the labelled source."""
    sampler: Literal["tpe", "random", "nsga2"] | None = None
    """Optuna sampler: multivariate TPE, random, or NSGA-II. The default is random where a consensus chooses, for which
    configurations should err in different ways, else tpe. The others learn from what has ended, which with several
    actors differs from run to run."""
    objective: Literal["h", "seen,unseen"] = "h"
    """One objective (the selection score), or seen and unseen accuracy as two, with their Pareto front."""
    pruning: bool = True
    """Successive halving: at a quarter and at half of the epochs a configuration goes on only in the better half of
    those drawn up to it."""
    repeatable: Literal["yes", "no", "auto"] = "auto"
    """Whether packs wait at a rung for the scores of those drawn before them. Then the order in which actors finish
    changes nothing, and the same study gives the same leaderboard. With many actors it takes longer; auto: yes on one
    machine, no on several."""
    refill: bool = False
    """Whether a pack takes new configurations in the room of pruned ones, with the same static knobs."""
    baselines: str = "auto"
    """Baselines on the same features, each with its own space and the same budget: all (of the method's task), none,
    or a list such as tip-adapter,linear-probe; auto is all, but none for an ablation."""
    enqueue: UseAppendAction[tuple[str, ...]] = ()
    """Folder of a study, or a file configs/ID.json of one: its configurations are tried first, after the defaults, the
    best in selection before the others. Once for each."""
    time: str | None = None
    """Time after which the searches of a rotation begin no more configurations, such as 45s, 30m or 1h30m; each method
    has an equal share of it. --configs is the limit where it is reached first."""
    seed: int = 0
    """Seed of everything: sampler, folds, initialisations, data order."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check(self.configs, "at least 1", option="configs", holds=self.configs >= 1)
        _check(self.epochs, "at least 1", option="epochs", holds=self.epochs >= 1)
        _check(self.seed, "0 to 2^31 - 1", option="seed", holds=0 <= self.seed < 2**31)
        _check(self.time, "such as 45s, 30m or 1h30m", option="time", holds=self.time is None or self.time_s > 0)
        _check(self.refill, "left out with --enqueue", option="refill", holds=not (self.refill and self.enqueue))

    @property
    def time_s(self) -> float:
        """Seconds of `time`; without it there is no limit, and 0 where it is no time."""
        if self.time is None:
            return math.inf
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.time)
        return sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0

    @property
    def prunes(self) -> bool:
        """Whether configurations are pruned: successive halving needs one objective."""
        return self.pruning and self.objective == "h"

    def waits(self, *, alone: bool) -> bool:
        """Return whether packs wait at rungs; `alone`: whether one machine is all there is."""
        return alone if self.repeatable == "auto" else self.repeatable == "yes"


@dataclass(frozen=True, kw_only=True)
@with_help
class SelectionOptions:
    """What selection may look at"""

    test_share: float | Literal["split"] | None = None
    """Share of the target images, such as 0.3, that neither training nor selection sees; split: those that the
    benchmark itself calls test. They are scored as a second column, H new: the other numbers of methods that see the
    target say how well those very images are labelled."""
    select: Literal["pseudo-unseen", "oracle"] = "pseudo-unseen"
    """pseudo-unseen: folds of seen classes play the unseen ones, no target label is read.
    oracle: looks at the test labels; an upper bound, marked in every output, never a result."""
    criterion: Literal["consensus", "agreement", "h*mi", "h", "mi"] | None = None
    """What ranks configurations. consensus: agreement on unlabelled target images with what all trained configurations
    predict together (while the search runs: with training-free methods); agreement: with training-free methods only;
    h: H on the pseudo-unseen folds; mi: mutual information of target predictions; h*mi: mean of both. The default is
    consensus where the task lets a method see target images, else h."""
    folds: int = 3
    """Folds of the seen classes."""
    seeds: int = 3
    """Seeds of every refit; the leaderboard shows mean and standard deviation."""
    top: int = 5
    """Configurations that are refitted and scored on the test split."""
    winner: Path | None = None
    """Ablations only: study whose selected configuration is taken apart; the space's defaults otherwise."""

    re_search: bool = False
    """Ablations only: search the knobs that a variant leaves open again, --configs for each, instead of keeping the
    winner's values."""

    def __post_init__(self) -> None:
        _check_types(self)
        share = self.test_share
        inside = share is None or share == "split" or 0 < share < 1
        _check(share, "between 0 and 1, or split", option="test_share", holds=inside)
        _check(self.winner, "left out with --re-search", option="winner", holds=not (self.re_search and self.winner))
        _check(self.folds, "at least 2", option="folds", holds=self.folds >= 2)
        _check(self.seeds, "at least 1", option="seeds", holds=self.seeds >= 1)
        _check(self.top, "at least 1", option="top", holds=self.top >= 1)


@dataclass(frozen=True, kw_only=True)
@with_help
class ResourceOptions:
    """Where it runs"""

    address: str | None = None
    """Ray cluster: its address, or auto; a local Ray on this machine's cores by default."""
    pack: int | Literal["auto"] = "auto"
    """Configurations that one actor trains side by side; they share their static knobs. auto: on up to eight actors on
    CPUs one, so that each draws static knobs of its own; with GPUs more, which fill them."""
    cpus_per_pack: float = 1.0
    """CPUs of a pack's actor, and its number of threads."""
    gpus_per_pack: float | Literal["auto"] = "auto"
    """GPUs of a pack's actor; fractions share a GPU. auto: where the nodes have GPUs, the share that their memory and
    the number of packs allow, 8 packs on a GPU at most; else none. Where an autoscaler must start the GPUs, give a
    number."""
    workers_per_pack: int = 1
    """Workers that train a pack together, for models that need several GPUs: each takes --cpus-per-pack and
    --gpus-per-pack, and its share of every batch, a multiple of their number. Without checkpoints and --refill."""
    max_packs: int | Literal["auto"] = "auto"
    """Packs that run at once. auto: as many as the nodes hold, those that join later included; an autoscaler is asked
    for nodes until every actor trains four packs of a search, so that the sampler can learn, and for 64 packs at most.
    A number: so many are asked for, and no more are used."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of matrix products while configurations are searched (refits are float32). In bfloat16 a lane's metrics depend a
    little on its neighbours. auto: bfloat16, if a step of a pack is at least 1.3 times as fast and eight
    configurations rank alike after an epoch; decided where packs run, once for a search, and said."""
    cuda_graphs: bool = False
    """Replay each training step of a search as one CUDA graph, where Python is slower than the GPU. Not tried on a GPU
    yet."""
    refit_workers: int | Literal["auto"] = "auto"
    """Workers of the refits' Ray Train run, which share every batch: a divisor of the batch size. Each takes the CPUs
    of a node, and a whole GPU if they are several. 0: plain Ray tasks, some 20 s faster to start, but without
    checkpoints. auto: 0 where the refits are little work, else 1."""
    checkpoint_every: int = 1
    """Epochs between the checkpoints of a pack or a refit, which goes on from its last one when a worker, a node or the
    driver dies. They are also ten seconds apart, and more where writing one would cost over 2 % of the time. Packs have
    none with --refill, nor once they had to be halved for memory."""
    dashboard: bool = False
    """Serve Ray's dashboard of a study on this machine, for this machine only, and print its address; needs the
    extra dashboard. A cluster has one anyway."""
    price: float | None = None
    """What the machine or cluster costs per hour, in any currency: the report then says what the study cost."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check(self.pack, "at least 1, or auto", option="pack", holds=self.pack == "auto" or self.pack >= 1)
        _check(self.cpus_per_pack, "more than 0", option="cpus_per_pack", holds=self.cpus_per_pack > 0)
        _check(self.price, "0 or more", option="price", holds=self.price is None or self.price >= 0)
        _check(
            self.gpus_per_pack,
            "0 or more, or auto",
            option="gpus_per_pack",
            holds=self.gpus_per_pack == "auto" or self.gpus_per_pack >= 0,
        )
        _check(self.workers_per_pack, "at least 1", option="workers_per_pack", holds=self.workers_per_pack >= 1)
        _check(
            self.max_packs,
            "at least 1, or auto",
            option="max_packs",
            holds=self.max_packs == "auto" or self.max_packs >= 1,
        )
        _check(
            self.refit_workers,
            "0 or more, or auto",
            option="refit_workers",
            holds=self.refit_workers == "auto" or self.refit_workers >= 0,
        )
        _check(self.checkpoint_every, "at least 1", option="checkpoint_every", holds=self.checkpoint_every >= 1)

    @property
    def gpus(self) -> float:
        """GPUs of a pack's actor; none while auto is not decided (`study.pipeline.plan.choose_gpus`)."""
        return 0.0 if self.gpus_per_pack == "auto" else self.gpus_per_pack

    @property
    def workers_of_refits(self) -> int:
        """Workers of the refits' Ray Train run; one while auto is not decided (`study.pipeline.plan.make_plan`)."""
        return 1 if self.refit_workers == "auto" else self.refit_workers


@dataclass(frozen=True, kw_only=True)
@with_help
class OutputOptions:
    """What is kept"""

    storage: str = field(default_factory=lambda: os.environ.get("ZEROSWEEP_STORAGE", "results"))
    """Folder or URI (s3://...) under which every study gets a folder; $ZEROSWEEP_STORAGE, if set, is the default."""
    name: str | None = None
    """Name of the study's folder; <space>-<benchmark>-<time> by default."""
    resume: bool = False
    """Continue the study of that name: finished configurations are kept, interrupted ones trained again. A study that
    is not there yet is started."""
    finish_on_interrupt: bool = False
    """When the search is interrupted (Ctrl-C, SIGTERM), refit and score the configurations that are finished before the
    end, instead of ending within seconds; every file says that the study was interrupted."""
    ledger: str | None = None
    """Database that keeps the search as it runs, postgresql://USER@HOST/DATABASE or sqlite:///FILE (no password: libpq
    finds it in ~/.pgpass or PGPASSWORD); by default the file study.journal, which is otherwise written at the end."""
    ledger_timeout: float = 300.0
    """Seconds after which a database that has gone away while the study runs is given up."""
    prep_only: bool = False
    """Prepare the feature cache and stop."""
    print_space: bool = False
    """Print the search space as YAML, a file to change and to give as --space, and stop."""
    check_method: bool = False
    """Check the method of --space against the laws that packs rest on, say what is wrong, and stop."""
    dry_run: bool = False
    """Print the plan (packs, lanes, resources, estimated time) and stop."""
    log: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Also write runs of this tracker, one for each finished configuration and one for the result, with the report and
    the selected adapter. Files of tensorboard grow while the search runs, the others are written when it ends."""
    push: str | None = None
    """Upload the selected adapter to this repository of the Hugging Face hub, USER/NAME, when the study is done. A new
    repository is private."""
    quiet: bool = False
    """Say nothing but errors; the files say it all."""
    cache: str = ".cache"
    """Folder or URI (s3://...) of feature caches."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check(self.ledger_timeout, "0 or more", option="ledger_timeout", holds=self.ledger_timeout >= 0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search the hyperparameters of a zero-shot adapter of CLIP without ever looking at unseen labels.

    With no options: SRE-CLIP on the embedded benchmark, on this machine, in a few minutes.
    """

    study: OmitArgPrefixes[StudyOptions] = field(default_factory=StudyOptions)
    search: OmitArgPrefixes[SearchOptions] = field(default_factory=SearchOptions)
    selection: OmitArgPrefixes[SelectionOptions] = field(default_factory=SelectionOptions)
    resources: OmitArgPrefixes[ResourceOptions] = field(default_factory=ResourceOptions)
    output: OmitArgPrefixes[OutputOptions] = field(default_factory=OutputOptions)
