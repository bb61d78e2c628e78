"""What travels between a search, its ledger and whoever trains its configurations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from data_prep.errors import UserError
from search_spaces import Space, Value
from study.protocol.votes import Votes

Objective = Literal["h", "seen,unseen"]

State = Literal["complete", "pruned", "failed"]

SamplerName = Literal["tpe", "random", "nsga2"]

TRAINING = 5
"""Raised whenever the same configuration trains or is scored otherwise than before: a search must not mix the two.

4 drew PVA's noise from a stream of each lane.
3 had all class texts in SRE-CLIP's L_align at each step, also of more than 512 classes.
2 had no votes, and scored by H + 0.15 mutual information.
Ledgers without the number are of 1: a lane's epoch was then one pass over the source images of all folds, coupled swept
knobs were medians over the folds, and Tip-Adapter-F trained with the values swept last.
"""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A configuration that is to be trained, and the trial that stands for it now."""

    number: int
    """Number of the trial."""
    trial_id: int
    """The storage's id of the trial."""
    index: int
    """0, 1, 2, ... in the order of the draws; the same when the configuration is trained again."""
    seed: int
    """Seed of its training; the same when the configuration is trained again."""
    params: dict[str, Value]
    """Active knobs and their values."""
    deaths: int = 0
    """Packs that have died while they trained the configuration."""


class Outcome(Protocol):
    """What became of one configuration's training; `training.scoring.LaneResult` is one."""

    @property
    def state(self) -> State:
        """Trained to the end, stopped at a rung, or diverged."""

    @property
    def score(self) -> float | None:
        """What selection maximises, at the last epoch trained; None if failed."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Selection metrics at the last epoch trained."""

    @property
    def curve(self) -> Sequence[tuple[int, float]]:
        """(epoch, score) at every rung and at the end."""

    @property
    def epochs(self) -> int:
        """Epochs trained."""

    @property
    def train_seconds(self) -> float:
        """The configuration's share of the pack's time."""

    @property
    def error(self) -> str:
        """Why it failed."""

    @property
    def votes(self) -> Votes | None:
        """What it predicts for target images, if a consensus is going to be asked for."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack tells its search."""

    ended: Mapping[int, Outcome] = field(default_factory=dict)
    """Outcomes of the configurations that have ended, by the number of their trial."""
    moved: bool = False
    """Whether the pack has left its node, which is being drained; its configurations are to be trained elsewhere."""
    crash: str = ""
    """The error that ended the pack, "" if none did."""
    over: bool = False
    """Whether the pack has ended; its actor asks for another."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A finished configuration, as the ledger has it."""

    index: int
    """0, 1, 2, ... in the order of the draws."""
    number: int
    """Number of the Optuna trial that finished it."""
    config_id: str
    """`<space>-<index>`: its name in every output."""
    params: dict[str, Value]
    """Active knobs and their values."""
    seed: int
    """Seed it was trained with."""
    state: State
    """What became of it."""
    score: float | None
    """What selection maximises, at its last epoch; None if failed."""
    metrics: dict[str, float]
    """Selection metrics at its last epoch."""
    curve: list[tuple[int, float]]
    """(epoch, score) at every rung and at the end."""
    epochs: int
    """Epochs trained."""
    train_seconds: float
    """Its share of its pack's time."""
    reason: str
    """Why it failed."""
    pareto: bool
    """On the Pareto front of a two-objective study."""


@dataclass(frozen=True, kw_only=True)
class KnobRange:
    """The range of one knob, as it was when the search began."""

    scope: str
    """Whether lanes of one pack may differ in it: lane or static."""
    low: float | None
    """Smallest value of a numeric knob."""
    high: float | None
    """Largest value of a numeric knob."""
    log: bool
    """Whether it is drawn on a logarithmic scale."""
    choices: tuple[Value, ...] | None
    """Values of a categorical knob."""
    when: tuple[str, tuple[Value, ...]] | None = None
    """Active only while the named knob has one of these values."""


@dataclass(frozen=True, kw_only=True)
class SearchedSpace:
    """What a ledger says of its search."""

    name: str
    """Name of the search space."""
    epochs: int
    """Epochs of a configuration that is not pruned."""
    sampler: str
    """What drew the configurations."""
    knobs: Mapping[str, KnobRange]
    """Range of each knob."""

    @classmethod
    def from_json(cls, identity: Mapping[str, Any]) -> "SearchedSpace":
        """Read the identity of a ledger (see `StudyIdentity.ledger_json`), also of older versions."""
        knobs = {
            name: KnobRange(
                scope=scope,
                low=low,
                high=high,
                log=log,
                choices=None if choices is None else tuple(choices),
                when=(rest[0][0], tuple(rest[0][1])) if rest and rest[0] else None,
            )
            for name, (scope, low, high, log, choices, *rest) in identity.get("knobs", {}).items()
        }
        return cls(
            name=identity["space"], epochs=identity.get("epochs", 0), sampler=identity.get("sampler", ""), knobs=knobs
        )


