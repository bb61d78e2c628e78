"""The report: one HTML file that says what was searched, what won, whether to trust it, and what to try next.

It reads a study's files and computes next to nothing: what it shows was written by the final evaluation. To write it
anew, with an ablation or an oracle study of the same method beside it: `python study/report.py results/NAME`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import json
import shlex
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pyarrow as pa
from optuna import visualization
from optuna.trial import TrialState
from pyarrow.fs import FileType

import search_spaces
from data_prep.errors import UserError
from data_prep.storage import Storage, join, locate
from search_spaces import Ablation
from study.analysis import GUESS, read_table
from study.leaderboard import ORACLE, ORACLE_NOTE, Row, read_leaderboard
from study.ledger import JOURNAL, Configuration, Ledger, read_ledger
from study.page import Cell, Chart, Section, Table, render
from study.storage import pull

REPORT = "report.html"
REFRESH_S = 30
"""Seconds after which the report of a running study is written, and loads itself, again."""
OWN, OTHER, MUTED = "#1f78c8", "#e07b1a", "#8a94a3"
PALETTE = (OWN, OTHER, "#2a9d6f", "#c2489a", "#8a6fd1", "#b58b00", "#d1495b", "#5b8c9a", "#9c755f", "#7f9f3f")
NEAR = 2
"""Edges in WordNet between two classes that share their hypernym."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study's files, read."""

    name: str
    """Name of the study."""
    folder: str
    """Where its files are."""
    rows: list[Row]
    """Its leaderboard, published rows included; empty while it runs."""
    run: dict[str, Any]
    """Its run.json."""
    identity: dict[str, Any]
    """What its ledger was created with; empty where nothing was searched."""
    configurations: list[Configuration]
    """Finished configurations of the study's own method."""
    looking: optuna.Study | None
    """The same as an Optuna study, for Optuna's own charts."""
    baselines: dict[str, list[Configuration]]
    """Finished configurations of the searched baselines, by space."""
    rotations: list["Results"]
    """One per rotation if there were several."""
    tables: dict[str, pa.Table]
    """What `analysis` wrote."""

    @property
    def own(self) -> Row | None:
        """The selected row of the study's own method: the first row that the others are compared with."""
        return next((r for r in self.rows if r.selected and r.method == self.run.get("reference")), None)


def write_report(storage: Storage, *, ledger: Ledger | None = None, beside: Sequence[Storage] = ()) -> str:
    """Write report.html beside the leaderboard; returns its path. `beside`: an oracle's or ablation's folder.

    `ledger`: of the search that is running; the report then says so, and loads itself again.
    """
    if ledger:
        page = render(f"{ledger.folder.name} (running)", running_sections(ledger), refresh_s=REFRESH_S)
    else:
        results = read_results(storage)
        others = [read_results(s) for s in beside] or _oracles_beside(storage, results)
        oracle = any(r.select == ORACLE for r in results.rows)
        page = render(
            f"{results.name}: {_method(results)} on {_benchmark(results)}",
            finished_sections(results, others),
            warning=ORACLE_NOTE if oracle else "",
        )
    storage.write(REPORT, page.encode())
    return join(storage.shown, REPORT)


# --- reading --------------------------------------------------------------------------------------------------------


def read_results(storage: Storage) -> Results:
    """All that the report shows of a finished study. Raises `UserError` if there is no leaderboard."""
    try:
        rows = read_leaderboard(storage)
    except FileNotFoundError as error:
        raise UserError(f"a finished study must have a leaderboard, there is none: {error}") from None
    run = json.loads(storage.read("run.json") or b"{}")
    methods = [r.method for r in rows if json.loads(r.params)] or [rows[0].method]
    run.setdefault("reference", next((m for m in methods if m.endswith(": full")), methods[0]))  # older studies
    configurations, identity, looking = _read_ledger(storage)
    spaces = [i.base_name for i in _folders(storage, "baselines")]
    tables = {name: read_table(storage, name) for name in ("curves", "landscape", "errors", "confusions")}
    return Results(
        name=run.get("name") or storage.root.rpartition("/")[2],
        folder=storage.shown,
        rows=rows,
        run=run,
        identity=identity,
        configurations=configurations,
        looking=looking,
        baselines={s: _read_ledger(storage / f"baselines/{s}")[0] for s in spaces},
        rotations=[read_results(storage / i.base_name) for i in _folders(storage) if _is_rotation(i.base_name)],
        tables={name: table for name, table in tables.items() if table is not None},
    )


def _is_rotation(folder: str) -> bool:
    return folder.startswith("rotation-")


def _folders(storage: Storage, name: str = "") -> list[Any]:
    selector = pa.fs.FileSelector(f"{storage.root}/{name}", allow_not_found=True)
    found = [i for i in storage.filesystem.get_file_info(selector) if i.type == FileType.Directory]
    return sorted(found, key=lambda i: i.base_name)


