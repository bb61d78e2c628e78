"""The leaderboard: one row per refitted configuration and baseline, ranked by the test's mean H over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

ORACLE = "oracle"


ORACLE_NOTE = "ORACLE: configurations were selected with test labels. An upper bound, not a result."

OTHER_SIDE_NOTE = (
    "Many test images get a seen class where zero-shot CLIP gives an unseen one, or the other way round: {methods}. "
    "What divides the two was found on labelled images and may not hold on these: do not trust val H of such a row."
)

MANY_ON_THE_OTHER_SIDE = 1 / 3
"""Share of the test images from which it is said, a rule of thumb: rows of the studies of four rotations in
search_spaces/README.md have 0.3 at most, and PVA where it fails 0.39 and 0.61. On drawings, which look different, too,
"Tip-Adapter, calibrated" has up to 0.41."""

UNSCORED_NOTE = (
    "NOT SCORED: no target image has a label. Selection needs none, but which row is best on the target is not known: "
    "rows are not ranked, and the study's choice stands first."
)

INTERRUPTED_NOTE = "INTERRUPTED: the study was ended before it was finished. Its result comes when it is resumed."


SCORE_COLUMNS = {
    "consensus": "val_consensus",
    "agreement": "val_agreement",
    "h*mi": "val_h_mi",
    "h": "val_h_mean",
    "mi": "val_mi",
}
"""The column of each criterion: scores of different ones cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What selection maximises of a configuration."""

    criterion: str
    """The criterion, a key of `SCORE_COLUMNS`."""
    value: float
    """Its value."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row before its test: which configuration it is, and what selection said of it."""

    method: str
    """Method's name on the leaderboard."""
    config_id: str
    """The configuration's id in the study, or the baseline's."""
    score: Score | None = None
    """What selection maximises; None where nothing was selected."""
    val_alike: float | None = None
    """Share of the search's other choices that selection could not tell from this one."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Selection metrics: val_h_mean, val_h_std and so on."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's fields with their values."""
    pareto: bool = False
    """On the Pareto front of a two-objective study."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard; None where a number does not exist (a baseline has no selection score)."""

    rank: int = 0
    """1 is the best `test_h_mean`; `rank_rows` sets it. Without any, rows are numbered. Published rows have none: 0."""
    method: str
    """Method's name."""
    config_id: str
    """The configuration's id in the study, or the baseline's."""
    select: str
    """What selection looked at: pseudo-unseen, or oracle."""
    benchmark: str
    """Benchmark."""
    clip: str
    """Checkpoint."""
    val_h_mean: float | None = None
    """Selection: H, mean over folds."""
    val_h_std: float | None = None
    """Its deviation over folds."""
    test_known_micro: float | None = None
    """Accuracy over images of seen classes; this and the other test numbers are means over seeds."""
    test_unknown_micro: float | None = None
    """Accuracy over images of unseen classes."""
    test_all_micro: float | None = None
    """Accuracy over all images."""
    test_seen_mean: float | None = None
    """S: mean accuracy of the seen classes."""
    test_unseen_mean: float | None = None
    """U: mean accuracy of the unseen classes."""
    test_h_mean: float | None = None
    """H = 2SU / (S + U)."""
    test_h_std: float | None = None
    """Its deviation over seeds."""
    h_gain: float | None = None
    """H minus zero-shot CLIP's."""
    h_gain_lo: float | None = None
    """Lower end of the gain's paired-bootstrap 95 % interval over test images."""
    h_gain_hi: float | None = None
    """Upper end."""
    n_seeds: int = 0
    """Refits."""
    train_seconds: float | None = None
    """Time of the refits."""
    feature_fingerprint: str
    """Fingerprint of the feature cache."""
    source: str = "this study"
    """Who measured it: this study, or a publication."""
    params: str = "{}"
    """The configuration, as JSON."""
    selected: bool = False
    """The one to quote: of its method's rows the one with the best score in selection; `rank_rows` sets it."""
    pareto: bool = False
    """On the Pareto front of a two-objective study."""
    test_t1: float | None = None
    """Mean accuracy of the unseen classes when only they compete."""
    test_ausuc: float | None = None
    """Area under the curve of S against U over every threshold between seen and unseen classes."""
    test_h_oracle_tau: float | None = None
    """H at the threshold that is best on the test images: what choosing the threshold honestly cost is its distance."""
    h_behind: float | None = None
    """How far H lies behind the selected row of the study's own method (in an ablation: the full model's)."""
    h_behind_lo: float | None = None
    """Lower end of that difference's paired-bootstrap 95 % interval."""
    h_behind_hi: float | None = None
    """Upper end."""
    val_criterion: str = ""
    """Selection: the criterion that it maximises, which says in which column the score is; "" where none was."""
    val_consensus: float | None = None
    """Score: agreement with the consensus of all trained configurations."""
    val_agreement: float | None = None
    """Score: agreement with a consensus of training-free methods."""
    val_h_mi: float | None = None
    """Score: geometric mean of H on the folds and of mutual information. That of criterion `h` is `val_h_mean`."""
    val_mi: float | None = None
    """Score: mutual information of the target images and their predictions."""
    val_alike: float | None = None
    """Of the consensus' choice: share of the others that agree with it as well, within the noise of its images."""
    new_seen_mean: float | None = None
    """S on the target images that neither training nor selection saw (`--test-share`); this and the next six."""
    new_unseen_mean: float | None = None
    """U on them."""
    new_h_mean: float | None = None
    """H on them."""
    new_h_std: float | None = None
    """Its deviation over seeds."""
    new_h_gain: float | None = None
    """H minus zero-shot CLIP's, on them."""
    new_h_gain_lo: float | None = None
    """Lower end of the gain's interval."""
    new_h_gain_hi: float | None = None
    """Upper end."""
    test_h_of_means: float | None = None
    """2SU / (S + U) of S and U above, as published tables have it; `test_h_mean` is the mean of every seed's H."""
    test_other_side: float | None = None
    """Share of test images that get a seen class where zero-shot CLIP says an unseen one, or the other way round. It
    takes no label to know: many of them say that what divides seen from unseen may not hold on these images."""

    @property
    def score(self) -> Score | None:
        """What selection maximises; without one a row is not selected."""
        return score_of(vars(self))

    @property
    def is_choice(self) -> bool:
        """Whether the consensus chose it; another row may agree more, by noise only."""
        return self.val_alike is not None


