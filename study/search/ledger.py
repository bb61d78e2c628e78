"""The ledger: an Optuna study in a journal file or a database. It alone says which configurations were drawn and what
became of them; Tune's own snapshots are never read.

A *configuration* is a parameter assignment with an index and a seed. Normally it is one Optuna trial; when the pack or
the driver that trains it dies, that trial is FAILed with a reason and a new trial takes the configuration over.
"""

import functools
import math
import platform
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from data_prep.errors import UserError
from search_spaces import Knob, Space, Value
from study.search.journal import Journal, hold_file, mend
from study.search.records import Configuration, Lane, Objective, Outcome, State, StudyIdentity, require_same

if TYPE_CHECKING:
    from study.search.database import Database

OBJECTIVES: dict[str, tuple[str, ...]] = {"h": ("score",), "seen,unseen": ("val_seen", "val_unseen")}
"""What Optuna maximises: the result's score, or two of its metrics."""

JOURNAL = "study.journal"
"""Name of the journal in a study's folder."""

VERSIONS = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "optuna")}

# user attributes of trials
INDEX, SEED, RESULT, REASON, RETRY_OF = "config_index", "seed", "result", "reason", "retry_of"
DEATHS = "deaths"  # packs that have died while they trained the configuration
REQUEUED = "requeued"  # the trial is void, another one takes its configuration over, with this number of deaths

