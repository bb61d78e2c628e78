"""Every benchmark's miniature from its published layout to a leaderboard: features, FeatureSet, a study of 4."""

from pathlib import Path

import miniatures
import pandas as pd
import pytest

from data_prep.benchmarks.icons2emoji import ASSETS
from study.run import main

STUDY = (
    "--configs 4 --pack 4 --epochs 2 --folds 2 --seeds 1 --top 1 --baselines none --allow-partial "
    "--sampler random --no-pruning --refit-workers 0"
).split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data-root")
    miniatures.write_all(root)
    return root


@pytest.mark.parametrize("name", [*miniatures.NAMES, "cub->dtd"])
def test_from_the_published_layout_to_a_leaderboard(
    name: str,
    root: Path,
    tmp_path: Path,
    ray_cluster: None,
    without_ray: None,
    without_tune: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    miniatures.shorten_class_lists(monkeypatch)
    if name != "i2awa":
        monkeypatch.setattr("study.pipeline.study.write_report", lambda *_: "")  # the same for every benchmark
    space = "sre" if miniatures.is_adaptation(name) else "pva"
    where = ["--data-root", str(root), "--storage", str(tmp_path), "--cache", str(tmp_path), "--name", "study"]
    source, _, target = name.partition("->")
    what = ["--train-on", source, "--test-on", target] if target else ["--benchmark", name]
    assert main([*STUDY, "--space", space, *what, "--clip", str(ASSETS / "clip"), *where]) == 0
    table = pd.read_parquet(tmp_path / "study" / "leaderboard.parquet")
    table = table[table.source == "this study"]
    zero_shot = ["CLIP zero-shot (WordNet lemmas)", "CLIP zero-shot (ensemble)", "CLIP zero-shot (single template)"]
    own = {"sre": ("SRE-CLIP", "SRE-CLIP, consensus", "SRE-CLIP, defaults"), "pva": ("PVA", "PVA, defaults")}[space]
    assert [m for m in sorted(table.method) if not m.endswith(", calibrated")] == [*zero_shot, *own]
    marked = f"{name} (partial: " if not name.startswith("folder:") else name
    assert table.benchmark.str.startswith(marked).all()
    assert table.test_all_micro.between(0, 1).all()
    assert table.test_h_mean.between(0, 1).all() and (table.h_gain_lo <= table.h_gain_hi).all()
    # across data sets all target images are of classes of one kind: of the other there is no accuracy
    across = name.startswith("imagenet-to-") or bool(target)
    has_seen = not across or miniatures.is_adaptation(name)
    has_unseen = not across or not has_seen
    assert (table.test_seen_mean.notna() == has_seen).all() and (table.test_unseen_mean.notna() == has_unseen).all()
    if has_seen != has_unseen:
        assert table.test_h_mean.equals(table.test_seen_mean if has_seen else table.test_unseen_mean)