@contextmanager
def _local_folder(storage: Storage) -> Iterator[Path]:
    """A local folder with the journal, which Optuna cannot read elsewhere."""
    if storage.is_local:
        yield Path(storage.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        pull(storage, Path(folder) / JOURNAL)
        yield Path(folder)


def _read_ledger(storage: Storage) -> tuple[list[Configuration], dict[str, Any], optuna.Study | None]:
    with _local_folder(storage) as folder:
        journal = folder / JOURNAL
        if not (journal.exists() and journal.stat().st_size):
            return [], {}, None
        ledger = read_ledger(folder)
        return ledger.finished(), ledger.identity, for_looking(ledger)


def for_looking(ledger: Ledger) -> optuna.Study:
    """Finished configurations, each once, under one objective (the score): what all of Optuna's charts can show."""
    trials = {t.number: t for t in ledger.trials()}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                state=states[c.state],
                value=c.score if c.state == "complete" else None,
                params=trials[c.number].params,
                distributions=trials[c.number].distributions,
                intermediate_values=dict(c.curve),
            )
            for c in ledger.finished()
        ]
    )
    return study


def _oracles_beside(storage: Storage, mine: Results) -> list[Results]:
    """Oracle studies of the same method and features in the same storage."""
    if not storage.is_local or not mine.own or mine.own.select == ORACLE:
        return []
    found = []
    for run in Path(storage.root).parent.glob("*/run.json"):
        options = json.loads(run.read_text()).get("options", {})
        if options.get("selection", {}).get("select") == ORACLE and (run.parent / "leaderboard.parquet").exists():
            found.append(read_results(locate(run.parent)))
    return [o for o in found if _comparable(o, mine)]


def _comparable(a: Results, b: Results) -> bool:
    def task(r: Results) -> tuple[Any, ...]:
        return (r.own and r.own.feature_fingerprint, r.run.get("options", {}).get("study", {}).get("rotation"))

    return task(a) == task(b) and a.run["reference"].partition(":")[0] == b.run["reference"].partition(":")[0]


# --- words ----------------------------------------------------------------------------------------------------------


