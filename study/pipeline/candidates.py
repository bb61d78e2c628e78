"""Candidates: configurations to refit, and where they came from."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.storage import locate, reason
from models.heads import Head
from models.stacked import MethodConfig
from search_spaces import Space, Value
from study.evaluation.leaderboard import ORACLE, Entry, Score, score_of
from study.outputs.folder import open_storage
from study.outputs.leaderboard_files import read_leaderboard
from study.outputs.provenance import CONFIGS
from study.pipeline.choice import Choice, Consensus
from study.protocol.scores import Criterion, measured_criterion
from study.search.records import Configuration
from study.training.methods import method_of
from study.training.scoring import CALIBRATED_H, CONSTANT, LaneResult


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration to refit and to score on the test split."""

    config: MethodConfig
    """The configuration, with the inference-time knobs that were found for it."""
    entry: Entry
    """Its name on the leaderboard, and what selection said of it."""
    space: str
    """Name of the search space that it belongs to: what `--rerun` needs."""


def make_candidate(
    space: Space,
    params: Mapping[str, Value],
    *,
    method: str,
    config_id: str,
    score: Score | None,
    metrics: Mapping[str, float],
    pareto: bool = False,
    space_name: str = "",
    head: Head = "none",
    alike: float | None = None,
) -> Candidate:
    """Return the candidate with these knobs, and with the inference-time knobs that selection found for it.

    `space_name`: of the space that `--rerun` can load, where `space` is made for one variant of an ablation. `head`:
    the transductive head that was chosen with it. `alike`: share of the other choices that agree as well, within noise.
    """
    swept: dict[str, Value] = {name: metrics[name] for name in method_of(space).swept if name in metrics}
    if head != "none":
        swept["head"] = head
    config = space.config(**{**params, **swept})
    entry = Entry(
        method=method,
        config_id=config_id,
        score=score,
        val_alike=alike,
        metrics=metrics,
        params=asdict(config),
        pareto=pareto,
    )
    return Candidate(config=config, entry=entry, space=space_name or space.name)


def searched_candidate(space: Space, found: Choice, *, space_name: str = "") -> Candidate:
    """Return the candidate of a configuration that the search completed, under the head that was chosen for it."""
    configuration, head = found.configuration, found.head
    return make_candidate(
        space,
        configuration.params,
        method=space.method,
        config_id=row_name(space, configuration.config_id, configuration.params, head),
        score=found.score,
        metrics=_metrics_of(found),
        pareto=configuration.pareto,
        space_name=space_name,
        head=head,
        alike=found.alike,
    )


def _metrics_of(found: Choice) -> Mapping[str, float]:
    """Return what selection measured of a choice: under a head, H and constant are the head's own."""
    own = found.configuration.metrics
    if found.head != "none":
        own = {name: value for name, value in own.items() if name not in (CONSTANT, CALIBRATED_H)}
    return {**own, **found.of_head}


def row_name(space: Space, config_id: str, params: Mapping[str, Value], head: Head = "none") -> str:
    """Return a configuration's name on the leaderboard: its id, and behind it what the method's article has not."""
    config = space.config(**params)
    ours = [value for knob, values in method_of(space).ours.items() if (value := getattr(config, knob)) in values]
    return "-".join([config_id, *map(str, ours), *([] if head == "none" else [head])])


def searched_score(configuration: Configuration | LaneResult, criterion: Criterion) -> Score | None:
    """Return what a search under `criterion` maximised of a configuration; None where it diverged."""
    if configuration.score is None:
        return None
    return Score(criterion=measured_criterion(configuration.metrics, criterion), value=configuration.score)


def defaults_candidate(space: Space, configurations: Sequence[Configuration], criterion: Criterion) -> Candidate | None:
    """Return the candidate that nobody searched: the space's defaults, the first configuration of every search.

    None where it diverged.
    """
    first = next((c for c in configurations if c.index == 0 and c.state != "failed"), None)
    if first is None:
        return None
    return make_candidate(
        space,
        first.params,
        method=f"{space.method}, defaults",
        config_id=row_name(space, f"{space.name}-defaults", first.params),
        score=searched_score(first, criterion),
        metrics={name: value for name, value in first.metrics.items() if name != CONSTANT},  # not calibrated
    )


def given_candidate(
    space: Space,
    params: Mapping[str, Value],
    result: LaneResult,
    *,
    method: str,
    config_id: str,
    criterion: Criterion,
    consensus: Consensus | None,
) -> Candidate:
    """Return the candidate of a configuration that was not searched but scored on the folds like a searched one.

    `consensus`: of the study's search, by which all that vote are ranked.
    """
    score = searched_score(result, criterion)
    if consensus and result.votes:
        score = Score(criterion="consensus", value=consensus.score(result.votes)["none"])
    return make_candidate(space, params, method=method, config_id=config_id, score=score, metrics=result.metrics)


