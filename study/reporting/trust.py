"""The report's answer to: can I trust the choice?"""

from collections.abc import Sequence

from study.evaluation.leaderboard import ORACLE, SCORE_COLUMNS, Row
from study.evaluation.leaderboard_text import difference, percent
from study.outputs.results import Results
from study.reporting.page import Chart, Section
from study.reporting.style import MUTED, rows_by_method


def trust_section(results: Results, others: Sequence[Results]) -> Section:
    """Say what selection looked at, and how far its choice lies behind the best one. `others`: oracles among them."""
    paragraphs, own = selection_in_words(results), results.own
    refitted = [r for r in results.rows if own and r.method == own.method and r.test_h_mean is not None]
    if own and own.test_h_mean is not None and len(refitted) > 1:
        best = max(r.test_h_mean or 0 for r in refitted)
        paragraphs.append(
            f"Of the {len(refitted)} refitted configurations, the one that selection ranked first is "
            f"{percent(best - own.test_h_mean)} points of H behind the one that is best on the test images."
        )
    oracles = {o.run.name: o.own for o in others if o.own and o.own.select == ORACLE and o.own.test_h_mean is not None}
    for name, oracle in oracles.items():
        if own and own.test_h_mean is not None and oracle.test_h_mean is not None:
            gap = oracle.test_h_mean - own.test_h_mean
            paragraphs.append(
                f"The oracle study “{name}”, which chose by the test labels themselves, reaches H = "
                f"{percent(oracle.test_h_mean)} ({oracle.config_id}): the gap to it is {difference(gap)} points, the "
                "price of choosing without those labels."
            )
    if results.interrupted:
        requested = results.run.options.configs
        paragraphs.append(
            f"The study was interrupted: {len(results.configurations)} configurations of its own method were finished"
            f"{'' if requested is None else f', {requested} were requested'}. The choice was made among those."
        )
    charts = score_chart(results)
    if results.is_scored:
        charts.append(honest_chart(results, list(oracles.values())))
    return Section(id="trust", title="Can I trust it?", paragraphs=paragraphs, charts=charts)


_TRANSDUCTIVE = (
    "This is transductive: training and selection saw the test images, without their labels. On images that they have "
    "not seen, expect less."
)
_MUTUAL_INFORMATION = (
    "The score takes in how decided and how varied the predictions on unlabelled target images are (their mutual "
    "information), which needs no label."
)
_AGREEMENT = (
    "While the search ran, configurations were ranked by how far they agree, on unlabelled target images, with what "
    "zero-shot CLIP, InMaP, TransCLIP and ZLaP predict together: these train nothing."
)
_CRITERIA = {
    "consensus": (
        _AGREEMENT,
        "At its end, all complete configurations voted for a class for each target image, once per fold and per "
        "transductive head. Those that agree best with the class that has the most votes were chosen.",
        _TRANSDUCTIVE,
    ),
    "agreement": (_AGREEMENT, _TRANSDUCTIVE),
    "mi": (_MUTUAL_INFORMATION, _TRANSDUCTIVE),
    "h*mi": (_MUTUAL_INFORMATION, _TRANSDUCTIVE),
    "h+mi": (_MUTUAL_INFORMATION, _TRANSDUCTIVE),
}
"""What selection looked at beyond the folds, by criterion; h+mi is of older studies."""


def selection_in_words(results: Results) -> list[str]:
    """Say what selection looked at, for a reader who has not seen the project."""
    data, options, is_ablation = results.run.data, results.run.options, results.run.is_ablation
    if options.select == ORACLE:
        return [
            "This is an oracle study: configurations were chosen by the labels of the test images themselves. Its "
            "numbers say what perfect knowledge would have chosen. They are an upper bound and must not be quoted as "
            "a result."
        ]
    folds = "several" if options.folds is None else options.folds
    words = [
        f"Selection saw labelled images of the {data.seen_classes} seen classes only ({data.source_images} of them). "
        f"No label of the {data.unseen_classes} unseen classes and no label of a test image was ever in reach of the "
        "code that trains or chooses configurations."
        if data
        else "Selection saw labelled images of seen classes only; no label of an unseen class or of a test image.",
        f"To rank configurations, the seen classes were dealt into {folds} folds, and each "
        "fold in turn played the unseen classes: its labels were withheld in training, then used for scoring. H on the "
        "folds is the harmonic mean of the accuracy on held-out images of the remaining classes and on images of the "
        "fold's.",
    ]
    words += _CRITERIA.get(results.run.criterion, ())
    top, seeds = ("" if n is None else n for n in (options.top, options.seeds))
    times = "once" if results.run.scorings == 1 else f"{results.run.scorings} times, since the study was extended"
    refitted = "Each variant was" if is_ablation else f"The best {top} configurations were"
    words.append(
        f"{refitted} then trained again on all seen classes with {seeds} seeds each"
        + (
            f", and the test images were scored {times}."
            if results.is_scored
            else ". No target image has a label: none was scored."
        )
    )
    if not is_ablation:
        words[-1] += (
            " The row to quote is the one that selection ranked first (marked selected), not the best in the test."
        )
    return words


def score_chart(results: Results) -> list[Chart]:
    """Draw the refitted rows of the study's own method by the score that chose among them, where that is not H."""
    own = results.own
    if own is None or own.val_criterion in ("", "h"):
        return []
    of_own = [r for r in results.rows if r.method == own.method]
    rows = [r for r in of_own if r.score is not None and r.test_h_mean is not None]
    if len(rows) < 2:
        return []
    hover = "score %{x:.2f}, test %{y:.2f}"
    figure = rows_by_method(
        results, rows, SCORE_COLUMNS[rows[0].val_criterion], "test_h_mean", hover=hover, deviation="test_h_std"
    )
    title = f"{rows[0].val_criterion} score x 100"
    figure.update_layout(xaxis_title=title, yaxis_title="H on the test images, %", showlegend=False)
    return [
        Chart(
            id="chart-score",
            title="Does the score that chose rank well?",
            caption=f"The refitted configurations of {own.method}; the star has the highest score. They are the best "
            "of the search by this score, so close together: their order here says little of the search as a whole.",
            figure=figure,
        )
    ]


def honest_chart(results: Results, oracles: Sequence[Row]) -> Chart:
    """Draw the refitted rows by H on the folds and on the test images; a line for the row that each oracle chose."""
    rows = [r for r in results.rows if r.val_h_mean is not None and r.n_seeds and r.test_h_mean is not None]
    hover = "folds %{x:.2f}, test %{y:.2f}"
    figure = rows_by_method(results, rows, "val_h_mean", "test_h_mean", hover=hover, deviation="test_h_std")
    for row in oracles:
        assert row.test_h_mean is not None
        figure.add_hline(
            y=100 * row.test_h_mean,
            line={"dash": "dash", "width": 1, "color": MUTED},
            annotation={"text": "chosen by the test labels", "font": {"color": MUTED}},
            annotation_position="top left",
        )
    figure.update_layout(xaxis_title="H on the selection folds, %", yaxis_title="H on the test images, %")
    return Chart(
        id="chart-honest",
        title="Do the folds rank as the test does?",
        caption="Each refitted configuration; stars were chosen. Points that rise to the right mean that the folds "
        "rank configurations as the test images do. The two scales differ: folds hold fewer classes.",
        figure=figure,
    )
