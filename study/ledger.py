"""The ledger: an Optuna study in a journal file. It alone says which configurations were asked for and what became of
them; Tune's own snapshots are never read.

A *configuration* is a parameter assignment with an index and a seed. Normally it is one Optuna trial; when the pack or
the driver that trains it dies, that trial is FAILed with a reason and a new trial takes the configuration over.
"""

import fcntl
import json
import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from data_prep.errors import UserError
from search_spaces import Space, Value

Objective = Literal["h", "seen,unseen"]
State = Literal["complete", "pruned", "failed"]

OBJECTIVES: dict[str, tuple[str, ...]] = {"h": ("score",), "seen,unseen": ("val_seen", "val_unseen")}
"""What Optuna maximises: the result's score, or two of its metrics."""

JOURNAL = "study.journal"
VERSIONS = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "optuna")}

# user attributes of trials
INDEX, SEED, RESULT, REASON, RETRY_OF = "config_index", "seed", "result", "reason", "retry_of"
DEATHS = "deaths"  # packs that have died under the configuration
LOOKED_AT = ("val_h_mean", "val_seen", "val_unseen")  # metrics of the result, attributes of their own for dashboards
REQUEUED = "requeued"  # the trial is void, another one takes its configuration over, with this number of deaths

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A configuration that was asked for, and the trial that stands for it now."""

    number: int
    """Number of the trial."""
    trial_id: int
    """The storage's id of the trial."""
    index: int
    """0, 1, 2, ... in the order asked; kept when the configuration is trained again."""
    seed: int
    """Seed of its training; kept as well."""
    params: dict[str, Value]
    """Active knobs and their values."""
    deaths: int = 0
    """Packs that have died under it."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A finished configuration, as the ledger has it."""

    index: int
    """0, 1, 2, ... in the order asked."""
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


class Ledger:
    """One study's journal."""

    def __init__(self, folder: Path, lock: IO[str] | None = None) -> None:
        self.folder, self._lock = folder, lock
        self.storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self.study: optuna.Study

    @property
    def identity(self) -> dict[str, Any]:
        """What the study was created with."""
        return self.study.user_attrs["identity"]

    @property
    def objective(self) -> Objective:
        return self.identity["objective"]

    # --- reading ------------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials, void ones too; not copied: do not change them."""
        return self.study.get_trials(deepcopy=False)

    def finished(self) -> list[Configuration]:
        """Finished configurations in the order asked, each exactly once."""
        identity = self.identity
        front = {t.number for t in self.study.best_trials} if identity["objective"] == "seen,unseen" else set()
        done = [
            _configuration(t, identity["space"], t.number in front)
            for t in self.trials()
            if t.state.is_finished() and INDEX in t.user_attrs and REQUEUED not in t.user_attrs
        ]
        return sorted(done, key=lambda c: c.index)

    def best(self, n: int) -> list[Configuration]:
        """The n completed configurations with the highest score; in a two-objective study the Pareto front first."""
        complete = [c for c in self.finished() if c.state == "complete"]
        return sorted(complete, key=lambda c: (not c.pareto, -(c.score or 0.0), c.index))[:n]

    # --- writing ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        space: Space,
        sampler: BaseSampler,
        *,
        index: int,
        seed: int,
        given: Mapping[str, Value] | None = None,
        replaces: Lane | None = None,
    ) -> Lane:
        """A new trial: `given` parameters, or those the sampler draws. `replaces`: the lane whose place it takes."""
        attrs: dict[str, int] = {INDEX: index, SEED: seed}
        if replaces:
            attrs |= {RETRY_OF: replaces.number, DEATHS: replaces.deaths}
        if given is not None:  # one journal line: if the driver dies now, the configuration is already complete
            self.study.enqueue_trial(dict(given), user_attrs=attrs)
        self.study.sampler = sampler
        trial = self.study.ask()
        params = suggest_params(trial, space)
        if given is None:  # last of all: a trial with an index has all its parameters
            trial.set_user_attr(SEED, seed)
            trial.set_user_attr(INDEX, index)
        return Lane(
            number=trial.number,
            trial_id=trial._trial_id,
            index=index,
            seed=seed,
            params=params,
            deaths=replaces.deaths if replaces else 0,
        )

    def tell(self, lane: Lane, result: Mapping[str, Any]) -> State | None:
        """Finish a lane's trial with its result (a `LaneResult` as a dict); None if it had been told before.

        PRUNED trials keep their curve as intermediate values; Optuna allows none in two-objective studies, there (and
        for every trial) the curve is part of the user attribute `result`.
        """
        if self.storage.get_trial(lane.trial_id).state.is_finished():
            return None
        state: State = result["state"]
        values, error = None, result["error"]
        if state == "complete":
            named = {"score": result["score"], **result["metrics"]}
            values = [float(named[name]) for name in OBJECTIVES[self.objective]]
            if not all(map(math.isfinite, values)):
                state, values, error = "failed", None, f"objective was not finite: {values}"
        if state == "failed":
            self.storage.set_trial_user_attr(lane.trial_id, REASON, error)
        elif self.objective == "h":
            for epoch, score in result["curve"]:
                self.storage.set_trial_intermediate_value(lane.trial_id, epoch, score)
        shown = {k: v for k, v in result["metrics"].items() if k in LOOKED_AT}
        for name, value in {**shown, "epochs": result["epochs"]}.items():
            self.storage.set_trial_user_attr(lane.trial_id, name, value)
        kept = {k: result[k] for k in ("score", "metrics", "curve", "epochs", "train_seconds")}
        self.storage.set_trial_user_attr(lane.trial_id, RESULT, {**kept, "versions": VERSIONS})
        optuna_state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[state]
        self.study.tell(lane.number, values, optuna_state, skip_if_finished=True)
        return state

    def fail(self, trial_id: int, reason: str, *, requeue_with: int | None) -> None:
        """Mark a trial that will not finish; unless None, `requeue_with` deaths its configuration is trained again."""
        self.storage.set_trial_user_attr(trial_id, REASON, reason)
        if requeue_with is not None:
            self.storage.set_trial_user_attr(trial_id, REQUEUED, requeue_with)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def recover(self) -> list[Lane]:
        """Void the trials that a dead driver left unfinished; all configurations that nobody has taken over."""
        trials = self.trials()
        taken_over = {t.user_attrs.get(RETRY_OF) for t in trials}
        orphans = []
        for trial in trials:
            attrs, complete = trial.user_attrs, INDEX in trial.user_attrs
            deaths = attrs.get(REQUEUED, attrs.get(DEATHS, 0))  # dying with the driver is not the configuration's fault
            if not trial.state.is_finished():
                self.fail(trial._trial_id, "its driver died", requeue_with=deaths if complete else None)
            elif REQUEUED not in attrs or trial.number in taken_over:
                continue
            if complete:
                orphans.append(
                    Lane(
                        number=trial.number,
                        trial_id=trial._trial_id,
                        index=attrs[INDEX],
                        seed=attrs[SEED],
                        params=_params(trial),
                        deaths=deaths,
                    )
                )
        return orphans

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let other processes have the study."""
        if self._lock:
            self._lock.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its searcher: a copy reads the same journal, without the lock."""
        return read_ledger, (self.folder,)