def calibrated_entry(entry: Entry, methods: Collection[str]) -> Entry | None:
    """Return the row of the same refit with its constant between seen and unseen classes, None if there is none.

    `methods`: those that have a refit already: only a method's first one, the best in selection, is calibrated.
    """
    if CONSTANT not in entry.metrics or entry.method in methods:
        return None
    h = entry.metrics[CALIBRATED_H]
    return Entry(
        method=f"{entry.method}, calibrated",
        config_id=f"{entry.config_id}-calibrated",
        score=Score(criterion="h", value=h),
        metrics={"val_h_mean": h},
    )


def candidate_of_row(space: Space, row: Mapping[str, Any]) -> Candidate:
    """Return the candidate of a row of an earlier study, from its `configs/ID.json`. Raises `UserError`."""
    try:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", row["config_id"]):  # names the files that are written
            raise UserError(
                f"must be a row whose config_id is letters, digits and . _ -, got {row['config_id']!r}", option="rerun"
            )
        return make_candidate(
            space,
            row["params"],
            method=row["method"],
            config_id=row["config_id"],
            score=score_of(row),
            metrics={name: row[name] for name in ("val_h_mean", "val_h_std")},
            pareto=row["pareto"],
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"must be a row of a study of this version, got {error!r}", option="rerun") from error


def enqueued_params(given: Sequence[str], space: Space, select: str) -> tuple[dict[str, Value], ...]:
    """Return the knobs of other studies' configurations of this space, each once, the best in selection first.

    `given`: folders of studies, or files configs/ID.json of them, or their URIs. `select`: what this study's selection
    may look at. Raises `UserError`.
    """
    found: list[dict[str, Value]] = []
    for place in given:
        rows = [row for row in _recorded(place) if row["space"] == space.name]
        if not rows:
            raise UserError(f"must hold configurations of {space.name}; {place} has none", option="enqueue")
        for row in sorted(rows, key=_recorded_rank):
            if row["select"] == ORACLE != select:
                raise UserError(f"must not have looked at test labels; {place} has", option="enqueue")
            params = _knobs_of(space, row)
            if params not in found and params != space.defaults():
                found.append(params)
    return tuple(found)


def _recorded(place: str) -> list[dict[str, Any]]:
    """Return the content of a file configs/ID.json, or of all of a study. Raises `UserError`."""
    folder, _, file = place.rstrip("/").rpartition("/")
    try:
        if file.endswith(".json"):
            contents = [locate(folder or ".", option="enqueue").read(file)]
        else:
            storage = locate(place, option="enqueue")
            names = [n for n in storage.names(recursive=True) if re.search(rf"(^|/){CONFIGS}/[^/]+\.json$", n)]
            contents = [storage.read(name) for name in sorted(names)]
        rows = [json.loads(content or b"null") for content in contents]
        if not all({"space", "params", "val_criterion", "select"} <= set(row) for row in rows):
            raise ValueError("it lacks the knobs of its row")
    except (OSError, ValueError, TypeError) as error:
        rule = "must be the folder of a study or a file configs/ID.json of one"
        raise UserError(f"{rule}, got {place}: {reason(error)}", option="enqueue") from error
    return rows


def _recorded_rank(row: Mapping[str, Any]) -> tuple[str, float]:
    """Return where a row stands among others of its study: the best score first, one criterion after the other."""
    score = score_of(row)
    return (score.criterion, -score.value) if score else ("", 0.0)


def _knobs_of(space: Space, row: Mapping[str, Any]) -> dict[str, Value]:
    """Return the knobs of a row that are active in a space. Raises `UserError` where one lies outside its range."""
    params: dict[str, Value] = {}
    for knob in space.knobs:
        if knob not in space.active(params):
            continue
        value = row["params"].get(knob.name, knob.default)
        inside = value in knob.choices if knob.choices is not None else knob.low <= value <= knob.high  # type: ignore[operator]
        if not inside:
            rule = f"must lie in the ranges of this search; {knob.name}={value} of {row['config_id']} does not"
            raise UserError(f"{rule}: widen it with --set", option="enqueue")
        params[knob.name] = value
    return params


def winner_params(study: Path, space: Space, rotation: int) -> dict[str, Value]:
    """Return the knobs that a study selected (in this rotation, if it had several), without the swept ones.

    Raises `UserError`.
    """
    of_rotation = study / f"rotation-{rotation}"
    folder = of_rotation if of_rotation.exists() else study
    try:
        rows = read_leaderboard(open_storage(str(folder.parent), folder.name))
    except FileNotFoundError:
        raise UserError(f"must be the folder of a finished study, got {study}", option="winner") from None
    for row in rows:
        if row.selected and row.method == space.method:
            swept = method_of(space).swept
            return {k: v for k, v in json.loads(row.params).items() if k not in swept}
    raise UserError(f"must be a study of {space.method}, got {study}", option="winner")
