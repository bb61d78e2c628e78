"""Load a benchmark, run a study, read its leaderboard and plot it from a notebook; all importable from `study`.

from study import load_benchmark, plot, read_leaderboard, run_study, show_leaderboard

features = load_benchmark("icons2emoji")
folder = run_study(space="sre", benchmark="icons2emoji", configs=16)
read_leaderboard(folder)                       # a pandas table
show_leaderboard(folder)                       # the same for people
plot(folder, "gain")                           # a plotly figure
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console

import search_spaces
from data_prep import FeatureOptions, UserError, prepare
from data_prep.errors import nearest
from data_prep.feature_store import FeatureSet, load
from data_prep.storage import locate
from search_spaces import Space
from search_spaces.changes import as_settings, as_text
from study.options import Options
from study.outputs.folder import read_table
from study.outputs.leaderboard_files import LEADERBOARD

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def load_benchmark(
    name: str, *, clip: str | None = None, data_root: Path | None = None, cache: str = ".cache"
) -> FeatureSet:
    """Return a benchmark's features as tensors, computed first if they are not in `cache`. Raises `UserError`."""
    return load(prepare(FeatureOptions(benchmark=name, clip=clip, data_root=data_root, cache_dir=cache)))


def run_study(console: Console | None = None, **options: Any) -> str:
    """Run a study and return its folder or URI.

    `options`: those of the command line, with underscores (`configs=16, rotation="all"`). Raises `UserError` for an
    unknown option or a bad value, as the command line does.
    """
    from study.pipeline.study import Study  # Ray takes seconds: reading a leaderboard does not wait for it

    return Study(make_options(options), console).run()


def make_options(given: Mapping[str, Any]) -> Options:
    """Return `Options` made from names without groups. Raises `UserError` for an unknown name or a bad value.

    `space` may be a `Space`, and `set` a mapping: {"lr": "1e-4..1e-2:log", "adapter": ["memory", "tokens"], "rho": 1}.
    """
    defaults, given = Options(), dict(given)
    if isinstance(space := given.get("space"), Space):
        if space.name not in search_spaces.names():
            search_spaces.register(space)
        given |= {"space": space.name, "set": (*as_settings(space), *_settings(given.get("set", ())))}
    elif "set" in given:
        given["set"] = _settings(given["set"])
    groups = {f.name: getattr(defaults, f.name) for f in fields(Options)}
    chosen: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for option, value in given.items():
        group = next((name for name, default in groups.items() if option in {f.name for f in fields(default)}), None)
        if group is None:
            known = [f.name for default in groups.values() for f in fields(default)]
            got = f"{option}={value!r}{nearest(option, known)}"
            raise UserError(f"options must be those of the command line, got {got}")
        chosen[group][option] = value
    return Options(**{name: replace(default, **chosen[name]) for name, default in groups.items()})


def _settings(given: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return settings of knobs as the command line has them."""
    if isinstance(given, Mapping):
        several = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
        return tuple(f"{name}={','.join(map(as_text, values))}" for name, values in several.items())
    return (given,) if isinstance(given, str) else tuple(given)


def read_leaderboard(study: str | Path) -> pd.DataFrame:
    """Read the leaderboard of a study's folder or URI. Raises `UserError` if there is none, or if it is damaged."""
    table = read_table(locate(study), LEADERBOARD)
    if table is None:
        raise UserError(f"must be the folder of a finished study, {study} has no leaderboard.parquet", option="study")
    return table.to_pandas()


def show_leaderboard(study: str | Path) -> "Styler":
    """Return the leaderboard as a notebook shows it: rows by rank, numbers in per cent, selected rows bold.

    Raises `UserError` as `read_leaderboard` does.
    """
    from study.evaluation.leaderboard_text import AUSUC, COLUMNS

    table = read_leaderboard(study)
    named = {c.field: c.heading for c in COLUMNS if table[c.field].notna().any()}
    shares = [h for f, h in named.items() if f.startswith(("val_h", "test_", "new_")) and f != AUSUC.field]
    shown = table[list(named)].rename(columns=named)
    gains = [named[f] for f in ("h_gain", "h_behind") if f in named]
    selected = table.selected.to_numpy()
    style = shown.style.hide(axis="index").format(lambda v: f"{100 * v:.2f}", subset=shares, na_rep="")
    style = style.format(lambda v: f"{100 * v:+.2f}", subset=gains, na_rep="")
    style = style.format(precision=3, subset=[h for h in (named.get(AUSUC.field),) if h], na_rep="")
    return style.apply(lambda row: ["font-weight: bold" * bool(selected[row.name])] * len(row), axis=1)


def plot(study: str | Path, chart: str = "gain") -> go.Figure:
    """Return one chart of a finished study's report. Raises `UserError` with all names if there is no such chart."""
    from study.outputs.results import read_results
    from study.reporting.report import report_sections

    sections = report_sections(read_results(locate(study)))
    charts = {c.id.removeprefix("chart-"): c.figure for section in sections for c in section.charts}
    if chart not in charts:
        raise UserError(f"must be one of {', '.join(charts)}; got {chart!r}", option="chart")
    return charts[chart]