DASHBOARD_METRICS = ("val_h_mean", "val_seen", "val_unseen")
"""Metrics of the result that are attributes of their own as well, where Optuna's dashboard shows them."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class Ledger:
    """One study's journal, or its part of a database."""

    def __init__(
        self, folder: Path, *, url: str | None = None, name: str | None = None, patience_s: float = 0.0
    ) -> None:
        """`folder`: of the study; `url`: of the database, where the study is called `name`.

        `patience_s`: seconds after which a database that is away is given up.
        """
        self.folder, self.url, self.name = folder, url, name or folder.name
        self.locks = ExitStack()
        """Locks that keep other processes from the study."""
        self._journal: Journal | None = None
        self._database: Database | None = None
        self._patience_s = patience_s
        self.storage: BaseStorage
        self.study: optuna.Study
        self._open()

    def _open(self) -> None:
        """Open the file or the database."""
        if self.url is None:
            self._journal = Journal(self.folder / JOURNAL)
            self.storage = JournalStorage(self._journal)
        else:
            from study.search.database import connect  # half a second, which a journal saves

            self._database = connect(self.url, patience_s=self._patience_s)
            self.storage = optuna.storages.get_storage(self._database)  # finished trials are read once

    @functools.cached_property  # Optuna copies a study's attributes whenever they are asked for
    def identity(self) -> dict[str, Any]:
        """The identity with which the study was created, as `StudyIdentity.ledger_json` gives it."""
        return self.study.user_attrs["identity"]

    @property
    def objective(self) -> Objective:
        """What the study maximises."""
        return self.identity["objective"]

    # --- reading ------------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, void ones too; not copied: do not change them."""
        return self.study.get_trials(deepcopy=False)

    def finished(self) -> list[Configuration]:
        """Return the finished configurations in the order of their draws, each exactly once."""
        identity = self.identity
        front = {t.number for t in self.study.best_trials} if identity["objective"] == "seen,unseen" else set()
        done = [
            _configuration(t, identity["space"], t.number in front)
            for t in self.trials()
            if t.state.is_finished() and INDEX in t.user_attrs and REQUEUED not in t.user_attrs
        ]
        return sorted(done, key=lambda c: c.index)

    def best(self, n: int) -> list[Configuration]:
        """Return the n completed configurations with the highest score; of two objectives the Pareto front first."""
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
        """Add a trial with `given` or drawn parameters, and return its lane.

        `replaces`: the lane whose configuration the trial takes over.
        """
        attrs: dict[str, int] = {SEED: seed}
        if replaces:
            attrs |= {RETRY_OF: replaces.number, DEATHS: replaces.deaths}
        if given is not None:
            attrs[INDEX] = index
        # not `study.ask`, which looks through all trials for enqueued ones
        new = optuna.create_trial(
            state=TrialState.RUNNING,
            params=dict(given or {}),
            distributions={k.name: _distribution(k) for k in space.knobs if given and k.name in given},
            user_attrs=attrs,
        )
        self.study.sampler = sampler
        with self.together():
            trial_id = self.storage.create_new_trial(self.study._study_id, new)
            trial = optuna.Trial(self.study, trial_id)
            params = dict(given) if given is not None else suggest_params(trial, space)
            if given is None:  # last of all: a trial with an index has all its parameters
                trial.set_user_attr(INDEX, index)
        return Lane(
            number=trial.number,
            trial_id=trial._trial_id,
            index=index,
            seed=seed,
            params=params,
            deaths=replaces.deaths if replaces else 0,
        )

    def tell(self, lane: Lane, outcome: Outcome) -> State | None:
        """Finish a lane's trial with its outcome; return its state, None if the trial had been finished before.

        PRUNED trials keep their curve as intermediate values; Optuna allows none in two-objective studies, there (and
        for every trial) the curve is part of the user attribute `result`.
        """
        if self.storage.get_trial(lane.trial_id).state.is_finished():
            return None
        state, values, error = outcome.state, None, outcome.error
        if state == "complete":
            named = {"score": outcome.score, **outcome.metrics}
            values = [float(cast(float, named[name])) for name in OBJECTIVES[self.objective]]
            if not all(map(math.isfinite, values)):
                state, values, error = "failed", None, f"objective was not finite: {values}"
        shown = {k: v for k, v in outcome.metrics.items() if k in DASHBOARD_METRICS}
        result = {
            "score": outcome.score,
            "metrics": dict(outcome.metrics),
            "curve": list(outcome.curve),
            "epochs": outcome.epochs,
            "train_seconds": outcome.train_seconds,
            "versions": VERSIONS,
        }
        optuna_state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[state]
        with self.together():
            if state == "failed":
                self.storage.set_trial_user_attr(lane.trial_id, REASON, error)
            elif self.objective == "h":
                for epoch, score in outcome.curve:
                    self.storage.set_trial_intermediate_value(lane.trial_id, epoch, score)
            for name, value in {**shown, "epochs": outcome.epochs}.items():
                self.storage.set_trial_user_attr(lane.trial_id, name, value)
            self.storage.set_trial_user_attr(lane.trial_id, RESULT, result)
            self.study.tell(lane.number, values, optuna_state, skip_if_finished=True)
        return state

    def fail(self, trial_id: int, reason: str, *, requeue_with: int | None) -> None:
        """Fail a trial; where `requeue_with` is a number of deaths, its configuration is going to be trained again."""
        with self.together():
            self.storage.set_trial_user_attr(trial_id, REASON, reason)
            if requeue_with is not None:
                self.storage.set_trial_user_attr(trial_id, REQUEUED, requeue_with)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def void_running(self, reason: str) -> list[Lane]:
        """Fail the trials in training; return the configurations that no trial took over.

        The ledger is opened anew: an interrupt may have broken off a write.
        """
        if self.url is None:
            mend(self.folder / JOURNAL)
        self._open()
        self.load()
        return self.recover(reason)

    def recover(self, reason: str = "its driver died") -> list[Lane]:
        """Fail the trials that a driver left unfinished; return the configurations that no trial took over."""
        trials = self.trials()
        taken_over = {t.user_attrs.get(RETRY_OF) for t in trials}
        orphans = []
        for trial in trials:
            attrs, complete = trial.user_attrs, INDEX in trial.user_attrs
            deaths = attrs.get(REQUEUED, attrs.get(DEATHS, 0))  # dying with the driver is not the configuration's fault
            if not trial.state.is_finished():
                self.fail(trial._trial_id, reason, requeue_with=deaths if complete else None)
            elif REQUEUED not in attrs or trial.number in taken_over:
                continue
            if complete:
                orphans.append(
                    Lane(
                        number=trial.number,
                        trial_id=trial._trial_id,
                        index=attrs[INDEX],
                        seed=attrs[SEED],
                        params=trial.params,
                        deaths=deaths,
                    )
                )
        return orphans

    def decided(self, name: str, decide: Callable[[], str]) -> str:
        """Return what was decided when the search began; decide it now where it begins.

        What depends on the machine and the hour must not be decided otherwise when the search is resumed.
        """
        found = self.study.user_attrs.get(name)
        if found is None:
            found = decide()
            self.study.set_user_attr(name, found)
        return found

    def together(self) -> AbstractContextManager[None]:
        """Write everything that is written meanwhile in one piece: a journal's every write waits for the disk."""
        return self._journal.together() if self._journal else nullcontext()

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def shown(self) -> str:
        """Where the study is, for messages."""
        return f"{self.url}, {self.name}" if self.url else str(self.folder)

    @property
    def begun(self) -> bool:
        """Whether the study is there; a journal has one study only, a database has others' too."""
        names = optuna.get_all_study_names(self.storage)
        return self.name in names if self.url else bool(names)

    def load(self) -> None:
        """Load the study that is there."""
        self.study = optuna.load_study(study_name=self.name if self.url else None, storage=self.storage)

    def hold(self) -> AbstractContextManager[None]:
        """Hold the study in its database, if it has one, for this process. Raises `UserError`."""
        return self._database.hold(self.name) if self._database else nullcontext()

    def close(self) -> None:
        """Let other processes have the study."""
        self.locks.close()

    def write_journal(self) -> Path:
        """Write the study as a journal into its folder, for readers without the database; return its path."""
        part = self.folder / f"{JOURNAL}.part"
        part.unlink(missing_ok=True)
        journal = Journal(part)
        copy = JournalStorage(journal)
        with journal.together():
            optuna.copy_study(from_study_name=self.name, from_storage=self.storage, to_storage=copy)
        return part.replace(self.folder / JOURNAL)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its searcher: a copy reads the same study, without the lock."""
        return functools.partial(read_ledger, url=self.url, name=self.name), (self.folder,)


def open_ledger(
    folder: Path,
    *,
    space: Space,
    identity: StudyIdentity,
    resume: bool = False,
    url: str | None = None,
    name: str | None = None,
    patience_s: float = 0.0,
) -> Ledger:
    """Create a study in `folder`, or with `resume` go on with one that is there; hold it until it is closed.

    `identity`: the study is only resumed with the same one. `url`: of a database to keep it in, as `name`;
    `patience_s`: seconds after which one that is away is given up. Raises `UserError`.
    """
    mine = identity.ledger_json(space)
    with ExitStack() as locks:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(hold_file(folder / "driver.lock", str(folder)))
            mend(folder / JOURNAL)
            ledger = Ledger(folder, url=url, name=name, patience_s=patience_s)
        except OSError as error:
            rule = f"must be a writable folder, got {folder}: {error.strerror or error}"
            raise UserError(rule, option="storage") from error
        locks.enter_context(ledger.hold())  # a driver elsewhere has another folder
        if not ledger.begun:
            ledger.study = optuna.create_study(
                study_name=ledger.name,
                storage=ledger.storage,
                directions=[StudyDirection.MAXIMIZE] * len(OBJECTIVES[identity.objective]),
            )
            ledger.study.set_metric_names(list(OBJECTIVES[identity.objective]))  # optuna-dashboard's axes
        elif resume:
            ledger.load()
        else:
            raise UserError(f"must be new, or resume given: {ledger.shown} already holds a study", option="name")
        if "identity" not in ledger.study.user_attrs:  # new, or its driver died right here
            ledger.study.set_user_attr("identity", mine)
        require_same(ledger.identity, mine, ledger.shown)
        ledger.locks = locks.pop_all()
    return ledger


def read_ledger(folder: Path, *, url: str | None = None, name: str | None = None) -> Ledger:
    """Load a study that is there, to read it only: other processes may write to it."""
    ledger = Ledger(folder, url=url, name=name)
    ledger.load()
    return ledger


def suggest_params(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """Draw the values of all active knobs; a conditional knob is drawn only where its condition holds."""
    params: dict[str, Value] = {}
    for knob in space.knobs:
        if knob in space.active(params):
            params[knob.name] = _suggest(trial, knob)
    return params


def _suggest(trial: optuna.Trial, knob: Knob) -> Value:
    if knob.choices is not None:
        return cast(Value, trial.suggest_categorical(knob.name, knob.choices))
    assert knob.low is not None and knob.high is not None  # Knob sees to it
    if knob.is_int:
        return trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log)
    return trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)


def _distribution(knob: Knob) -> BaseDistribution:
    """Return the distribution of `_suggest`'s draws."""
    if knob.choices is not None:
        return CategoricalDistribution(knob.choices)
    assert knob.low is not None and knob.high is not None  # Knob sees to it
    if knob.is_int:
        return IntDistribution(int(knob.low), int(knob.high), log=knob.log)
    return FloatDistribution(knob.low, knob.high, log=knob.log)


def _configuration(trial: FrozenTrial, space: str, pareto: bool) -> Configuration:
    attrs, result = trial.user_attrs, trial.user_attrs.get(RESULT, {})
    states: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return Configuration(
        index=attrs[INDEX],
        number=trial.number,
        config_id=f"{space}-{attrs[INDEX]:04d}",
        params=trial.params,
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