@dataclass(frozen=True, kw_only=True)
class StudyIdentity:
    """The options that make results comparable: a study and each of its ledgers are only resumed with the same ones."""

    space: str
    """Name of the study's search space or ablation."""
    benchmark: str
    """Benchmark, as the user names it; of a ledger, as its features do."""
    clip: str | None
    """CLIP checkpoint, None for the benchmark's own; of a ledger, as its features name it."""
    rotation: int | str
    """Rotation of the unseen classes, or "all"; of a ledger, its own."""
    templates: tuple[str, ...]
    """Prompts, empty for the benchmark's own."""
    epochs: int
    """Epochs of a configuration that is not pruned."""
    seed: int
    """Seed of everything."""
    objective: Objective
    """What is maximised."""
    select: str
    """What selection may look at: pseudo-unseen or oracle."""
    folds: int
    """Folds of the seen classes."""
    ledger: str | None
    """Database that has the ledgers, None for journals."""
    knobs: tuple[str, ...] = ()
    """What is searched and fixed of the study's own method, as settings."""
    test_share: float | str | None = None
    """Share of the target images that the study does not see."""
    enqueue: tuple[str, ...] = ()
    """Studies and configurations whose knobs are tried first."""
    fingerprint: str | None = None
    """Fingerprint of a ledger's features; this field and those below are filled by `of_search`."""
    pruning: bool | None = None
    """Whether a ledger's configurations are pruned."""
    sampler: SamplerName | None = None
    """What draws a ledger's configurations."""
    criterion: str | None = None
    """What scores a ledger's configurations."""
    precision: str | None = None
    """Precision of the matrix products in which a ledger's configurations are trained."""

    def of_search(
        self,
        *,
        benchmark: str,
        clip: str,
        fingerprint: str,
        rotation: int,
        pruning: bool,
        sampler: SamplerName,
        criterion: str,
        precision: str,
    ) -> "StudyIdentity":
        """Return the identity of one of the study's ledgers, whose features are known by now."""
        return replace(
            self,
            benchmark=benchmark,
            clip=clip,
            fingerprint=fingerprint,
            rotation=rotation,
            pruning=pruning,
            sampler=sampler,
            criterion=criterion,
            precision=precision,
        )

    def study_json(self) -> dict[str, Any]:
        """Return the content of study.json."""
        names = ("space", "benchmark", "clip", "rotation", "templates", "epochs", "seed", "objective", "select")
        return self._json(*names, "folds", "ledger", "knobs", "enqueue", "test_share")

    def ledger_json(self, space: Space) -> dict[str, Any]:
        """Return what the ledger of a space says of itself."""
        names = ("objective", "benchmark", "clip", "fingerprint", "rotation", "epochs", "pruning", "sampler", "seed")
        share = () if self.test_share is None else ("test_share",)  # ledgers of older versions have none
        fields = self._json(*names, "select", "folds", "criterion", "precision", *share)
        knobs = {k.name: [k.scope, k.low, k.high, k.log, k.choices, k.when] for k in space.knobs}
        return {"space": space.name, **fields, "knobs": json.loads(json.dumps(knobs)), "training": TRAINING}

    def _json(self, *names: str) -> dict[str, Any]:
        """Return fields as they are when they are read again."""
        return json.loads(json.dumps({name: vars(self)[name] for name in names}))

    def require(self, theirs: Mapping[str, Any], where: str) -> None:
        """Refuse to resume the study at `where`, whose study.json says `theirs`, unless it is this one.

        Raises `UserError`.
        """
        mine = self.study_json()
        older = {"knobs": mine["knobs"], "enqueue": [], "test_share": None}  # which older versions did not write
        require_same({**older, **theirs}, mine, where)


def require_same(theirs: Mapping[str, Any], mine: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with what lies at `where` unless it says of itself what the options say now.

    `theirs`, `mine`: JSON of two identities. Raises `UserError`.
    """
    differing = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
    if "training" in differing:
        rule = (
            f"cannot mix results: this version trains or scores configurations otherwise than that of {where}. "
            "Start the study anew with another --name, or resume it with that version"
        )
        raise UserError(rule, option="resume")
    if differing == ["knobs"] and isinstance(mine["knobs"], list):
        was, now = (sorted({*a["knobs"]} - {*b["knobs"]}) for a, b in ((theirs, mine), (mine, theirs)))
        rule = f"must search what {where} searches: {', '.join(was) or 'nothing'}; now {', '.join(now) or 'nothing'}"
        raise UserError(rule, option="set")
    if differing == ["knobs"]:
        rule = f"needs the knobs of space {mine['space']} as they were when {where} was begun"
        raise UserError(rule, option="resume")
    if differing:
        shown = "; ".join(f"{k} was {theirs.get(k)!r}, now {mine.get(k)!r}" for k in differing if k != "knobs")
        raise UserError(f"must repeat the study's options, {where} holds another study: {shown}", option="resume")