def open_ledger(
    folder: Path, *, space: Space, objective: Objective = "h", identity: Mapping[str, Any], resume: bool = False
) -> Ledger:
    """Create a study in `folder`, or with `resume` continue the one that is there; hold it until it is closed.

    `identity`: every option that makes results comparable (benchmark, clip, fingerprint, select, folds, epochs, ...)
    with JSON values; a study is only resumed with the same ones. Raises `UserError`.
    """
    journal = folder / JOURNAL
    if resume and not journal.exists():
        raise UserError(f"--resume needs a study to continue, there is none in {folder}")
    if not resume and journal.exists() and journal.stat().st_size:
        raise UserError(f"--name must be new or --resume given: {folder} already holds a study")
    knobs = {k.name: [k.scope, k.low, k.high, k.log, k.choices, k.when] for k in space.knobs}
    mine = json.loads(json.dumps({"space": space.name, "objective": objective, **identity, "knobs": knobs}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        _mend(journal)
        ledger = Ledger(folder, lock)
    except OSError as error:
        raise UserError(f"--storage must be a writable folder, got {folder}: {error.strerror or error}") from error
    if optuna.get_all_study_names(ledger.storage):
        ledger.study = optuna.load_study(study_name=None, storage=ledger.storage)
    else:
        ledger.study = optuna.create_study(
            study_name=folder.name, storage=ledger.storage, directions=["maximize"] * len(OBJECTIVES[objective])
        )
    if "identity" not in ledger.study.user_attrs:  # new, or its driver died right here
        ledger.study.set_user_attr("identity", mine)
    try:
        _check_identity(folder, ledger.identity, mine)
    except UserError:
        ledger.close()
        raise
    return ledger


def read_ledger(folder: Path) -> Ledger:
    """An existing study without holding it, for looking only."""
    ledger = Ledger(folder)
    ledger.study = optuna.load_study(study_name=None, storage=ledger.storage)
    return ledger


def suggest_params(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """Values of all active knobs; a conditional knob is asked for only where its condition holds."""
    params: dict[str, Value] = {}
    for knob in space.knobs:
        if knob not in space.active(params):
            continue
        if knob.choices is not None:
            params[knob.name] = cast(Value, trial.suggest_categorical(knob.name, knob.choices))
            continue
        assert knob.low is not None and knob.high is not None  # Knob sees to it
        if knob.is_int:
            params[knob.name] = trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log)
        else:
            params[knob.name] = trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)
    return params


def _params(trial: FrozenTrial) -> dict[str, Value]:
    """A trial's parameters, with those that were given to it and not yet drawn when its driver died."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _configuration(trial: FrozenTrial, space: str, pareto: bool) -> Configuration:
    attrs, result = trial.user_attrs, trial.user_attrs.get(RESULT, {})
    states: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return Configuration(
        index=attrs[INDEX],
        number=trial.number,
        config_id=f"{space}-{attrs[INDEX]:04d}",
        params=_params(trial),
        seed=attrs[SEED],
        state=states.get(trial.state, "failed"),
        score=result.get("score"),
        metrics=result.get("metrics", {}),
        curve=[(epoch, score) for epoch, score in result.get("curve", [])],
        epochs=result.get("epochs", 0),
        train_seconds=result.get("train_seconds", 0.0),
        reason=attrs.get(REASON, ""),
        pareto=pareto,
    )


def _check_identity(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    differing = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
    if differing == ["knobs"]:
        raise UserError(f"--resume needs the knobs of space {mine['space']} as they were when {folder} was begun")
    if differing:
        shown = "; ".join(f"{k} was {theirs.get(k)!r}, now {mine.get(k)!r}" for k in differing if k != "knobs")
        raise UserError(f"--resume must repeat the study's options, {folder} holds another study: {shown}")


def _lock(folder: Path) -> IO[str]:
    """Hold the study for this process; the kernel lets go when the process dies, however it dies."""
    lock = open(folder / "driver.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"--name must be a study that nobody runs: another process holds {folder}") from None
    return lock


def _mend(journal: Path) -> None:
    """Undo what a killed driver may have left: Optuna's lock file, and a torn last line, which Optuna cannot read."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    text = journal.read_bytes()
    if text and not text.endswith(b"\n"):
        with journal.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)
