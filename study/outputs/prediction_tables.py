"""Write and read the tables of the final test: Parquet beside the leaderboard, for the report and for people.

    predictions.parquet  every target image under each method's selected configuration, by seed; label "" without one
    curves.parquet       seen against unseen accuracy at thresholds between the two, same configurations
    landscape.parquet    H over tau and lambda, where the study's method has them
    errors.parquet       errors by their distance in WordNet, beside those of a guess
    per_class.parquet    accuracy of each class under zero-shot CLIP and under the selected row
    resamples.parquet    H of every row, and under resamples of the images, for intervals between any two rows
    confusions.parquet   the commonest errors on unseen classes, with small images

Suffixes: S seeds, T target images, C classes, P pairs of classes, G residual strengths, M thresholds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from data_prep.decode import decode
from data_prep.storage import Storage
from models.sweeps import LAMBDAS, seen_unseen_curve
from study.evaluation.final_test import BASELINE, Evaluation, Scored, resampled_rows
from study.outputs.folder import read_table, write_table
from study.protocol.scores import class_accuracy

CURVE_POINTS = 200
"""Most thresholds of a curve that are written; the curve itself has one per image."""

LANDSCAPE_TAUS = 48
"""Most thresholds of the landscape that are written."""

CONFUSIONS = 24
"""Most pairs of classes that are written, the commonest ones."""

EXAMPLES = 3
"""Most images of each pair that are written."""

THUMBNAIL = 56
"""Longer side of a small image in pixels."""

GUESS = "any wrong class"
"""Name of the guess that errors are compared with: all wrong classes equally often."""


@dataclass(frozen=True, kw_only=True)
class PredictionTables:
    """The tables that the report reads; None where the study has no such table."""

    curves: pa.Table | None
    """Columns method, config_id, seed, tau, seen, unseen: a line per threshold."""
    landscape: pa.Table | None
    """Columns residual_lambda, tau, h."""
    errors: pa.Table | None
    """Columns method, label_unseen, predicted_unseen, distance, images (their number)."""
    per_class: pa.Table | None
    """Columns class, seen, images (their number), zero_shot, selected, difference: a line per class with images."""
    resamples: pa.Table | None
    """Columns method, config_id ("" of means over rotations), h: a list, the observed H first."""
    confusions: pa.Table | None
    """Columns label, predicted, share, distance, nearest, images, images_of_predicted (WebP): a line per pair."""


def write_prediction_tables(
    storage: Storage, evaluation: Evaluation, scored: Sequence[Scored], reference: str, images: pa.Table
) -> None:
    """Write the tables of one rotation.

    `reference`: the study's own method. `images`: the benchmark's target images, columns key, path, data.
    Raises `UserError` if the storage cannot be written.
    """
    chosen = [s for s in scored if s.row.selected]
    own = next((s for s in chosen if s.row.method == reference), None)
    distance_CC = wordnet_distance(evaluation.features.graph.path_similarity_CC)
    write_table(storage, "predictions", _predictions(evaluation, chosen))
    if not evaluation.has_labels:
        return
    if chosen and chosen[0].curves and evaluation.data.competing.thresholded:
        write_table(storage, "curves", _curves(chosen))
    if own and own.unseen_GT is not None and evaluation.data.competing.thresholded:
        write_table(storage, "landscape", _landscape(evaluation, own))
    write_table(storage, "errors", _errors(evaluation, chosen, distance_CC))
    if own:
        write_table(storage, "per_class", _per_class(evaluation, own))
        write_table(storage, "confusions", _confusions(evaluation, own, distance_CC, images))


def write_resamples(storage: Storage, rotations: Sequence[tuple[Evaluation, Sequence[Scored]]]) -> None:
    """Write every row's H under resamples of the test images, if they have labels.

    Raises `UserError` if the storage cannot be written.
    """
    lines = [
        {"method": method, "config_id": config_id, "h": h.tolist()}
        for (method, config_id), h in resampled_rows(rotations).items()
    ]
    if not lines:
        return
    schema = pa.schema([("method", pa.string()), ("config_id", pa.string()), ("h", pa.list_(pa.float32()))])
    write_table(storage, "resamples", pa.Table.from_pylist(lines, schema=schema))


def read_prediction_tables(storage: Storage) -> PredictionTables:
    """Read the tables of a study that the report shows."""
    return PredictionTables(**{f.name: read_table(storage, f.name) for f in fields(PredictionTables)})


def wordnet_distance(path_similarity_CC: Tensor) -> Tensor:
    """Return the number of edges (C, C) on the shortest way between two classes; inf where WordNet has no way."""
    return (1 / path_similarity_CC - 1).round()


def _predictions(evaluation: Evaluation, chosen: Sequence[Scored]) -> pa.Table:
    names, keys = evaluation.features.classes.names, evaluation.features.target.keys.to_pylist()
    images = list(zip(keys, evaluation.every_label, strict=True))
    lines = [
        {
            "key": key,
            "label": label,
            "method": s.row.method,
            "config_id": s.row.config_id,
            "seed": seed,
            "predicted": names[predicted],
        }
        for s in chosen
        for seed, predicted_T in enumerate(s.everywhere_ST.tolist())
        for (key, label), predicted in zip(images, predicted_T, strict=True)
    ]
    return pa.Table.from_pylist(lines)


def _curves(chosen: Sequence[Scored]) -> pa.Table:
    lines = []
    for s in chosen:
        for seed, curve in enumerate(s.curves):
            at = _spread(len(curve.tau_M), CURVE_POINTS)
            points = zip(curve.tau_M[at].tolist(), curve.seen_M[at].tolist(), curve.unseen_M[at].tolist(), strict=True)
            lines += [
                {"method": s.row.method, "config_id": s.row.config_id, "seed": seed, "tau": t, "seen": a, "unseen": b}
                for t, a, b in points
            ]
    return pa.Table.from_pylist(lines)


def _landscape(evaluation: Evaluation, own: Scored) -> pa.Table:
    """Score the first seed on the test images at every lambda and at some of all taus."""
    labels_T, seen_C, division = evaluation.labels_T, evaluation.data.seen_C, own.division
    assert own.unseen_GT is not None  # write_prediction_tables has checked it
    lines = []
    for strength, unseen_T in zip(LAMBDAS, own.unseen_GT, strict=True):
        curve = seen_unseen_curve(
            division.lead_KI[0], division.seen_KI[0] == labels_T, unseen_T == labels_T, labels_T, seen_C
        )
        at = _spread(len(curve.tau_M) - 1, LANDSCAPE_TAUS) + 1  # the first threshold is infinite
        lines += [
            {"residual_lambda": strength, "tau": tau, "h": h}
            for tau, h in zip(curve.tau_M[at].tolist(), curve.h_M[at].tolist(), strict=True)
        ]
    return pa.Table.from_pylist(lines)


def _errors(evaluation: Evaluation, chosen: Sequence[Scored], distance_CC: Tensor) -> pa.Table:
    """Count wrong images, mean over seeds, by method, side of label and prediction (seen or unseen), and distance."""
    labels_T, unseen_C = evaluation.labels_T, ~evaluation.data.seen_C
    counts: dict[tuple[Any, ...], float] = {}

    def add(method: str, weights: Tensor, labels: Tensor, predicted: Tensor) -> None:
        """Add each pair's weight to the count of its cell; a pair is an image's label and predicted class."""
        for distance in distance_CC[labels, predicted].unique().tolist():
            at_distance = distance_CC[labels, predicted] == distance
            for label_unseen in (False, True):
                for predicted_unseen in (False, True):
                    here = at_distance & (unseen_C[labels] == label_unseen) & (unseen_C[predicted] == predicted_unseen)
                    if here.any():
                        cell = (method, label_unseen, predicted_unseen, distance)
                        counts[cell] = counts.get(cell, 0.0) + float(weights[here].sum())

    for s in chosen:
        for predicted_T in s.predictions_ST:
            wrong_T = predicted_T != labels_T
            weights = torch.full((int(wrong_T.sum()),), 1 / len(s.predictions_ST))
            add(s.row.method, weights, labels_T[wrong_T], predicted_T[wrong_T])
    labels, others = (~torch.eye(len(unseen_C), dtype=torch.bool)).nonzero().unbind(1)
    share_C = torch.bincount(labels_T, minlength=len(unseen_C)) / (len(unseen_C) - 1)
    add(GUESS, share_C[labels], labels, others)
    names = ("method", "label_unseen", "predicted_unseen", "distance", "images")
    return pa.Table.from_pylist([dict(zip(names, (*cell, n), strict=True)) for cell, n in counts.items()])


def _per_class(evaluation: Evaluation, own: Scored) -> pa.Table:
    """List each class's accuracy under zero-shot CLIP and, mean over seeds, under the study's own selected row."""
    labels_T, names = evaluation.labels_T, evaluation.features.classes.names
    zero_shot_C = class_accuracy(evaluation.baseline_1T, labels_T, len(names))[0]
    selected_C = class_accuracy(own.predictions_ST, labels_T, len(names)).mean(0)
    images_C = torch.bincount(labels_T, minlength=len(names))
    lines = [
        {
            "class": names[c],
            "seen": bool(evaluation.data.seen_C[c]),
            "images": int(images_C[c]),
            "zero_shot": float(zero_shot_C[c]),
            "selected": float(selected_C[c]),
            "difference": float(selected_C[c] - zero_shot_C[c]),
        }
        for c in images_C.nonzero().flatten().tolist()
    ]
    return pa.Table.from_pylist(lines)


def _confusions(evaluation: Evaluation, own: Scored, distance_CC: Tensor, images: pa.Table) -> pa.Table:
    """List the commonest pairs of an unseen class and a seen one predicted for it, nearest in WordNet first.

    Column `share`: share of the class's images, mean over seeds. Column `nearest`: classes whose zero-shot prototypes
    lie nearest to that of the unseen class.
    """
    labels_T, seen_C, names = evaluation.labels_T, evaluation.data.seen_C, evaluation.features.classes.names
    labels_ST = labels_T.expand_as(own.predictions_ST)
    crossed_ST = ~seen_C[labels_ST] & seen_C[own.predictions_ST]
    pairs_P2, counts_P = torch.stack([labels_ST[crossed_ST], own.predictions_ST[crossed_ST]], dim=1).unique(
        dim=0, return_counts=True
    )
    commonest = counts_P.argsort(descending=True, stable=True)[:CONFUSIONS]
    order = commonest[distance_CC[tuple(pairs_P2[commonest].T)].argsort(stable=True)]
    prototypes_CD = evaluation.prototypes[BASELINE]
    nearness_CC = (prototypes_CD @ prototypes_CD.T).fill_diagonal_(-1)
    row_of_key = {key: i for i, key in enumerate(images["key"].to_pylist())}
    keys = evaluation.keys

    def thumbnails(chosen_T: Tensor) -> list[bytes]:
        rows = [row_of_key[keys[t]] for t in chosen_T.nonzero().flatten()[:EXAMPLES].tolist()]
        shown = map(_thumbnail, images.take(pa.array(rows, pa.int64())).to_pylist())
        return [image for image in shown if image]

    lines = []
    for (label, predicted), count in zip(pairs_P2[order].tolist(), counts_P[order].tolist(), strict=True):
        of_class_T = labels_T == label
        lines.append(
            {
                "label": names[label],
                "predicted": names[predicted],
                "share": count / (len(own.predictions_ST) * int(of_class_T.sum())),
                "distance": float(distance_CC[label, predicted]),
                "nearest": [names[c] for c in nearness_CC[label].topk(min(3, len(names) - 1)).indices.tolist()],
                "images": thumbnails(of_class_T & (own.predictions_ST == predicted).any(0)),
                "images_of_predicted": thumbnails(labels_T == predicted),
            }
        )
    binaries = pa.list_(pa.binary())
    types = [pa.string(), pa.string(), pa.float64(), pa.float64(), pa.list_(pa.string()), binaries, binaries]
    columns = ("label", "predicted", "share", "distance", "nearest", "images", "images_of_predicted")
    return pa.Table.from_pylist(lines, schema=pa.schema(list(zip(columns, types, strict=True))))


def _thumbnail(image: Mapping[str, Any]) -> bytes | None:
    """Return an image of a benchmark, given by its `path` or `data`, as a small WebP; None if it is not there.

    A benchmark of features has no images, and files may have gone since their features were made.
    """
    small = decode(image["path"], image["data"])
    if isinstance(small, str):
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=75)
    return buffer.getvalue()


def _spread(n: int, most: int) -> Tensor:
    """Return at most `most` of the indices below n, evenly spread, both ends among them."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()
