"""A rotation's candidates: searched, given, or taken apart in an ablation."""

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import ray
from torch import Tensor

from data_prep.interrupts import interrupts
from data_prep.storage import Storage, pull, push
from search_spaces import Ablation, Space, Value
from study.cluster.jobs import Search
from study.cluster.search_run import run_searches
from study.cluster.session import single_node
from study.cluster.tasks import choose_precision, score_on_folds
from study.evaluation.leaderboard import ORACLE
from study.outputs.trackers import SearchLog
from study.pipeline.candidates import (
    Candidate,
    defaults_candidate,
    given_candidate,
    searched_candidate,
    searched_score,
    winner_params,
)
from study.pipeline.choice import Choice, Consensus, choose, find_consensus
from study.pipeline.plan import Prepared
from study.pipeline.spec import StudySpec
from study.protocol.scores import Criterion
from study.reporting.running import write_running_report
from study.search.ledger import JOURNAL, Ledger, open_ledger
from study.search.pack_queue import PackQueue
from study.search.votes import VoteFolder
from study.training.loop import TrainingOptions
from study.training.pack import Precision


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Configurations to refit."""

    found: tuple[Candidate, ...]
    """The study's own first, then each baseline's."""
    interrupted: bool
    """Whether an interrupt ended their search."""
    consensus: Consensus | None = None
    """What all configurations of the study's own search predict together, where the criterion asks for it."""


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """One space whose best configurations are wanted."""

    space: Space
    """Its knobs; none where there is just one configuration."""
    storage: Storage
    """Folder of its ledger."""
    top: int
    """Configurations that are refitted."""
    space_name: str = ""
    """Name of the space that `--rerun` can load, of a variant of an ablation."""


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Knobs that are scored without a search."""

    space: Space
    """Their space."""
    params: Mapping[str, Value] = field(default_factory=dict)
    """The knobs, where they are not the configuration's own defaults."""
    method: str
    """Name on the leaderboard."""
    config_id: str
    """Name of the row."""


