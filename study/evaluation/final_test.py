"""The final evaluation: the only module that reads target labels.

It scores predicted classes after winners are refitted. (`--select oracle` asks it for the labels, too.)

Suffixes: S seeds, T target images, C classes.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from data_prep.benchmarks.base import UNLABELLED
from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet, load_target_labels
from models.baselines import nearest_prototype, zero_shot_prototypes
from models.stacked import chunks, in_chunks
from models.sweeps import Curve, lead_of_seen
from study.evaluation.leaderboard import (
    Entry,
    Row,
    Score,
    h_of_means,
    mean_over_seeds,
    rank_rows,
    sample_deviation,
    score_columns,
)
from study.evaluation.metrics import evaluate, paired_bootstrap, resampled_h
from study.protocol.consensus import agreement
from study.protocol.scores import (
    Criterion,
    measured_criterion,
    mutual_information,
    pseudo_unseen_scores,
    selection_score,
    summarise,
)
from study.protocol.trial_data import TrialData, oracle_data, seen_classes
from study.training.pack import Division

BASELINE = "ensemble"
"""The zero-shot CLIP to which gains refer; an untrained adapter equals it."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A row of the leaderboard and the predictions behind it."""

    row: Row
    """The row."""
    predictions_ST: Tensor
    """Predicted class of every target image that has a label, for every seed."""
    everywhere_ST: Tensor
    """Predicted class of all target images."""
    division: Division
    """Those with a label at any threshold between seen and unseen classes, a lane per seed."""
    curves: list[Curve]
    """Seen against unseen accuracy at every threshold, for every seed."""
    unseen_GT: Tensor | None = None
    """Best unseen class at each residual strength, see `Refit`."""


