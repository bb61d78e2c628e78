"""One rotation of a study: candidates, their refits, the test split once, export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray
import torch
from torch import Tensor

from data_prep.manifest import read_manifest
from data_prep.storage import Storage
from study.cluster.refit_run import refit
from study.cluster.session import single_node
from study.evaluation.final_test import Evaluation, Scored, check_labels, select, with_new_images, with_test_labels
from study.evaluation.leaderboard import Entry, Score
from study.evaluation.leaderboard_text import to_terminal
from study.outputs.adapter import make_adapter
from study.outputs.adapter_files import ADAPTERS, ENSEMBLE, SELECTED, write_adapter
from study.outputs.leaderboard_files import write_leaderboard
from study.outputs.prediction_tables import write_prediction_tables, write_resamples
from study.outputs.provenance import CONFIGS, RefitRecord, write_config, write_run
from study.pipeline.candidates import Candidate, calibrated_entry
from study.pipeline.choice import Consensus
from study.pipeline.plan import Prepared
from study.pipeline.search_stage import SearchStage
from study.protocol.consensus import agreement, divided_ensemble, training_free_labels
from study.protocol.trial_data import InCache, TrialData, in_cache
from study.reporting.report import write_report
from study.training.pack import Division
from study.training.refit import Refit
from study.training.scoring import CONSTANT

MAJORITY = 3
"""Members from which an ensemble can outvote one of them."""


@dataclass(frozen=True, kw_only=True)
class RotationResult:
    """One rotation, done."""

    evaluation: Evaluation
    """Its test split."""
    scored: list[Scored]
    """Its rows, ranked, with the predictions behind them."""
    interrupted: bool
    """Whether an interrupt ended its search."""
    storage: Storage
    """Its folder."""


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What is behind a row that has an adapter."""

    candidate: Candidate
    """Its configuration."""
    refit: Refit
    """The configuration, refitted."""
    constant: float = 0.0
    """Of a calibrated row."""


def run_rotation(study: Prepared, rotation: int, data: TrialData, storage: Storage) -> RotationResult:
    """Run one rotation's study: find candidates, refit them, score the test split once, write its files."""
    spec, clock = study.spec, study.clock
    selection, own_folder = spec.options.selection, storage is not spec.storage
    if spec.ablation:
        check_labels(study.cache, study.features)
    if selection.select == "oracle":
        data = with_test_labels(data, study.cache, study.features)
    with clock.stage("search"):
        if spec.criterion in ("consensus", "agreement"):
            data = replace(data, reference_T=training_free_labels(data))
        arrays = ray.put(data.to_arrays() | _in_cache(study, data))
        candidates = SearchStage(study, rotation, data.seen_C, arrays, storage).run()
    with clock.stage("refit"):
        refits = refit(
            [candidate.config for candidate in candidates.found],
            seeds=spec.refit_seeds,
            arrays=arrays,
            epochs=spec.options.search.epochs,
            resources=replace(spec.options.resources, refit_workers=study.plan.refit_workers),
            storage=storage,
            new_features=None if study.new is None else ray.put(study.new.target.features_ID.numpy()),
        )
    evaluation = Evaluation(study.cache, study.features, data, selection.select)
    on_new = None
    if study.new:
        of_new = replace(data, target_features_TD=study.new.target.features_ID, reference_T=None, oracle_labels_T=None)
        on_new = Evaluation(study.cache, study.new, of_new, selection.select)
    record = RefitRecord(
        seeds=tuple(spec.refit_seeds), rotation=rotation, epochs=spec.options.search.epochs, run=study.run_record()
    )
    zero_shot, scored = evaluation.zero_shot(spec.criterion), list[Scored]()
    if on_new:
        zero_shot = [with_new_images(*pair) for pair in zip(zero_shot, on_new.zero_shot("h"), strict=True)]
    trained: dict[str, _Trained] = {}
    members: list[_Trained] = []
    methods: set[str] = set()
    storage.clear(CONFIGS)  # of rows that an extended search no longer has: `--enqueue` would try them
    for candidate, done in zip(candidates.found, refits, strict=True):
        entry = candidate.entry
        if done.diverged:
            study.console.print(f"{entry.config_id} diverged in its refit and is left out", soft_wrap=True)
            continue
        row = evaluation.score(
            entry,
            done.predictions_ST,
            done.division,
            train_seconds=done.train_seconds,
            unseen_GT=done.unseen_GT,
        )
        scored.append(_also_new(row, entry, on_new, done.new))
        write_config(storage, scored[-1].row, params=entry.params, space=candidate.space, record=record)
        calibrated = calibrated_entry(entry, methods)
        methods.add(entry.method)
        if calibrated:
            constant = entry.metrics[CONSTANT]
            row = evaluation.score(calibrated, done.division.at(constant), done.division)
            new = done.new and (done.new[1].at(constant), done.new[1])
            scored.append(_also_new(row, calibrated, on_new, new))
            trained[calibrated.config_id] = _Trained(candidate=candidate, refit=done, constant=constant)
        trained[entry.config_id] = _Trained(candidate=candidate, refit=done)
        if entry.method == spec.space.method:
            members.append(trained[entry.config_id])
    if candidates.consensus:
        scored.append(_consensus_row(study, candidates.consensus, evaluation))
    if candidates.consensus and len(members) >= MAJORITY:
        scored.append(_ensemble_row(study, members, candidates.consensus, evaluation, on_new))
    else:
        members = []
    # the study's choice is the first of all: where nothing can be ranked, it stays so
    scored = select([*scored, *zero_shot], evaluation, spec.reference)
    with clock.stage("export"):
        _export(study, storage, scored, trained, members, evaluation, record)
    write_prediction_tables(storage, evaluation, scored, spec.reference, spec.target_images)
    write_resamples(storage, [(evaluation, scored)])
    if own_folder:
        rows = [s.row for s in scored]
        write_leaderboard(storage, rows, interrupted=candidates.interrupted)
        write_run(storage, study.run_record(rotation, interrupted=candidates.interrupted))
        write_report(storage)
        study.console.print(to_terminal(rows, interrupted=candidates.interrupted))
    return RotationResult(evaluation=evaluation, scored=scored, interrupted=candidates.interrupted, storage=storage)