class SearchStage:
    """Finds the candidates of one rotation."""

    def __init__(self, study: Prepared, rotation: int, seen_C: Tensor, arrays: ray.ObjectRef, storage: Storage) -> None:
        """`seen_C`: bool; `arrays`: reference to `TrialData.to_arrays()`; `storage`: the rotation's folder."""
        self.study, self.spec, self.options = study, study.spec, study.spec.options
        self.rotation, self.seen_C, self.arrays, self.storage = rotation, seen_C, arrays, storage
        self._consensus: Consensus | None = None

    @property
    def _criterion(self) -> Criterion:
        """What configurations are scored by while they are searched: H of the folds where test labels are seen."""
        return "h" if self.options.selection.select == ORACLE else self.spec.criterion

    def run(self) -> Candidates:
        """Return the method's best configurations or the ablation's variants, and each baseline's best.

        Raises KeyboardInterrupt where the search was interrupted, unless the study was asked to finish what it has.
        """
        given, wanted = self._requested()
        searched, interrupted = [w for w in wanted if w.space.knobs], False
        found: list[Candidate] = []
        if searched:
            found, interrupted = self._search(searched)
        if not interrupted:
            fixed = [w.space for w in wanted if not w.space.knobs]
            found += self._on_folds([_Given(space=s, method=s.method, config_id=f"{s.name}-0000") for s in fixed])
        return Candidates(found=(*given, *found), interrupted=interrupted, consensus=self._consensus)

    def _requested(self) -> tuple[list[Candidate], list[_Wanted]]:
        """Return the candidates that need no search, and the spaces whose best ones are wanted."""
        spec, given, wanted = self.spec, list[Candidate](), list[_Wanted]()
        if spec.rerun:
            given = [spec.rerun]
        elif spec.ablation and self.options.selection.re_search:
            for space in map(spec.ablation.researched, spec.ablation.variants):
                folder = self.storage / "variants" / space.name
                wanted.append(_Wanted(space=space, storage=folder, top=1, space_name=spec.space.name))
        elif spec.ablation:
            given = self._variants(spec.ablation)
        else:
            wanted = [_Wanted(space=spec.space, storage=self.storage, top=self.options.selection.top)]
        baselines = self.storage / "baselines"
        return given, wanted + [_Wanted(space=b, storage=baselines / b.name, top=1) for b in spec.baselines]

    def _variants(self, ablation: Ablation) -> list[Candidate]:
        """Return an ablation's variants: the winner's (or the space's default) knobs, each variant's own on top."""
        space, params = self.spec.space, self.spec.space.defaults()
        if self.options.selection.winner:
            params = winner_params(self.options.selection.winner, space, self.rotation)
        return self._on_folds(
            [
                _Given(
                    space=space,
                    params=ablation.params(name, params),
                    method=ablation.method(name),
                    config_id=f"{ablation.name}-{i}",
                )
                for i, name in enumerate(ablation.variants)
            ]
        )

    def _on_folds(self, given: Sequence[_Given]) -> list[Candidate]:
        """Score given knobs like searched ones, side by side; leave out those that diverge."""
        results = score_on_folds(
            [of_one.space.config(**of_one.params) for of_one in given],
            seed=self.options.search.seed,
            arrays=self.arrays,
            training=self.spec.training,
            resources=self.options.resources,
        )
        return [
            given_candidate(
                of_one.space,
                of_one.params,
                result,
                method=of_one.method,
                config_id=of_one.config_id,
                criterion=self._criterion,
                consensus=self._consensus,
            )
            for of_one, result in zip(given, results, strict=True)
            if result.state == "complete"
        ]

    def _search(self, wanted: Sequence[_Wanted]) -> tuple[list[Candidate], bool]:
        """Search spaces, or the rest of them; return each one's best configurations, and whether it was interrupted."""
        spec, search = self.spec, self.options.search
        with ExitStack() as stack:
            ledgers = [stack.enter_context(self._open_ledger(of_space)) for of_space in wanted]
            tracker, console = self.options.output.log, self.study.console
            logs = [SearchLog(tracker, ledger, study=spec.name, console=console) for ledger in ledgers if tracker]
            searches = [
                Search(
                    queue=PackQueue(
                        ledger,
                        of_space.space,
                        configs=search.configs,
                        pack=self._pack(of_space.space),
                        sampler=spec.sampler,
                        seed=search.seed,
                        refill=search.refill,
                        votes=VoteFolder(storage=of_space.storage),
                        enqueued=spec.enqueued if of_space.space is spec.space else (),
                        limit_s=search.time_s / len(wanted),
                    ),
                    training=self._training(of_space.space, ledger),
                    mirror=None if of_space.storage.is_local or ledger.url else of_space.storage,
                )
                for of_space, ledger in zip(wanted, ledgers, strict=True)
            ]
            first = wanted[0].storage
            outcomes = run_searches(
                searches,
                self.arrays,
                resources=self.options.resources,
                requested=self.study.plan.at_once,
                in_order=search.waits(alone=single_node()),
                checkpoints=first,
                console=console,
                report=functools.partial(write_running_report, first, ledgers[0]) if first.is_local else None,
                observers=logs,
            )
            if interrupted := any(outcome.interrupted for outcome in outcomes):
                if not self.options.output.finish_on_interrupt:
                    raise KeyboardInterrupt
                interrupts.work_goes_on()
            candidates = []
            for of_space, ledger, outcome in zip(wanted, ledgers, outcomes, strict=True):
                if ledger.url:
                    _keep_journal(ledger, of_space.storage)
                candidates += self._candidates(of_space, ledger)
                self.study.clock.count(of_space.space.name, outcome.trained, outcome.seconds)
            for log in logs:
                log.write()
        return candidates, interrupted

    def _training(self, space: Space, ledger: Ledger) -> TrainingOptions:
        """Return how a space's configurations are trained, in the precision that was asked for or is chosen."""
        training, resources = self.spec.training, self.options.resources
        if resources.precision != "auto":
            return replace(training, precision=resources.precision)

        def decide() -> Precision:
            return choose_precision(
                space, training, resources, self.arrays, pack=self._pack(space), console=self.study.console
            )

        return replace(training, precision=cast(Precision, ledger.decided("precision", decide)))

    def _pack(self, space: Space) -> int:
        """Return the configurations of a pack; a variant's are its space's."""
        packs = self.study.plan.packs
        return packs.get(space.name, packs[self.spec.space.name])

    def _candidates(self, of_space: _Wanted, ledger: Ledger) -> list[Candidate]:
        """Return a space's best configurations, and its defaults, which nobody searched."""
        space, finished = of_space.space, ledger.finished()
        found = [Choice(configuration=c, score=searched_score(c, self._criterion)) for c in ledger.best(of_space.top)]
        if self.spec.criterion == "consensus":
            complete = [c for c in finished if c.state == "complete"]
            votes = VoteFolder(storage=of_space.storage).load([c.index for c in complete])
            agreed = find_consensus(list(votes.values()), self.seen_C)
            if agreed:
                found = choose(complete, votes, agreed, of_space.top)
            if space is self.spec.space:
                self._consensus = agreed
        candidates = [searched_candidate(space, c, space_name=of_space.space_name) for c in found]
        defaults = None if self.spec.ablation else defaults_candidate(space, finished, self._criterion)
        return candidates if defaults is None else [*candidates, defaults]

    def _open_ledger(self, of_space: _Wanted) -> Ledger:
        """Open a space's ledger: a new one, or the one that is there if `--resume` was given."""
        search, output, storage = self.options.search, self.options.output, of_space.storage
        identity = self.spec.identity.of_search(
            benchmark=self.study.features.benchmark,
            clip=self.study.features.clip,
            fingerprint=self.study.features.fingerprint,
            rotation=self.rotation,
            pruning=search.pruning,
            sampler=self.spec.sampler,
            criterion=self.spec.criterion,
            precision=self.options.resources.precision,
        )
        return open_ledger(
            self._ledger_folder(storage),
            space=of_space.space,
            identity=identity,
            resume=output.resume,
            url=output.ledger,
            name=self.spec.name + storage.root.removeprefix(self.spec.storage.root),
            patience_s=output.ledger_timeout,
        )

    def _ledger_folder(self, storage: Storage) -> Path:
        """Return where a ledger's journal is, with the newest copy of the journal in it."""
        folder = ledger_folder(self.spec, storage)
        if not storage.is_local:
            pull(storage, folder / JOURNAL)
        return folder


def ledger_folder(spec: StudySpec, storage: Storage) -> Path:
    """Return where the journal of a ledger is, which Optuna needs as a local file.

    It lies beside the outputs, or, where they are behind a URI, in the cache, and is copied to them.
    """
    if storage.is_local:
        return Path(storage.root)
    cache = spec.options.output.cache
    return Path(".cache" if "://" in cache else cache) / "ledgers" / storage.root


def _keep_journal(ledger: Ledger, storage: Storage) -> None:
    """Write a journal of a search in a database, for the report and for whoever has the study's folder only."""
    journal = ledger.write_journal()
    if not storage.is_local:
        push(storage, journal)