def _pct(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return _pct(value, "+") + ("" if low is None or high is None else f" [{_pct(low, '+')}, {_pct(high, '+')}]")


def _method(results: Results) -> str:
    return results.run["reference"].partition(":")[0]


def _benchmark(results: Results) -> str:
    return results.rows[0].benchmark


def _params(row: Row) -> str:
    return json.dumps(json.loads(row.params), indent=1)


def rerun_command(row: Row, results: Results) -> str:
    """The command that makes a row again; "" for published ones and means over rotations."""
    if not row.n_seeds or results.rotations:
        return ""
    if row.params == "{}":  # zero-shot CLIP stands in every study
        return str(results.run.get("command", ""))
    return f"python study/run.py --rerun {shlex.quote(join(results.folder, f'configs/{row.config_id}.json'))}"


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
    words.append(
        f"The best {selection.get('top', '')} configurations were then trained again on all seen classes with "
        f"{selection.get('seeds', '')} seeds each, and the test images were scored once. The row to quote is the one "
        "that selection ranked first (marked selected), not the best on the test images."
    )
    return words


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
    ablations = [r for r in (results, *others) if ":" in r.run["reference"]]
    sections = [
        _headline(results),
        Section(
            id="leaderboard",
            title="Leaderboard",
            paragraphs=[
                "S and U are mean accuracies per seen and unseen class on the test images, H = 2SU / (S + U), all in "
                "per cent; ± is the deviation over seeds. Gains are over zero-shot CLIP, with 95 % intervals from "
                "resampling test images in pairs. val H is what the folds of seen classes gave. Click a heading to "
                "sort, a configuration to see its values and the command that makes its row again."
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
    done, looking = ledger.finished(), for_looking(ledger)
    best = ledger.best(10)
    counts = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    table = Table(
        id="best",
        columns=("configuration", "score", "H on folds", "S on folds", "U on folds"),
        rows=[
            [
                Cell(text=c.config_id, value=c.config_id, code=json.dumps(c.params, indent=1)),
                Cell(text=f"{c.score:.4f}", value=c.score),
                *(Cell(text=_pct(c.metrics[k]), value=c.metrics[k]) for k in ("val_h_mean", "val_seen", "val_unseen")),
            ]
            for c in best
        ],
    )
    charts = [_configurations_chart(done), *_optuna_charts(looking, brief=True)] if best else []
    words = f"{len(done)} configurations: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    return [
        Section(
            id="headline",
            title="The search is running",
            paragraphs=[
                words if done else "No configuration has finished yet.",
                f"This page loads itself again every {REFRESH_S} s.",
            ],
            charts=charts,
            tables=[table] if best else [],
        )
    ]


def _headline(results: Results) -> Section:
    own = results.own
    if own is None:
        return Section(id="headline", title="Result", paragraphs=["No configuration could be scored."])
    over = f"mean over {len(results.rotations)} rotations of the unseen classes, " if results.rotations else ""
    sentence = (
        f"{own.method} with the configuration that selection chose reaches H = {_pct(own.test_h_mean)} on "
        f"{own.benchmark}, {_pct(own.h_gain, '+')} points over zero-shot CLIP ({over}95 % interval "
        f"{_pct(own.h_gain_lo, '+')} to {_pct(own.h_gain_hi, '+')})."
    )
    shown = [r for r in results.rows if r.selected and r.h_gain is not None][::-1]
    figure = go.Figure()
    for r in shown:
        assert r.h_gain is not None and r.h_gain_lo is not None and r.h_gain_hi is not None
        figure.add_scatter(
            x=[100 * r.h_gain],
            y=[r.method],
            error_x={
                "array": [100 * (r.h_gain_hi - r.h_gain)],
                "arrayminus": [100 * (r.h_gain - r.h_gain_lo)],
                "symmetric": False,
            },
            mode="markers",
            marker={"size": 11, "color": OWN if r is own else MUTED},
            hovertemplate=f"{_interval(r.h_gain, r.h_gain_lo, r.h_gain_hi)}<extra>{r.method}</extra>",
        )
    figure.update_layout(showlegend=False, xaxis_title="points of H over zero-shot CLIP")
    return Section(
        id="headline",
        title="Result",
        paragraphs=[sentence, _verdict(own)],
        charts=[
            Chart(
                id="chart-gain",
                title="Gain over zero-shot CLIP",
                caption="Each method's selected configuration; bars are 95 % intervals over test images.",
                figure=figure,
                height=110 + 42 * len(shown),
            )
        ],
    )


_NUMBERS: dict[str, Any] = {
    "val H": lambda r: (_pct(r.val_h_mean), r.val_h_mean),
    "S": lambda r: (_pct(r.test_seen_mean), r.test_seen_mean),
    "U": lambda r: (_pct(r.test_unseen_mean), r.test_unseen_mean),
    "H": lambda r: (
        _pct(r.test_h_mean) + (f" ± {_pct(r.test_h_std)}" if r.n_seeds > 1 and r.test_h_std is not None else ""),
        r.test_h_mean,
    ),
    "gain [95 %]": lambda r: (_interval(r.h_gain, r.h_gain_lo, r.h_gain_hi), r.h_gain),
    "behind [95 %]": lambda r: (_interval(r.h_behind, r.h_behind_lo, r.h_behind_hi), r.h_behind),
    "known": lambda r: (_pct(r.test_known_micro), r.test_known_micro),
    "unknown": lambda r: (_pct(r.test_unknown_micro), r.test_unknown_micro),
    "all": lambda r: (_pct(r.test_all_micro), r.test_all_micro),
    "AUSUC": lambda r: ("" if r.test_ausuc is None else f"{r.test_ausuc:.3f}", r.test_ausuc),
}


def leaderboard_table(results: Results) -> Table:
    """Every row, with its unrounded numbers behind the shown ones."""
    rows = [[Cell(text=str(r.rank or "–"), value=r.rank or None), *row_cells(r, results)[1]] for r in results.rows]
    return Table(
        id="rows",
        columns=("rank", *row_cells(results.rows[0], results)[0]),
        rows=rows,
        strong=frozenset(i for i, row in enumerate(results.rows) if row is results.own),
        filter=True,
    )


def row_cells(row: Row, results: Results) -> tuple[tuple[str, ...], list[Cell]]:
    """Headings and cells of one row, without its rank."""
    on = {
        ORACLE: row.select == ORACLE,
        "selected": row.selected,
        "Pareto": row.pareto,
        "published": not row.n_seeds,
        "baseline": row.n_seeds and row.method.partition(":")[0] != _method(results),
    }
    code = "\n\n".join(filter(None, (rerun_command(row, results), _params(row) if row.params != "{}" else "")))
    return ("method", "configuration", *_NUMBERS, "source"), [
        Cell(text=row.method, marks=tuple(mark for mark, holds in on.items() if holds)),
        Cell(text=row.config_id, value=row.config_id, code=code),
        *(Cell(text=text, value=value) for text, value in (show(row) for show in _NUMBERS.values())),
        Cell(text=row.source),
    ]


def _colours(results: Results) -> dict[str, str]:
    """A method's colour in all charts; the study's own comes first."""
    methods = dict.fromkeys(([results.own.method] if results.own else []) + [r.method for r in results.rows])
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def _h_contours(figure: go.Figure, seen: Sequence[float], unseen: Sequence[float]) -> None:
    """Lines of equal H, in per cent, across the range of the points."""
    if not seen:
        return
    low_s, high_s = max(1.0, min(seen) - 3), min(100.0, max(seen) + 3)
    low_u, high_u = max(1.0, min(unseen) - 3), min(100.0, max(unseen) + 3)
    bottom, top = 2 * low_s * low_u / (low_s + low_u), 2 * high_s * high_u / (high_s + high_u)
    step = next(s for s in (1, 2, 5, 10, 20) if (top - bottom) / s <= 8)
    for h in np.arange(np.ceil(bottom / step) * step, top, step):
        s = np.linspace(max(low_s, h / 2 + 0.01), high_s, 80)
        u = h * s / (2 * s - h)
        inside = (u >= low_u) & (u <= high_u)
        if inside.sum() < 2:
            continue
        s, u = s[inside], u[inside]
        figure.add_scatter(
            x=s.tolist(),
            y=u.tolist(),
            mode="lines+text",
            line={"color": MUTED, "width": 1, "dash": "dot"},
            opacity=0.6,
            text=["" if i != len(s) // 2 else f"H {h:g}" for i in range(len(s))],
            textposition="middle center",
            textfont={"size": 10, "color": MUTED},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(range=[low_s, high_s])
    figure.update_yaxes(range=[low_u, high_u])


def _configurations_chart(done: Sequence[Configuration]) -> Chart:
    """All configurations by S and U on the folds, and the front of those that none beats in both."""
    judged = [c for c in done if c.metrics]
    figure = go.Figure()
    _h_contours(figure, [100 * c.metrics["val_seen"] for c in judged], [100 * c.metrics["val_unseen"] for c in judged])
    for state, colour in (("pruned", MUTED), ("complete", OWN)):
        of_state = [c for c in judged if c.state == state]
        figure.add_scatter(
            x=[100 * c.metrics["val_seen"] for c in of_state],
            y=[100 * c.metrics["val_unseen"] for c in of_state],
            text=[c.config_id for c in of_state],
            name=state,
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.75},
            hovertemplate="%{text}<br>S %{x:.2f}, U %{y:.2f}<extra></extra>",
        )
    front: list[Configuration] = []
    for c in sorted((c for c in judged if c.state == "complete"), key=lambda c: -c.metrics["val_seen"]):
        if not front or c.metrics["val_unseen"] > front[-1].metrics["val_unseen"]:
            front.append(c)
    figure.add_scatter(
        x=[100 * c.metrics["val_seen"] for c in front],
        y=[100 * c.metrics["val_unseen"] for c in front],
        name="Pareto front",
        mode="lines+markers",
        line={"color": OTHER, "width": 1.5},
        marker={"symbol": "circle-open", "size": 11, "color": OTHER},
        hoverinfo="skip",
    )
    figure.update_layout(xaxis_title="S on the folds, %", yaxis_title="U on the folds, %")
    return Chart(
        id="chart-configurations",
        title="Every configuration on the selection folds",
        caption="Pseudo-unseen against seen accuracy. Dotted lines join equal H; along the front neither accuracy can "
        "be had without giving up some of the other.",
        figure=figure,
    )


def _seen_unseen(results: Results) -> Section | None:
    charts = [_configurations_chart(results.configurations)] if results.configurations else []
    tested = [r for r in results.rows if r.n_seeds and r.test_seen_mean is not None and r.test_unseen_mean is not None]
    figure, colours = go.Figure(), _colours(results)
    points = [(100 * (r.test_seen_mean or 0), 100 * (r.test_unseen_mean or 0)) for r in tested]
    _h_contours(figure, [s for s, _ in points], [u for _, u in points])
    for method in dict.fromkeys(r.method for r in tested):
        of_method = [(r, point) for r, point in zip(tested, points, strict=True) if r.method == method]
        figure.add_scatter(
            x=[s for _, (s, _) in of_method],
            y=[u for _, (_, u) in of_method],
            text=[r.config_id for r, _ in of_method],
            name=method,
            mode="markers",
            marker={
                "color": colours[method],
                "size": [13 if r.selected else 8 for r, _ in of_method],
                "symbol": ["star" if r.selected else "circle" for r, _ in of_method],
            },
            hovertemplate="%{text}<br>S %{x:.2f}, U %{y:.2f}<extra>" + method + "</extra>",
        )
    figure.update_layout(xaxis_title="S on the test images, %", yaxis_title="U on the test images, %")
    charts.append(
        Chart(
            id="chart-tested",
            title="The refitted ones on the test images",
            caption="Stars are the rows that selection chose. Dotted lines join equal H.",
            figure=figure,
        )
    )
    if "curves" in results.tables:
        charts.append(_curves_chart(results))
    return Section(
        id="seen-unseen",
        title="Seen against unseen",
        paragraphs=["A method that favours the classes it has labels for gains S and loses U; H rewards the balance."],
        charts=charts,
    )


def _curves_chart(results: Results) -> Chart:
    curves = results.tables["curves"].to_pandas()
    figure = go.Figure()
    rows = {(r.method, r.config_id): r for r in results.rows}
    colours = _colours(results)
    methods = list(dict.fromkeys(zip(curves.method, curves.config_id, strict=True)))
    order = {key: i for i, key in enumerate(rows)}
    for key in sorted(methods, key=lambda k: order.get(k, len(order))):
        row, colour = rows.get(key), colours[key[0]]
        if row is None or row.test_seen_mean is None or row.test_unseen_mean is None:
            continue
        of_method = curves[(curves.method == key[0]) & (curves.config_id == key[1])]
        # every CLIP without training has much the same curve: one of them is shown, the others can be switched on
        visible = "legendonly" if row.config_id.startswith("zero-shot") and row.h_gain != 0 else True
        for seed, curve in of_method.groupby("seed"):
            figure.add_scatter(
                x=(100 * curve.seen).tolist(),
                y=(100 * curve.unseen).tolist(),
                name=f"{row.method}, area {row.test_ausuc:.3f}",
                legendgroup=row.method,
                showlegend=seed == 0,
                visible=visible,
                mode="lines",
                line={"color": colour, "width": 1.5 if row is results.own else 1},
                hovertemplate="S %{x:.2f}, U %{y:.2f}<extra>" + row.method + "</extra>",
            )
        tau = json.loads(row.params).get("tau")
        figure.add_scatter(
            x=[100 * row.test_seen_mean],
            y=[100 * row.test_unseen_mean],
            legendgroup=row.method,
            showlegend=False,
            visible=visible,
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "star"},
            hovertemplate=f"chosen{'' if tau is None else f' (tau {tau:.4g})'}: S %{{x:.2f}}, U %{{y:.2f}}"
            f"<extra>{row.method}</extra>",
        )
    figure.update_layout(
        xaxis_title="S, %", yaxis_title="U, %", legend={"orientation": "h", "y": -0.2, "font": {"size": 11}}
    )
    return Chart(
        id="chart-curves",
        title="At every threshold between seen and unseen classes",
        caption="Test images; a line per seed, the area under it in the legend. Stars (means over seeds) are where the "
        "chosen threshold (tau, or none) puts each method: a star far from its curve's corner lost H to the choice.",
        figure=figure,
        height=520,
        width=None,
    )


def _trust(results: Results, others: Sequence[Results]) -> Section:
    rows = [r for r in results.rows if r.val_score is not None and r.n_seeds and r.test_h_mean is not None]
    paragraphs, charts = selection_in_words(results), []
    own = results.own
    refitted = [r for r in rows if own and r.method == own.method]
    if own and own.test_h_mean is not None and len(refitted) > 1:
        best = max(r.test_h_mean or 0 for r in refitted)
        paragraphs.append(
            f"Of the {len(refitted)} refitted configurations, the one that selection ranked first is "
            f"{_pct(best - own.test_h_mean)} points of H behind the one that is best on the test images."
        )
    figure, colours = go.Figure(), _colours(results)
    for method in dict.fromkeys(r.method for r in rows):
        of_method = [r for r in rows if r.method == method]
        figure.add_scatter(
            x=[100 * (r.val_h_mean or 0) for r in of_method],
            y=[100 * (r.test_h_mean or 0) for r in of_method],
            error_y={
                "array": [100 * (r.test_h_std or 0) for r in of_method],
                "thickness": 1,
                "color": colours[method],
            },
            text=[r.config_id for r in of_method],
            name=method,
            mode="markers",
            marker={
                "color": colours[method],
                "size": [13 if r.selected else 8 for r in of_method],
                "symbol": ["star" if r.selected else "circle" for r in of_method],
            },
            hovertemplate="%{text}<br>folds %{x:.2f}, test %{y:.2f}<extra>" + method + "</extra>",
        )
    figure.update_layout(xaxis_title="H on the selection folds, %", yaxis_title="H on the test images, %")
    charts.append(
        Chart(
            id="chart-honest",
            title="Does honest selection pick well?",
            caption="Each refitted configuration; stars were chosen. Points that rise to the right mean that the folds "
            "rank configurations as the test images do. The two scales differ: folds hold fewer classes.",
            figure=figure,
        )
    )
    for other in others:
        if own and other.own and other.own.select == ORACLE:
            assert other.own.test_h_mean is not None and own.test_h_mean is not None
            paragraphs.append(
                f"The oracle study {other.name}, which chose by the test labels, reaches H = "
                f"{_pct(other.own.test_h_mean)}: choosing without them cost "
                f"{_pct(other.own.test_h_mean - own.test_h_mean)} points."
            )
    return Section(id="trust", title="Can I trust it?", paragraphs=paragraphs, charts=charts)


def _optuna_charts(looking: optuna.Study, *, brief: bool = False) -> list[Chart]:
    """Optuna's own charts of a search."""
    done = [t for t in looking.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    charts = [
        Chart(
            id="chart-history",
            title="How the score rose",
            caption="Selection score of every finished configuration in the order asked, and the best so far.",
            figure=visualization.plot_optimization_history(looking, target_name="score").update_layout(
                xaxis_title="configuration"
            ),
        )
    ]
    lanes = visualization.plot_intermediate_values(looking)
    states = {f"Trial{t.number}": t.state for t in looking.get_trials(deepcopy=False)}
    for trace in lanes.data:
        complete = states[trace.name] == TrialState.COMPLETE
        trace.update(marker={"size": 4}, line={"width": 1, "color": OWN if complete else MUTED}, opacity=0.6)
    lanes.update_layout(showlegend=False, xaxis_title="epoch", yaxis_title="score")
    charts.append(
        Chart(
            id="chart-curves-of-lanes",
            title="Learning curves",
            caption="Score of each configuration at every judgement; grey ones were stopped there.",
            figure=lanes,
        )
    )
    knobs = {name for t in looking.get_trials(deepcopy=False) for name in t.params}
    if brief or len(done) < 2 or not knobs:
        return charts
    changing = [k for k in knobs if len({t.params[k] for t in done if k in t.params}) > 1]
    if len(done) >= 4 and changing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caption says that few configurations say little
            importances = visualization.plot_param_importances(looking, target_name="score")
        importances.update_layout(xaxis_title="importance", yaxis_title=None)
        charts.append(
            Chart(
                id="chart-importances",
                title="What mattered",
                caption="Share of each knob in being among the best configurations (PED-ANOVA, Watanabe et al., 2023). "
                "With few configurations it is a hint, not a finding.",
                figure=importances,
                height=60 + 30 * max(4, len(changing)),
            )
        )
    charts += [
        Chart(
            id="chart-parallel",
            title="Parallel coordinates",
            caption="A line per completed configuration; drag along an axis to keep those that pass there.",
            figure=visualization.plot_parallel_coordinate(looking, target_name="score"),
            width=90 * (len(knobs) + 1),
            height=420,
        ),
        Chart(
            id="chart-slices",
            title="Score over each knob",
            caption="Completed configurations; a knob whose best values crowd at one end asks for a wider range there.",
            figure=visualization.plot_slice(looking, target_name="score"),
            width=210 * len(knobs),
            height=340,
        ),
    ]
    for chart in charts:
        chart.figure.update_layout(width=None, height=None)
    return charts


def _search(results: Results) -> Section | None:
    if results.looking is None or not any(c.state == "complete" for c in results.configurations):
        return None
    done, identity = results.configurations, results.identity
    states = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    space = search_spaces.load(identity["space"]) if identity["space"] in search_spaces.names() else None
    why = {} if space is None or isinstance(space, Ablation) else {k.name: k.why for k in space.knobs}
    own = results.own
    chosen = json.loads(own.params) if own else {}

    def values(knob: Sequence[Any]) -> str:
        _, low, high, log, choices, _ = knob
        return ", ".join(map(str, choices)) if choices else f"{low:g} to {high:g}{', log scale' if log else ''}"

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    tables = [
        Table(
            id="knobs",
            columns=("knob", "searched", "chosen", "why it is searched"),
            rows=[
                [
                    Cell(text=name),
                    Cell(text=values(knob)),
                    Cell(text=shown(chosen[name]) if name in chosen else "", value=None),
                    Cell(text=why.get(name, "")),
                ]
                for name, knob in identity["knobs"].items()
            ],
        )
    ]
    failed = [c for c in done if c.state == "failed"]
    if failed:
        tables.append(
            Table(
                id="failures",
                columns=("configuration that failed", "reason"),
                rows=[
                    [Cell(text=c.config_id, code=json.dumps(c.params, indent=1)), Cell(text=c.reason)] for c in failed
                ],
            )
        )
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
        charts=_optuna_charts(results.looking),
        tables=tables,
    )


def _landscape(results: Results) -> Section | None:
    if "landscape" not in results.tables or results.own is None:
        return None
    table = results.tables["landscape"].to_pandas()
    grid = table.pivot_table(index="tau", columns="residual_lambda", values="h")
    strengths = ["none" if x == 0 else "CLIP only" if np.isinf(x) else f"{x:.3g}" for x in grid.columns]
    figure = go.Figure(
        go.Heatmap(
            z=(100 * grid.to_numpy()).tolist(),
            x=strengths,
            y=grid.index.tolist(),
            colorscale="Viridis",
            colorbar={"title": "H, %", "thickness": 12},
            hovertemplate="lambda %{x}, tau %{y:.4g}: H %{z:.2f}<extra></extra>",
        )
    )
    chosen = json.loads(results.own.params)
    at = int(np.abs(np.nan_to_num(grid.columns.to_numpy(), posinf=1e9) - chosen["residual_lambda"]).argmin())
    figure.add_scatter(
        x=[strengths[at]],
        y=[chosen["tau"]],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": "#fff", "line": {"color": "#000", "width": 1}},
        hovertemplate="chosen on the folds: lambda %{x}, tau %{y:.4g}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        xaxis={"title": "lambda, CLIP's share in the branch of unseen classes", "type": "category"},
        yaxis_title="tau, score from which an image counts as seen",
    )
    return Section(
        id="landscape",
        title="Tau and lambda",
        paragraphs=[
            "H of the selected configuration (first seed) on the test images at every threshold tau and every residual "
            "strength lambda. The star is the pair that was chosen on the folds of seen classes, before these images "
            "were scored: on a broad plateau around it the choice matters little."
        ],
        charts=[
            Chart(
                id="chart-landscape",
                title="H over tau and lambda",
                caption="Bright is better. Nothing was chosen from this picture.",
                figure=figure,
                height=440,
            )
        ],
    )


def _confusions(results: Results) -> Section | None:
    if "errors" not in results.tables or results.own is None:
        return None
    errors = results.tables["errors"].to_pandas()
    baseline = next((r.method for r in results.rows if r.config_id == "zero-shot-ensemble"), "")
    methods = [results.own.method, baseline, GUESS]
    unseen = errors[errors.label_unseen & np.isfinite(errors.distance)]
    figure, means = go.Figure(), {}
    for method, colour in zip(methods, (OWN, OTHER, MUTED), strict=True):
        of_method = unseen[unseen.method == method].groupby("distance").images.sum()
        if of_method.empty:
            continue
        share = of_method / of_method.sum()
        means[method] = float((share * share.index).sum())
        near = float(share[share.index <= NEAR].sum())
        figure.add_bar(
            x=share.index.tolist(),
            y=(100 * share).tolist(),
            name=f"{method}: mean {means[method]:.2f}, {100 * near:.0f} % near",
            marker={"color": colour},
            hovertemplate="%{y:.1f} % of errors at distance %{x}<extra>" + method + "</extra>",
        )
    figure.update_layout(
        xaxis_title="WordNet edges to the true class",
        yaxis_title="share of errors, %",
        legend={"orientation": "h", "y": 1.15},
    )
    own = errors[(errors.method == results.own.method) & errors.label_unseen]
    crossed = own[~own.predicted_unseen].images.sum() / max(own.images.sum(), 1e-9)
    paragraphs = [
        f"Of the wrongly classified images of unseen classes, {100 * crossed:.0f} % are taken for a seen class. Errors "
        f"lie {means.get(results.own.method, float('nan')):.2f} edges away in WordNet on average, those of zero-shot "
        f"CLIP {means.get(baseline, float('nan')):.2f}, and a guess among all wrong classes "
        f"{means.get(GUESS, float('nan')):.2f}. Near ones are errors at a distance of up to {NEAR}: the predicted "
        "class is a sibling of the true one, or one of the two lies right above the other.",
    ]
    tables = []
    if "confusions" in results.tables:
        pairs = results.tables["confusions"].to_pylist()
        paragraphs.append(
            "The table holds the commonest confusions of an unseen class with a seen one, nearest in WordNet first, "
            "with the images they befell, images of the class they were taken for, and the classes whose text "
            "prototypes lie nearest: an error among those is one that the texts alone suggest."
        )
        tables.append(
            Table(
                id="confusions-table",
                columns=(
                    "unseen class",
                    "taken for",
                    "distance",
                    "share of its images",
                    "its images",
                    "what they were taken for",
                    "nearest texts",
                ),
                rows=[
                    [
                        Cell(text=p["label"]),
                        Cell(text=p["predicted"]),
                        Cell(text=f"{p['distance']:g}", value=p["distance"]),
                        Cell(text=f"{100 * p['share']:.0f} %", value=p["share"]),
                        Cell(images=tuple(p["images"]), image_text=p["label"], value=p["label"]),
                        Cell(images=tuple(p["images_of_predicted"]), image_text=p["predicted"], value=p["predicted"]),
                        Cell(text=", ".join(p["nearest"])),
                    ]
                    for p in pairs
                ],
                filter=True,
            )
        )
    return Section(
        id="confusions",
        title="What does it confuse?",
        paragraphs=paragraphs,
        charts=[
            Chart(
                id="chart-errors",
                title="Are errors near misses?",
                caption="Wrong predictions for images of unseen classes by their distance from the true class.",
                figure=figure,
            )
        ],
        tables=tables,
    )


def _ablation(ablation: Results) -> Section:
    reference = ablation.run["reference"]
    variants = [r for r in ablation.rows if r.method.partition(":")[0] == reference.partition(":")[0]]
    variants.sort(key=lambda r: (r.method != reference, r.h_behind or 0.0))
    names = [r.method.partition(": ")[2] or r.method for r in variants]
    behind = [(r.h_behind or 0.0, r.h_behind_lo or 0.0, r.h_behind_hi or 0.0) for r in variants]
    figure = go.Figure(
        go.Bar(
            x=[-100 * value for value, _, _ in behind],
            y=names,
            orientation="h",
            marker={"color": [OWN if r.method == reference else MUTED for r in variants]},
            error_x={
                "array": [100 * (value - low) for value, low, _ in behind],
                "arrayminus": [100 * (high - value) for value, _, high in behind],
                "symmetric": False,
            },
            hovertemplate="%{x:+.2f}<extra>%{y}</extra>",
        )
    )
    figure.update_layout(xaxis_title="H minus the full model's, points", yaxis={"autorange": "reversed"})
    return Section(
        id="ablation",
        title="What does each part do?",
        paragraphs=[
            f"Study {ablation.name}: the same configuration with one part removed at a time, each variant trained and "
            "scored like the full model. An interval that includes zero means that these test images cannot tell the "
            "variant from the full model."
        ],
        charts=[
            Chart(
                id="chart-ablation",
                title="H without the part",
                caption="Difference to the full model on the same test images; bars with 95 % intervals.",
                figure=figure,
                height=120 + 36 * len(names),
            )
        ],
        tables=[
            Table(
                id="ablation-table",
                columns=("variant", "S", "U", "H", "behind the full model [95 %]"),
                rows=[
                    [
                        Cell(text=name),
                        *(Cell(text=t, value=v) for t, v in (_NUMBERS[c](r) for c in ("S", "U", "H", "behind [95 %]"))),
                    ]
                    for name, r in zip(names, variants, strict=True)
                ],
            )
        ],
    )


def _rotations(results: Results) -> Section | None:
    if not results.rotations:
        return None
    methods = [r.method for r in results.rows if r.selected]
    figure = go.Figure()
    for method in methods:
        of_rotation = [
            next((r for r in rotation.rows if r.selected and r.method == method), None)
            for rotation in results.rotations
        ]
        figure.add_scatter(
            x=[f"rotation {i}" for i in range(len(of_rotation))],
            y=[None if r is None or r.test_h_mean is None else 100 * r.test_h_mean for r in of_rotation],
            name=method,
            mode="lines+markers",
        )
    figure.update_layout(yaxis_title="H on the test images, %")
    return Section(
        id="rotations",
        title="Rotation by rotation",
        paragraphs=[
            "Each rotation makes other classes the unseen ones and is a whole study of its own: search, selection and "
            "test. Its report, with its search, confusions and rows to run again, is report.html in its folder "
            "(rotation-0, rotation-1, …)."
        ],
        charts=[
            Chart(
                id="chart-rotations",
                title="H of every method's selected configuration",
                caption="Lines that do not cross rank the methods alike whichever classes are unseen.",
                figure=figure,
            )
        ],
    )


def _cost(results: Results) -> Section | None:
    seconds = results.run.get("seconds", {})
    if not seconds:
        return None
    figure = go.Figure(
        go.Bar(
            x=list(seconds.values()), y=list(seconds), orientation="h", hovertemplate="%{x:.1f} s<extra>%{y}</extra>"
        )
    )
    figure.update_layout(xaxis_title="seconds", yaxis={"autorange": "reversed"})
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
    return Section(
        id="cost",
        title="What did it cost?",
        paragraphs=[words],
        charts=[
            Chart(
                id="chart-seconds",
                title="Time by stage",
                caption="Wall time; the search holds the baselines' searches, too.",
                figure=figure,
                height=90 + 36 * len(seconds),
            )
        ],
    )


def _provenance(results: Results) -> Section:
    run = results.run
    versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
    cluster = ", ".join(f"{k} {v:g}" for k, v in run.get("hardware", {}).get("cluster", {}).items())
    options = run.get("options", {})
    facts = {
        "command": run.get("command", ""),
        "checkpoint": results.rows[0].clip,
        "feature fingerprint": run.get("feature_fingerprint", ""),
        "seed": str(options.get("search", {}).get("seed", "")),
        "selection criterion": run.get("criterion", ""),
        "versions": versions,
        "cluster": cluster,
        "all options": "",
    }
    return Section(
        id="provenance",
        title="Where it comes from",
        tables=[
            Table(
                id="facts",
                columns=("what", "value"),
                rows=[
                    [
                        Cell(text=what),
                        Cell(text=value or "show", code="" if value else json.dumps(options, indent=1)),
                    ]
                    for what, value in facts.items()
                    if value or what == "all options"
                ],
            )
        ],
    )


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