def score_of(row: Mapping[str, Any]) -> Score | None:
    """Return the score in the columns of a row, `score_columns` the other way round."""
    criterion = row["val_criterion"]
    value = row[SCORE_COLUMNS[criterion]] if criterion else None
    return None if value is None else Score(criterion=criterion, value=value)


def score_columns(score: Score | None) -> dict[str, Any]:
    """Return the columns of `Row` that hold a score."""
    return {} if score is None else {"val_criterion": score.criterion, SCORE_COLUMNS[score.criterion]: score.value}


def notes(rows: Sequence[Row], *, interrupted: bool) -> list[str]:
    """Return what must stand above every view of these rows. `interrupted`: whether their study was."""
    marks = {
        ORACLE_NOTE: any(row.select == ORACLE for row in rows),
        INTERRUPTED_NOTE: interrupted,
        UNSCORED_NOTE: bool(rows) and all(row.test_h_mean is None for row in rows),
    }
    found = [note for note, holds in marks.items() if holds]
    shares = [(row.method, row.test_other_side or 0.0) for row in rows if row.selected]
    if astray := [f"{method} for {100 * share:.0f} %" for method, share in shares if share > MANY_ON_THE_OTHER_SIDE]:
        found.append(OTHER_SIDE_NOTE.format(methods="; ".join(astray)))
    return found


_ARROW: dict[Any, pa.DataType] = {int: pa.int64(), bool: pa.bool_(), str: pa.string(), float | None: pa.float64()}


SCHEMA = pa.schema([(f.name, _ARROW[f.type]) for f in fields(Row)])
"""The columns, in order."""


def mean_over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return a row's test columns from the metrics of every seed (see `metrics.evaluate`)."""
    mean = {name: statistics.fmean(s[name] for s in seeds) for name in seeds[0]}
    h = mean.pop("test_h")
    return {
        **mean,
        "test_h_mean": h,
        "test_h_std": sample_deviation([s["test_h"] for s in seeds]),
        "n_seeds": len(seeds),
    }


def h_of_means(seen: float | None, unseen: float | None) -> float | None:
    """Return the harmonic mean of two means, None where one of them does not exist."""
    return None if seen is None or unseen is None else statistics.harmonic_mean([seen, unseen])


def sample_deviation(values: Sequence[float]) -> float:
    """Return the sample's standard deviation, 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def rank_rows(rows: Sequence[Row]) -> list[Row]:
    """Rank rows by mean test H, best first, and mark every method's selected row: the consensus' choice, or the best.

    Rows without a test, where no image has a label, keep their order.

    Raises `ValueError` where rows of a method have scores of different criteria: none of them is the best.
    """
    best: dict[str, tuple[Score, Row]] = {}
    for row in rows:
        if row.score is None:
            continue
        score, ahead = best.setdefault(row.method, (row.score, row))
        if score.criterion != row.score.criterion:
            raise ValueError(f"{row.method} has scores of {score.criterion} and of {row.score.criterion}")
        if row.is_choice or (row.score.value > score.value and not ahead.is_choice):
            best[row.method] = row.score, row
    selected = {method: row for method, (_, row) in best.items()}
    ordered = sorted(rows, key=lambda r: math.inf if r.test_h_mean is None else -r.test_h_mean)
    return [replace(row, rank=i, selected=selected.get(row.method) is row) for i, row in enumerate(ordered, start=1)]