def _consensus_row(study: Prepared, consensus: Consensus, evaluation: Evaluation) -> Scored:
    """Score what all configurations of the search predict together: no model of its own, and nothing to export."""
    space = study.spec.space
    score = Score(criterion="consensus", value=consensus.mean_agreement)
    entry = Entry(method=f"{space.method}, consensus", config_id=f"{space.name}-consensus", score=score)
    return evaluation.score(entry, consensus.labels_T[None], consensus.division)


def _ensemble_row(
    study: Prepared,
    members: Sequence[_Trained],
    consensus: Consensus,
    evaluation: Evaluation,
    on_new: Evaluation | None,
) -> Scored:
    """Score what the method's refits predict together, seed by seed; the best in selection first."""
    space, seen_C = study.spec.space, evaluation.data.seen_C
    predictions_ST, division = _voted([of_one.refit.predictions_ST for of_one in members], seen_C)
    value = float(agreement(predictions_ST, consensus.labels_T, seen_C).mean())
    score = Score(criterion="consensus", value=value)
    entry = Entry(method=f"{space.method}, ensemble", config_id=f"{space.name}-ensemble", score=score)
    seconds = sum(of_one.refit.train_seconds for of_one in members)
    row = evaluation.score(entry, predictions_ST, division, train_seconds=seconds)
    of_new = [of_one.refit.new[0] for of_one in members if of_one.refit.new]
    return _also_new(row, entry, on_new, _voted(of_new, seen_C) if of_new else None)


def _also_new(row: Scored, entry: Entry, on_new: Evaluation | None, new: tuple[Tensor, Division] | None) -> Scored:
    """Return the row with what it reaches on images that the study never saw, where there are any."""
    return with_new_images(row, on_new.score(entry, *new)) if on_new and new else row


def _voted(predictions: Sequence[Tensor], seen_C: Tensor) -> tuple[Tensor, Division]:
    """Return the classes (S, I) with the most votes of members' predictions, and their division, a lane per seed."""
    parts = [divided_ensemble(predicted_MI, seen_C) for predicted_MI in torch.stack(list(predictions), dim=1)]
    lead_SI, seen_SI, unseen_SI = (torch.stack(of_seeds) for of_seeds in zip(*parts, strict=True))
    division = Division(lead_KI=lead_SI, seen_KI=seen_SI, unseen_KI=unseen_SI)
    return division.at(0.0), division


def _in_cache(study: Prepared, data: TrialData) -> dict[str, InCache]:
    """Return what nodes map for themselves of large features: where all of them see the cache, or one is alone."""
    cache = str(study.cache)
    shared = "://" in cache or single_node()
    return in_cache(data, study.features, cache) if shared else {}


def _export(
    study: Prepared,
    storage: Storage,
    scored: Sequence[Scored],
    trained: Mapping[str, _Trained],
    members: Sequence[_Trained],
    evaluation: Evaluation,
    record: RefitRecord,
) -> None:
    """Write every refitted row's adapter, of its first seed, into adapters/<rank>; that of the study's choice twice.

    The second is adapters/selected, a copy: ranks are by H on the test split, which selection never saw. Those of the
    ensemble's members, copies as well, are adapters/ensemble/1, 2, ... `trained`: by the rows' configurations.
    """
    storage.clear(ADAPTERS)  # an earlier run of the study may have ranked otherwise
    clip = read_manifest(study.cache).checkpoint
    place_of_member = {of_one.candidate.entry.config_id: f"{ENSEMBLE}/{i}" for i, of_one in enumerate(members, start=1)}
    for of_row in scored:
        if of_row.row.config_id not in trained:
            continue
        done = trained[of_row.row.config_id]
        adapter = make_adapter(
            done.candidate.config,
            record.seeds[0],
            done.refit.weights,
            evaluation.data,
            study.features,
            clip,
            seen_constant=done.constant,
        )
        metrics = next(iter(evaluation.metrics(of_row.predictions_ST[:1])), {})
        is_choice = of_row.row.selected and of_row.row.method == study.spec.reference
        places = [str(of_row.row.rank), *([SELECTED] if is_choice else [])]
        if of_row.row.config_id in place_of_member:
            places.append(place_of_member[of_row.row.config_id])
        for place in places:
            write_adapter(storage, f"{ADAPTERS}/{place}", adapter, row=of_row.row, metrics=metrics, record=record)