class Evaluation:
    """The test split of one rotation, on which predictions are scored: the target images that have a label.

    Without any, rows have no test columns.
    """

    def __init__(self, cache: Path | str, features: FeatureSet, data: TrialData, select: str) -> None:
        self._every_label_T = load_target_labels(cache, features.target)
        self._rows_T = (self._every_label_T != UNLABELLED).nonzero().flatten()
        self.labels_T = self._every_label_T[self._rows_T]
        self.features, self.data, self.selection = features, data, select
        self.prototypes = zero_shot_prototypes(
            features.name_features_CPD, features.node_features_ND[features.graph.class_node_C]
        )
        self.baseline_everywhere_1T = self._zero_shot_predictions(self.prototypes[BASELINE])

    @property
    def baseline_1T(self) -> Tensor:
        """Classes that zero-shot CLIP predicts for the images with a label."""
        return self.baseline_everywhere_1T[:, self._rows_T]

    @property
    def has_labels(self) -> bool:
        """Whether any target image has a label."""
        return len(self.labels_T) > 0

    @property
    def keys(self) -> list[str]:
        """Keys of the images with a label."""
        return self.features.target.keys.take(self._rows_T.numpy()).to_pylist()

    @property
    def every_label(self) -> list[str]:
        """Names of the classes of all target images, "" where nobody has said it."""
        names = self.features.classes.names
        return ["" if label == UNLABELLED else names[label] for label in self._every_label_T.tolist()]

    def metrics(self, predictions_ST: Tensor) -> list[dict[str, float]]:
        """Return the test metrics of each seed's predictions; none without labels."""
        return evaluate(*self.counted(predictions_ST)) if self.has_labels else []

    def counted(self, predictions_ST: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predictions (S, T), labels (T,) and the mask of seen classes as accuracies count them."""
        return self.data.competing.counted(predictions_ST, self.labels_T, self.data.seen_C)

    def _zero_shot_predictions(self, prototypes_CD: Tensor) -> Tensor:
        """Return the predicted class (1, T) of every target image."""
        classify = functools.partial(_nearest, self.data.target_features_TD, prototypes_CD)
        return self.data.competing.predict_test(classify, self._every_label_T, self.data.seen_C[None])

    def zero_shot(self, criterion: Criterion) -> list[Scored]:
        """Score zero-shot CLIP by the text of its prototypes, on the test images and folds of every other row."""
        return [self._zero_shot(text, prototypes_CD, criterion) for text, prototypes_CD in self.prototypes.items()]

    def _zero_shot(self, text: str, prototypes_CD: Tensor, criterion: Criterion) -> Scored:
        data, folds = self.data, range(self.data.folds)
        classify = functools.partial(_nearest, data.source_features_ID, prototypes_CD)
        seen_KC = torch.stack([seen_classes(data, fold) for fold in folds])
        source_KI = data.competing.predict_labelled(classify, data.source_labels_I, seen_KC).expand(len(folds), -1)

        def logits(images_BD: Tensor) -> Tensor:
            return (data.logit_scale * images_BD @ prototypes_CD.T)[None]

        lead, seen_1T, unseen_1T = in_chunks(
            lambda images_BD: lead_of_seen(logits(images_BD), data.seen_C[None]), data.target_features_TD
        )
        target = {"target_mi": mutual_information(map(logits, chunks(data.target_features_TD))).tolist()}
        if data.reference_T is not None:
            target_1T = data.competing.predict_target(
                functools.partial(_nearest, data.target_features_TD, prototypes_CD)
            )
            target["target_agreement"] = agreement(target_1T, data.reference_T, data.seen_C).tolist()
        seen, unseen, h = pseudo_unseen_scores(source_KI, folds, data)
        metrics = summarise(seen, unseen, h, target)
        entry = Entry(
            method=f"CLIP zero-shot ({text})",
            config_id=f"zero-shot-{text.split()[0].lower()}",
            score=Score(criterion=measured_criterion(metrics, criterion), value=selection_score(metrics, criterion)),
            metrics=metrics,
        )
        division = Division(lead_KI=lead, seen_KI=seen_1T, unseen_KI=unseen_1T)
        return self.score(entry, self._zero_shot_predictions(prototypes_CD), division)

    def score(
        self,
        entry: Entry,
        predictions_ST: Tensor,
        division: Division,
        *,
        train_seconds: float = 0.0,
        unseen_GT: Tensor | None = None,
    ) -> Scored:
        """Return the leaderboard row of a configuration from what its refits predict for all target images (S, T)."""
        everywhere_ST = self.data.competing.predict_divided(
            predictions_ST, division.seen_KI, division.unseen_KI, self.data.seen_C[self._every_label_T]
        )
        if len(self.labels_T) < len(self._every_label_T):
            division = division.of_images(self._rows_T)
            unseen_GT = None if unseen_GT is None else unseen_GT[:, self._rows_T]
        predictions_ST = everywhere_ST[:, self._rows_T]
        gain, low, high = _compare([self], [predictions_ST], [self.baseline_1T])
        curves = self._curves(division)
        seen_C = self.data.seen_C
        other_side_ST = seen_C[everywhere_ST] != seen_C[self.baseline_everywhere_1T]  # takes no label
        measured: dict[str, Any] = {}
        if self.has_labels:
            measured |= {**mean_over_seeds(self.metrics(predictions_ST)), **_over_thresholds(curves)}
            measured = {name: None if math.isnan(value) else value for name, value in measured.items()}
            measured["test_h_of_means"] = h_of_means(measured["test_seen_mean"], measured["test_unseen_mean"])
        measured |= {"n_seeds": len(predictions_ST), "test_other_side": float(other_side_ST.float().mean())}
        partial = f" (partial: {self.features.partial})" if self.features.partial else ""
        row = Row(
            method=entry.method,
            config_id=entry.config_id,
            select=self.selection,
            benchmark=self.features.benchmark + partial,
            clip=self.features.clip,
            val_alike=entry.val_alike,
            **{name: entry.metrics.get(name) for name in ("val_h_mean", "val_h_std")} | score_columns(entry.score),
            **measured,
            h_gain=gain,
            h_gain_lo=low,
            h_gain_hi=high,
            train_seconds=train_seconds,
            feature_fingerprint=self.features.fingerprint,
            params=json.dumps(dict(entry.params)),
            pareto=entry.pareto,
        )
        return Scored(
            row=row,
            predictions_ST=predictions_ST,
            everywhere_ST=everywhere_ST,
            division=division,
            curves=curves,
            unseen_GT=unseen_GT,
        )

    def _curves(self, division: Division) -> list[Curve]:
        """Return the seen-unseen curve of every seed; none where all images are of one kind."""
        labels_T, seen_C = self.labels_T, self.data.seen_C
        if len(seen_C[labels_T].unique()) < 2:
            return []
        return [division.curve(seed, labels_T, seen_C) for seed in range(len(division.lead_KI))]


def with_new_images(scored: Scored, new: Scored) -> Scored:
    """Return a row with what it reaches on images that the study never saw, `new`: the same row on them."""
    names = ("seen_mean", "unseen_mean", "h_mean", "h_std")
    measured = {f"new_{name}": getattr(new.row, f"test_{name}") for name in names}
    gain = {f"new_{name}": getattr(new.row, name) for name in ("h_gain", "h_gain_lo", "h_gain_hi")}
    return replace(scored, row=replace(scored.row, **measured, **gain))


def _nearest(features_ID: Tensor, prototypes_CD: Tensor, among_KC: Tensor | None = None) -> Tensor:
    """Return the class (K, I) of the nearest prototype, among the classes of each mask; (1, I) without a mask."""
    masks = [None] if among_KC is None else list(among_KC)
    return torch.stack([nearest_prototype(features_ID, prototypes_CD, among_C) for among_C in masks])


def _over_thresholds(curves: Sequence[Curve]) -> dict[str, float]:
    """Return means over seeds of metrics that no chosen threshold changes; none where no threshold decides."""
    if not curves:
        return {}
    return {
        # at the strictest threshold every image goes to the unseen classes
        "test_t1": fmean(float(curve.unseen_M[0]) for curve in curves),
        "test_ausuc": fmean(curve.ausuc for curve in curves),
        "test_h_oracle_tau": fmean(curve.best().h for curve in curves),
    }


def with_test_labels(data: TrialData, cache: Path | str, features: FeatureSet) -> TrialData:
    """Return the trial data of an oracle study: with the labels of the target images that it sees.

    Raises `UserError` where an image has none.
    """
    labels_T = load_target_labels(cache, features.target)
    if without := int((labels_T == UNLABELLED).sum()):
        raise UserError(
            f"must be pseudo-unseen: an oracle needs the label of every target image; {without} of {len(labels_T)} "
            "have none",
            option="select",
        )
    return oracle_data(data, labels_T)


def check_labels(cache: Path | str, features: FeatureSet) -> None:
    """Raise `UserError` where no target image has a label, for a study that is nothing without a test: an ablation."""
    if not (load_target_labels(cache, features.target) != UNLABELLED).any():
        raise UserError(
            "must be no ablation where no target image has a label: nothing can be compared", option="space"
        )


def average_rotations(rotations: Sequence[tuple[Evaluation, Sequence[Scored]]], reference: str) -> list[Row]:
    """Return one row per method: the mean over rotations of the row that each rotation selected (see `select`).

    The intervals come from resampling the images jointly for all rotations, which share them.
    """
    selected = [{s.row.method: s for s in scored if s.row.selected} for _, scored in rotations]
    evaluations = [evaluation for evaluation, _ in rotations]
    # an interrupted rotation may lack methods
    methods = [m for m in selected[0] if all(m in of_rotation for of_rotation in selected)]
    rows = []
    for method in methods:
        chosen = [of_rotation[method] for of_rotation in selected]
        gain = _compare(evaluations, [s.predictions_ST for s in chosen], [e.baseline_1T for e in evaluations])
        behind: dict[str, float] = {}
        if reference in methods and method != reference:
            behind = _behind(evaluations, [of_rotation[reference] for of_rotation in selected], chosen)
        numbers = [name for name in vars(chosen[0].row) if all(isinstance(getattr(s.row, name), float) for s in chosen)]
        mean: dict[str, Any] = {name: fmean(getattr(s.row, name) for s in chosen) for name in numbers}
        mean["test_h_of_means"] = h_of_means(mean.get("test_seen_mean"), mean.get("test_unseen_mean"))
        rows.append(
            replace(
                chosen[0].row,
                **{
                    **mean,
                    "test_h_std": _deviation(evaluations, chosen),
                    **dict(zip(("h_gain", "h_gain_lo", "h_gain_hi"), gain, strict=True)),
                    **behind,
                },
                config_id=" ".join(f"{r}:{s.row.config_id}" for r, s in enumerate(chosen)),
                params=json.dumps([json.loads(s.row.params) for s in chosen]),
            )
        )
    return rank_rows(rows)


def _deviation(evaluations: Sequence[Evaluation], chosen: Sequence[Scored]) -> float | None:
    """Return the deviation over seeds of a row's own number: of each seed's mean H over the rotations."""
    if not evaluations[0].has_labels:
        return None
    seeds_RS = [[m["test_h"] for m in e.metrics(s.predictions_ST)] for e, s in zip(evaluations, chosen, strict=True)]
    return sample_deviation([fmean(of_seed) for of_seed in zip(*seeds_RS, strict=False)])


def resampled_rows(rotations: Sequence[tuple[Evaluation, Sequence[Scored]]]) -> dict[tuple[str, str], Tensor]:
    """Return H (1 + S,), observed and under resamples of the images, by method and configuration of each row.

    None without labels. Of several rotations the mean of each method's selected rows, as in `average_rotations`.
    """
    if len(rotations) == 1:
        rows = {(s.row.method, s.row.config_id): [s] for s in rotations[0][1]}
    else:
        selected = [{s.row.method: s for s in scored if s.row.selected} for _, scored in rotations]
        everywhere = [method for method in selected[0] if all(method in of_one for of_one in selected)]
        rows = {(method, ""): [of_one[method] for of_one in selected] for method in everywhere}
    found: dict[tuple[str, str], Tensor] = {}
    if not rotations[0][0].has_labels:
        return found
    for name, chosen in rows.items():
        counted = [e.counted(s.predictions_ST) for (e, _), s in zip(rotations, chosen, strict=True)]
        found[name] = resampled_h([(rows_ST, seen_C) for rows_ST, _, seen_C in counted], counted[0][1])
    return found


def select(scored: Sequence[Scored], evaluation: Evaluation, reference: str) -> list[Scored]:
    """Rank rows, mark every method's selected row, and compare all rows with the selected one of `reference`."""
    by_id = {(s.row.method, s.row.config_id): s for s in scored}
    ranked = [replace(by_id[row.method, row.config_id], row=row) for row in rank_rows([s.row for s in scored])]
    best = next((s for s in ranked if s.row.selected and s.row.method == reference), None)
    if best is None:
        return ranked
    return [s if s is best else replace(s, row=replace(s.row, **_behind([evaluation], [best], [s]))) for s in ranked]


def _behind(evaluations: Sequence[Evaluation], best: Sequence[Scored], other: Sequence[Scored]) -> dict[str, Any]:
    """Return how far `other` lies behind `best`, one row of each per rotation."""
    values = _compare(evaluations, [s.predictions_ST for s in best], [s.predictions_ST for s in other])
    return dict(zip(("h_behind", "h_behind_lo", "h_behind_hi"), values, strict=True))


def _compare(
    evaluations: Sequence[Evaluation], method: Sequence[Tensor], baseline: Sequence[Tensor]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return the mean difference in H and its interval; None without labels."""
    if not evaluations[0].has_labels:
        return None, None, None
    tests = []
    for method_ST, baseline_ST, evaluation in zip(method, baseline, evaluations, strict=True):
        counted_ST, labels_T, seen_C = evaluation.counted(method_ST)
        tests.append((counted_ST, evaluation.counted(baseline_ST)[0], seen_C))
    return paired_bootstrap(tests, labels_T)
