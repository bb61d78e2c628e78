"""What a notebook needs, importable from `study`: load a benchmark, run a study, read its leaderboard, plot.

from study import load_benchmark, plot, read_leaderboard, run_study

features = load_benchmark("icons2emoji")
folder = run_study(space="sre", benchmark="icons2emoji", configs=16)
read_leaderboard(folder)                       # a pandas table
plot(folder, "gain")                           # a plotly figure
"""

from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console

from data_prep import FeatureOptions, prepare
from data_prep.feature_store import FeatureSet, load
from data_prep.storage import locate
from study.options import Options


def load_benchmark(
    name: str, *, clip: str | None = None, data_root: Path | None = None, cache: str = ".cache"
) -> FeatureSet:
    """A benchmark's features as tensors, computed first if they are not in `cache`. Raises `UserError`."""
    return load(prepare(FeatureOptions(benchmark=name, clip=clip, data_root=data_root, cache_dir=cache)))


def run_study(console: Console | None = None, **options: Any) -> str:
    """Run a study and return its folder or URI.

    `options`: those of the command line, with underscores (`configs=16, rotation="all"`). Raises `ValueError` for an
    unknown one or a bad value, as the command line does.
    """
    from study.pipeline.study import Study  # Ray takes seconds: reading a leaderboard does not wait for it

    return Study(make_options(options), console).run()


def make_options(given: Mapping[str, Any]) -> Options:
    """`Options` from flat names. Raises `ValueError` for an unknown one."""
    blocks = {f.name: f.default_factory for f in fields(Options)}
    sorted_out: dict[str, dict[str, Any]] = {name: {} for name in blocks}
    for option, value in given.items():
        block = next((b for b, make in blocks.items() if option in make.__dataclass_fields__), None)  # type: ignore
        if block is None:
            raise ValueError(f"options must be those of the command line, got {option}={value!r}")
        sorted_out[block][option] = value
    return Options(**{name: make(**sorted_out[name]) for name, make in blocks.items()})  # type: ignore


def read_leaderboard(study: str | Path) -> pd.DataFrame:
    """The leaderboard of a study's folder or URI. Raises `FileNotFoundError` if there is none."""
    content = locate(study).read("leaderboard.parquet")
    if content is None:
        raise FileNotFoundError(f"{study}/leaderboard.parquet")
    return pd.read_parquet(BytesIO(content))


def plot(study: str | Path, chart: str = "gain") -> go.Figure:
    """One chart of a finished study's report. Raises `ValueError` with their names if it has none such."""
    from study.outputs.results import read_results
    from study.reporting.report import finished_sections

    sections = finished_sections(read_results(locate(study)))
    charts = {c.id.removeprefix("chart-"): c.figure for section in sections for c in section.charts}
    if chart not in charts:
        raise ValueError(f"chart must be one of {', '.join(charts)}; got {chart!r}")
    return charts[chart]
