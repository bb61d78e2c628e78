"""The report: one HTML file that says what was searched, what won, whether to trust it, and what to try next.

It reads a study's files and computes next to nothing: what it shows was written by the final evaluation. To write it
anew, with an ablation or an oracle study of the same method beside it: `python study/report.py results/NAME`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import json
from collections.abc import Sequence

import numpy as np

import search_spaces
from data_prep.storage import Storage, join, locate
from search_spaces import Ablation
from study.analysis import GUESS
from study.charts import (
    ablation_chart,
    configurations_chart,
    curves_chart,
    errors_chart,
    gain_chart,
    history_chart,
    honest_chart,
    knob_charts,
    landscape_chart,
    lanes_chart,
    rotations_chart,
    seconds_chart,
    tested_chart,
)
from study.leaderboard import ORACLE, ORACLE_NOTE, Row, difference, percent
from study.ledger import Ledger
from study.page import Section, render
from study.results import Results, for_looking, oracles_beside, read_results
from study.tables import (
    ablation_table,
    best_table,
    confusions_table,
    facts_table,
    failures_table,
    knobs_table,
    leaderboard_table,
)

REPORT = "report.html"
REFRESH_S = 30
"""Seconds after which the report of a running study is written, and loads itself, again."""
NEAR = 2
"""Edges in WordNet between two classes that share their hypernym."""


def write_report(storage: Storage, *, ledger: Ledger | None = None, beside: Sequence[Storage] = ()) -> str:
    """Write report.html beside the leaderboard; returns its path. `beside`: an oracle's or ablation's folder.

    `ledger`: of the search that is running; the report then says so, and loads itself again.
    """
    if ledger:
        page = render(f"{ledger.folder.name} (running)", running_sections(ledger), refresh_s=REFRESH_S)
    else:
        results = read_results(storage)
        others = [read_results(s) for s in beside] or oracles_beside(storage, results)
        oracle = any(r.select == ORACLE for r in results.rows)
        page = render(
            f"{results.name}: {results.searched} on {results.benchmark}",
            finished_sections(results, others),
            warning=ORACLE_NOTE if oracle else "",
        )
    storage.write(REPORT, page.encode())
    return join(storage.shown, REPORT)


# --- words ----------------------------------------------------------------------------------------------------------


def selection_in_words(results: Results) -> list[str]:
    """What selection looked at, for a reader who has not seen the project."""
    data, options = results.run.get("data", {}), results.run.get("options", {})
    selection = options.get("selection", {})
    if selection.get("select") == ORACLE:
        return [
            "This is an oracle study: configurations were chosen by the labels of the test images themselves. Its "
            "numbers say what perfect knowledge would have chosen. They are an upper bound and must not be quoted as "
            "a result."
        ]
    words = [
        "Selection saw labelled images of the {seen_classes} seen classes only ({source_images} of them). No label of "
        "the {unseen_classes} unseen classes and no label of a test image was ever in reach of the code that trains "
        "or chooses configurations.".format(**data)
        if data
        else "Selection saw labelled images of seen classes only; no label of an unseen class or of a test image.",
        f"To rank configurations, the seen classes were dealt into {selection.get('folds', 'several')} folds, and each "
        "fold in turn played the unseen classes: its labels were withheld in training, then used for scoring. H on the "
        "folds is the harmonic mean of the accuracy on held-out images of the remaining classes and on images of the "
        "fold's.",
    ]
    if "mi" in results.run.get("criterion", ""):
        words.append(
            "The score adds how decided and how varied the predictions on unlabelled target images are (their mutual "
            "information), which needs no label."
        )
    many = "Each variant was" if _is_ablation(results) else f"The best {selection.get('top', '')} configurations were"
    words.append(
        f"{many} then trained again on all seen classes with {selection.get('seeds', '')} seeds each, and the test "
        "images were scored once."
    )
    if not _is_ablation(results):
        words[-1] += (
            " The row to quote is the one that selection ranked first (marked selected), not the best in the test."
        )
    return words


def _is_ablation(results: Results) -> bool:
    return ":" in results.run["reference"]


def _about(results: Results) -> str:
    """What was done, in short, for a reader who has not seen the project."""
    data, done = results.run.get("data"), [c for r in results.rotations or [results] for c in r.configurations]
    knobs = len((results.rotations or [results])[0].identity.get("knobs", ()))
    words = (
        f"{len(done)} configurations of its {knobs} knobs were compared" if done else "Given configurations were scored"
    )
    if data:
        words += (
            " for learning {seen_classes} seen classes from {source_images} labelled images and recognising "
            "{unseen_classes} more classes of which only the names are known".format(**data)
        )
    honest = (
        "" if any(r.select == ORACLE for r in results.rows) else "without a label of an unseen class or a test image"
    )
    chosen = f", and the choice among them was made {honest}" if done and honest else ""
    return f"{words}{chosen}. H is the harmonic mean of the accuracies on seen and on unseen classes."


def _verdict(own: Row) -> str:
    if own.h_gain_lo is None or own.h_gain_hi is None:
        return ""
    if own.h_gain_lo > 0:
        return "The interval excludes zero: on other test images of this kind the gain would very likely persist."
    if own.h_gain_hi < 0:
        return "The interval lies below zero: zero-shot CLIP, without any training, is better here."
    return "The interval includes zero: on these test images the method cannot be told from zero-shot CLIP."


# --- sections -------------------------------------------------------------------------------------------------------


def finished_sections(results: Results, others: Sequence[Results] = ()) -> list[Section]:
    """All sections for which the study has what they need."""
    ablations = [r for r in (results, *others) if _is_ablation(r)]
    sections = [
        _headline(results),
        Section(
            id="leaderboard",
            title="Leaderboard",
            paragraphs=[
                "S and U are mean accuracies per seen and unseen class on the test images, H = 2SU / (S + U), all in "
                "per cent; ± is the deviation over seeds (of val H, over folds). Gains are over zero-shot CLIP, with "
                "95 % intervals from resampling test images in pairs. val H is what the folds of seen classes gave. "
                "Click a heading to sort, a configuration to see its values and the command that makes its row again."
            ],
            tables=[leaderboard_table(results)],
        ),
        _seen_unseen(results),
        _trust(results, others),
        _search(results),
        _landscape(results),
        _confusions(results),
        *(_ablation(a) for a in ablations),
        _rotations(results),
        _cost(results),
        _provenance(results),
    ]
    return [s for s in sections if s]


def running_sections(ledger: Ledger) -> list[Section]:
    """What there is to see while a search runs."""
    done, best = ledger.finished(), ledger.best(10)
    counts = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    words = f"{len(done)} configurations: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    return [
        Section(
            id="headline",
            title="The search is running",
            paragraphs=[
                words if done else "No configuration has finished yet.",
                f"This page loads itself again every {REFRESH_S} s.",
            ],
            charts=[configurations_chart(done), history_chart(for_looking(ledger)), lanes_chart(done)] if best else [],
            tables=[best_table(best)] if best else [],
        )
    ]


def _headline(results: Results) -> Section:
    own = results.own
    if own is None:
        return Section(id="headline", title="Result", paragraphs=["No configuration could be scored."])
    over = f"mean over {len(results.rotations)} rotations of the unseen classes, " if results.rotations else ""
    sentence = (
        f"{own.method} with the configuration that selection chose reaches H = {percent(own.test_h_mean)} on "
        f"{own.benchmark}, {difference(own.h_gain)} points over zero-shot CLIP ({over}95 % interval "
        f"{difference(own.h_gain_lo)} to {difference(own.h_gain_hi)})."
    )
    return Section(
        id="headline",
        title="Result",
        paragraphs=[sentence, _verdict(own), _about(results)],
        charts=[gain_chart(results)],
    )


def _seen_unseen(results: Results) -> Section:
    charts = [configurations_chart(results.configurations)] if results.configurations else []
    charts.append(tested_chart(results))
    if "curves" in results.tables:
        charts.append(curves_chart(results))
    return Section(
        id="seen-unseen",
        title="Seen against unseen",
        paragraphs=["A method that favours the classes it has labels for gains S and loses U; H rewards the balance."],
        charts=charts,
    )


def _trust(results: Results, others: Sequence[Results]) -> Section:
    paragraphs, own = selection_in_words(results), results.own
    refitted = [r for r in results.rows if own and r.method == own.method and r.test_h_mean is not None]
    if own and own.test_h_mean is not None and len(refitted) > 1:
        best = max(r.test_h_mean or 0 for r in refitted)
        paragraphs.append(
            f"Of the {len(refitted)} refitted configurations, the one that selection ranked first is "
            f"{percent(best - own.test_h_mean)} points of H behind the one that is best on the test images."
        )
    oracles = {o.name: o.own for o in others if o.own and o.own.select == ORACLE and o.own.test_h_mean is not None}
    for name, oracle in oracles.items():
        if own and own.test_h_mean is not None and oracle.test_h_mean is not None:
            gap = oracle.test_h_mean - own.test_h_mean
            paragraphs.append(
                f"The oracle study “{name}”, which chose by the test labels themselves, reaches H = "
                f"{percent(oracle.test_h_mean)} ({oracle.config_id}): the gap to it is {difference(gap)} points, the "
                "price of choosing without those labels."
            )
    charts = [honest_chart(results, list(oracles.values()))]
    return Section(id="trust", title="Can I trust it?", paragraphs=paragraphs, charts=charts)


def _search(results: Results) -> Section | None:
    if results.looking is None or not any(c.state == "complete" for c in results.configurations):
        return None
    done, identity = results.configurations, results.identity
    states = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    space = search_spaces.load(identity["space"]) if identity["space"] in search_spaces.names() else None
    why = {} if space is None or isinstance(space, Ablation) else {k.name: k.why for k in space.knobs}
    tables = [knobs_table(identity["knobs"], json.loads(results.own.params) if results.own else {}, why)]
    failed = [c for c in done if c.state == "failed"]
    if failed:
        tables.append(failures_table(failed))
    others = ", ".join(f"{name} ({len(found)})" for name, found in results.baselines.items() if found)
    return Section(
        id="search",
        title="What was searched, and what mattered",
        paragraphs=[
            f"{len(done)} configurations of {len(identity['knobs'])} knobs, {identity['epochs']} epochs each: "
            f"{states['complete']} trained to the end, {states['pruned']} stopped early because half of the others "
            f"were better, {states['failed']} failed. Sampler: {identity['sampler']}."
            + (f" Baselines were searched with the same budget: {others}." if others else "")
        ],
        charts=[history_chart(results.looking), lanes_chart(done), *knob_charts(results.looking)],
        tables=tables,
    )


def _landscape(results: Results) -> Section | None:
    if "landscape" not in results.tables or results.own is None:
        return None
    return Section(
        id="landscape",
        title="Tau and lambda",
        paragraphs=[
            "H of the selected configuration (first seed) on the test images at every threshold tau and every residual "
            "strength lambda. The star is the pair that was chosen on the folds of seen classes, before these images "
            "were scored: on a broad plateau around it the choice matters little."
        ],
        charts=[landscape_chart(results.tables["landscape"].to_pandas(), json.loads(results.own.params))],
    )


def _confusions(results: Results) -> Section | None:
    if "errors" not in results.tables or results.own is None:
        return None
    errors = results.tables["errors"].to_pandas()
    unseen = errors[errors.label_unseen & np.isfinite(errors.distance)]
    baseline = next((r.method for r in results.rows if r.config_id == "zero-shot-ensemble"), "")
    of_method = {
        m: unseen[unseen.method == m].groupby("distance").images.sum() for m in (results.own.method, baseline, GUESS)
    }
    shares = {method: images / images.sum() for method, images in of_method.items() if len(images)}
    means = {method: f"{(share * share.index).sum():.2f}" for method, share in shares.items()}
    near = {method: f"{100 * share[share.index <= NEAR].sum():.0f} % near" for method, share in shares.items()}
    own = errors[(errors.method == results.own.method) & errors.label_unseen]
    crossed = own[~own.predicted_unseen].images.sum() / max(own.images.sum(), 1e-9)
    paragraphs = [
        f"Of the wrongly classified images of unseen classes, {100 * crossed:.0f} % are taken for a seen class. Errors "
        f"lie {means.get(results.own.method, 'no')} edges away in WordNet on average, those of zero-shot CLIP "
        f"{means.get(baseline, 'none')}, and a guess among all wrong classes {means.get(GUESS, 'none')}. Near ones are "
        f"errors at a distance of up to {NEAR}: the predicted class is a sibling of the true one, or one of the two "
        "lies right above the other.",
    ]
    tables = []
    if "confusions" in results.tables:
        paragraphs.append(
            "The table holds the commonest confusions of an unseen class with a seen one, nearest in WordNet first, "
            "with the images they befell, images of the class they were taken for, and the classes whose text "
            "prototypes lie nearest: an error among those is one that the texts alone suggest."
        )
        tables.append(confusions_table(results.tables["confusions"]))
    return Section(
        id="confusions",
        title="What does it confuse?",
        paragraphs=paragraphs,
        charts=[errors_chart(shares, {m: f"{m}: mean {means[m]}, {near[m]}" for m in shares})],
        tables=tables,
    )


def _ablation(ablation: Results) -> Section:
    reference = ablation.run["reference"]
    rows = [r for r in ablation.rows if r.method.partition(":")[0] == ablation.searched]
    rows.sort(key=lambda r: (r.method != reference, r.h_behind or 0.0))
    variants = {r.method.partition(": ")[2] or r.method: r for r in rows}
    paragraphs = [
        f"Study “{ablation.name}”: the same configuration with one part removed or changed at a time, each variant "
        "trained and scored like the full model. An interval that includes zero means that these test images cannot "
        "tell the variant from the full model."
    ]
    lines = ablation.tables["ablation"].to_pylist() if "ablation" in ablation.tables else []
    published = {
        line["variant"]: [line[f"published_{name}"] for name in ("seen", "unseen", "h")]
        for line in lines
        if line["published_h"] is not None
    }
    if published:
        paragraphs.append(
            f"Published numbers are those of {lines[0]['published_in']}: another data set, so only the order of the "
            "variants can be compared."
        )
    return Section(
        id="ablation",
        title="What does each part do?",
        paragraphs=paragraphs,
        charts=[ablation_chart(variants, {name: h for name, (_, _, h) in published.items()})],
        tables=[ablation_table(variants, published)],
    )


def _rotations(results: Results) -> Section | None:
    if not results.rotations:
        return None
    return Section(
        id="rotations",
        title="Rotation by rotation",
        paragraphs=[
            "Each rotation makes other classes the unseen ones and is a whole study of its own: search, selection and "
            "test. Its report, with its search, confusions and rows to run again, is report.html in its folder "
            "(rotation-0, rotation-1, …)."
        ],
        charts=[rotations_chart(results)],
    )


def _cost(results: Results) -> Section | None:
    seconds = results.run.get("seconds", {})
    if not seconds:
        return None
    studies = results.rotations or [results]
    done = [c for s in studies for found in (s.configurations, *s.baselines.values()) for c in found]
    facts = []
    options = results.run.get("options", {})
    if done and seconds.get("search"):
        pruned = sum(c.state == "pruned" for c in done)
        facts.append(f"{60 * len(done) / seconds['search']:.1f} configurations per minute")
        facts.append(f"{100 * pruned / len(done):.0f} % of them stopped early")
        concurrent = results.run.get("concurrent")
        if concurrent:
            busy = sum(c.train_seconds for c in done) / (seconds["search"] * concurrent)
            facts.append(f"{100 * busy:.0f} % of the actors' time in the search spent training and scoring")
    price = options.get("resources", {}).get("price")
    if price is not None:
        facts.append(f"about {price * sum(seconds.values()) / 3600:.2f} at {price:g} per hour")
    resumed = options.get("output", {}).get("resume")
    words = f"{sum(seconds.values()):.0f} seconds in all" + (f": {', '.join(facts)}." if facts and not resumed else ".")
    if resumed:
        words += " The study was resumed: times are those of its last run."
    return Section(id="cost", title="What did it cost?", paragraphs=[words], charts=[seconds_chart(seconds)])


def _provenance(results: Results) -> Section:
    run = results.run
    options = run.get("options", {})
    facts = {
        "command": run.get("command", ""),
        "checkpoint": results.rows[0].clip,
        "feature fingerprint": run.get("feature_fingerprint", ""),
        "seed": str(options.get("search", {}).get("seed", "")),
        "selection criterion": run.get("criterion", ""),
        "versions": ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()),
        "cluster": ", ".join(_resource(*item) for item in run.get("hardware", {}).get("cluster", {}).items()),
    }
    return Section(id="provenance", title="Where it comes from", tables=[facts_table(facts, options)])


def _resource(name: str, amount: float) -> str:
    return f"{name} {amount / 2**30:.1f} GB" if name.endswith("memory") else f"{name} {amount:g}"


def main(study: Path, /, *, beside: tuple[Path, ...] = ()) -> None:
    """Write the report of a finished study again.

    Args:
        study: Its folder.
        beside: Folders of ablation or oracle studies to show with it.
    """
    print(write_report(locate(study), beside=[locate(f) for f in beside]))


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
