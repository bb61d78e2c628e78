"""The command line on the embedded benchmark, with real Ray actors; bad input before any of them starts."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from small import run

import search_spaces
from data_prep import feature_store
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.storage import locate
from study import plot, run_study
from study.cluster.jobs import SearchOutcome
from study.outputs.study_lock import hold_study
from study.pipeline import search_stage
from study.protocol.consensus import agreements, consensus
from study.reporting.report import write_report
from study.run import main
from study.search.votes import VoteFolder

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (
    "rank method config_id select benchmark clip val_h_mean val_h_std test_known_micro test_unknown_micro "
    "test_all_micro test_seen_mean test_unseen_mean test_h_mean test_h_std h_gain h_gain_lo h_gain_hi n_seeds "
    "train_seconds feature_fingerprint source params"
).split()
CLASSES = ASSETS / "classes.parquet"
PREPARED = ("--benchmark", "icons2emoji")
"""For PVA: its own benchmark would have to be prepared first."""
METRICS = [c for c in COLUMNS if c.startswith(("val", "test", "h_gain"))]


def test_a_study_writes_all_it_promises(ray_cluster: None, small_study: Path) -> None:
    table = pd.read_parquet(small_study / "leaderboard.parquet")
    assert list(table.columns[: len(COLUMNS)]) == COLUMNS
    assert sorted(table.method) == [
        "CLIP zero-shot (WordNet lemmas)",
        "CLIP zero-shot (ensemble)",
        "CLIP zero-shot (single template)",
        "SRE-CLIP",
        "SRE-CLIP, calibrated",
        "SRE-CLIP, consensus",
        "SRE-CLIP, defaults",
    ]
    ours = table[table.method == "SRE-CLIP"].iloc[0]
    zero_shot = table[table.config_id == "zero-shot-single"].iloc[0]
    assert zero_shot.test_all_micro == pytest.approx(0.3257, abs=1e-4)  # published with the checkpoint
    assert (ours.n_seeds, ours["select"], ours.source) == (2, "pseudo-unseen", "this study")
    assert ours.h_gain_lo <= ours.h_gain <= ours.h_gain_hi
    assert (small_study / "leaderboard.csv").exists() and "SRE-CLIP" in (small_study / "leaderboard.md").read_text()
    config = json.loads((small_study / "configs" / f"{ours.config_id}.json").read_text())
    assert config["seeds"] == [3000, 3001] and config["params"] == json.loads(ours.params)
    run_json = json.loads((small_study / "run.json").read_text())
    assert {"command", "options", "feature_fingerprint", "versions", "hardware", "seconds"} <= set(run_json)


def test_the_ledger_is_an_optuna_study_with_every_configuration(small_study: Path) -> None:
    journal = optuna.storages.journal.JournalFileBackend(str(small_study / "study.journal"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))
    states = [t.state.name for t in study.trials]
    assert len(states) == 4 and set(states) <= {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        assert trial.intermediate_values  # its learning curve
        assert {"val_h_mean", "val_seen", "val_unseen", "epochs"} <= set(trial.user_attrs)  # dashboards show them
    table = pd.read_parquet(small_study / "leaderboard.parquet")
    complete = {t.user_attrs["config_index"]: t for t in study.trials if t.state.name == "COMPLETE"}
    selected = table[table.method == "SRE-CLIP"].iloc[0]
    # every complete configuration has voted, and the one that is chosen agrees best with all of them
    votes = VoteFolder(storage=locate(small_study)).load(list(complete))
    index, head = int(selected.config_id.split("-")[1]), json.loads(selected.params)["head"]
    own = complete[index].user_attrs if head == "none" else votes[index].metrics[head]
    assert selected.val_h_mean == pytest.approx(own["val_h_mean"])
    assert list(votes) == list(complete)
    seen_C = ~torch.tensor(pd.read_parquet(CLASSES).sort_values("class_id").rotation.to_numpy() == 0)
    labels_T = consensus(list(votes.values()), 228)
    scores = [score for of_one in votes.values() for score in agreements(of_one, labels_T, seen_C).values()]
    assert selected.val_consensus == pytest.approx(max(scores))


def test_scores_of_different_criteria_never_share_a_column(small_study: Path) -> None:
    table = pd.read_parquet(small_study / "leaderboard.parquet").set_index("method")
    of_method = {"SRE-CLIP": "consensus", "SRE-CLIP, defaults": "agreement", "CLIP zero-shot (ensemble)": "agreement"}
    assert {method: table.val_criterion[method] for method in of_method} == of_method
    scores = ["val_consensus", "val_agreement", "val_h_mi", "val_mi"]
    for method, criterion in of_method.items():
        assert [name for name in scores if pd.notna(table.at[method, name])] == [f"val_{criterion}"]


def test_the_same_seed_gives_the_same_leaderboard_on_workers_and_without(
    small_study: Path, embedded_cache: Path, without_tune: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "MAPPED_BYTES", 1)  # also where features are mapped, as large ones are
    # a study that is not there yet is started by --resume, too
    assert run(small_study.parent, embedded_cache, "--name", "again", "--resume") == 0
    first = pd.read_parquet(small_study / "leaderboard.parquet")
    again = pd.read_parquet(small_study.parent / "again" / "leaderboard.parquet")
    pd.testing.assert_frame_equal(first[["config_id", *METRICS]], again[["config_id", *METRICS]])


def test_a_finished_study_resumes_to_the_same_leaderboard(
    ray_cluster: None, small_study: Path, embedded_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pd.read_parquet(small_study / "leaderboard.parquet")
    scorings = json.loads((small_study / "run.json").read_text())["scorings"]
    (small_study / "configs" / "sre-9999.json").write_text("{}")  # of a row that is no longer there
    assert run(small_study.parent, embedded_cache, "--name", "small", "--resume") == 0
    assert f"The test split of this study was scored {scorings + 1} times." in capsys.readouterr().out
    assert json.loads((small_study / "run.json").read_text())["scorings"] == scorings + 1
    assert not (small_study / "configs" / "sre-9999.json").exists()
    after = pd.read_parquet(small_study / "leaderboard.parquet")
    pd.testing.assert_frame_equal(before[["config_id", *METRICS]], after[["config_id", *METRICS]])


def test_a_study_that_runs_is_not_resumed_beside_itself(
    small_study: Path, embedded_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small_study / "run.json").read_bytes()
    with hold_study(locate(small_study)):
        assert run(small_study.parent, embedded_cache, "--name", "small", "--resume") == 2
    assert "--name must be a study that nobody runs: another process holds" in capsys.readouterr().err
    assert (small_study / "run.json").read_bytes() == before and b'"status": "finished"' in before


def test_an_interrupted_study_says_so_has_no_test_scores_and_goes_on(
    small_study: Path, embedded_cache: Path, without_tune: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook: Ctrl-C is an exception, after which the study is free to be resumed."""
    small = {"configs": 4, "pack": 2, "epochs": 2, "folds": 2, "seeds": 2, "top": 1, "seed": 3, "cpus_per_pack": 2}
    where = {"storage": str(small_study.parent), "cache": str(embedded_cache.parent), "name": "notebook"}
    options = {**small, **where, "refit_workers": 0, "baselines": "none", "quiet": True}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("study.pipeline.rotation.refit", interrupted)
        run_study(**options)
    folder = small_study.parent / "notebook"
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not list(folder.glob("leaderboard.*")) and not (folder / "configs").exists()
    assert "The study was interrupted" in (folder / "report.html").read_text()
    run_study(**options, resume=True)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    first, again = (pd.read_parquet(f / "leaderboard.parquet") for f in (small_study, folder))
    pd.testing.assert_frame_equal(first[["config_id", *METRICS]], again[["config_id", *METRICS]])


def test_an_interrupted_search_is_refitted_and_scored_only_if_asked(
    small_study: Path,
    embedded_cache: Path,
    without_tune: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search_here: Callable[..., list[SearchOutcome]] = search_stage.run_searches

    def interrupted(*arguments: Any, **options: Any) -> list[SearchOutcome]:
        return [replace(outcome, interrupted=True) for outcome in search_here(*arguments, **options)]

    monkeypatch.setattr(search_stage, "run_searches", interrupted)
    folder = small_study.parent / "asked"
    assert run(small_study.parent, embedded_cache, "--name", "asked") == 130
    assert "interrupted; go on with: " in capsys.readouterr().err and not list(folder.glob("leaderboard.*"))
    assert run(small_study.parent, embedded_cache, "--name", "asked", "--resume", "--finish-on-interrupt") == 0
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert "**INTERRUPTED: " in (folder / "leaderboard.md").read_text()
    page = (folder / "report.html").read_text()
    assert "INTERRUPTED: " in page and "4 configurations of its own method were finished, 4 were requested" in page


def test_all_rotations_are_averaged(ray_cluster: None, small_study: Path, embedded_cache: Path) -> None:
    # a method without a search: Tune need not start four times
    space = ("--space", "calibrated-stacking")
    assert run(small_study.parent, embedded_cache, *PREPARED, *space, "--name", "all", "--rotation", "all") == 0
    folder = small_study.parent / "all"
    mean = pd.read_parquet(folder / "leaderboard.parquet").set_index("method")
    rotations = [pd.read_parquet(folder / f"rotation-{r}" / "leaderboard.parquet") for r in range(4)]
    for method in ("Calibrated CLIP", "CLIP zero-shot (ensemble)"):
        parts = [r.set_index("method").loc[method, "test_h_mean"] for r in rotations]
        assert mean.loc[method, "test_h_mean"] == pytest.approx(sum(parts) / 4)
    # every image is scored once per rotation, so micro accuracy over all images is the same in each for zero-shot
    assert mean.loc["CLIP zero-shot (single template)", "test_all_micro"] == pytest.approx(0.3257, abs=1e-4)
    gains = [r.set_index("method").loc["Calibrated CLIP", "h_gain"] for r in rotations]
    assert mean.loc["Calibrated CLIP", "h_gain"] == pytest.approx(sum(gains) / 4, abs=1e-6)


def test_an_oracle_study_is_marked(small_study: Path, embedded_cache: Path, without_tune: None) -> None:
    arguments = ("--name", "oracle", "--select", "oracle", "--configs", "1", "--pack", "1")
    assert run(small_study.parent, embedded_cache, *arguments) == 0
    folder = small_study.parent / "oracle"
    table = pd.read_parquet(folder / "leaderboard.parquet")
    assert set(table["select"]) == {"oracle"}
    assert "ORACLE" in (folder / "leaderboard.md").read_text()
    assert json.loads((folder / "configs" / "sre-0000.json").read_text())["select"] == "oracle"
    page = (folder / "report.html").read_text()
    assert "This is an oracle study" in page and 'role="alert"' in page
    # the honest study's report, written anew, finds the oracle's beside it
    honest = pd.read_parquet(small_study / "leaderboard.parquet").query("method == 'SRE-CLIP' and selected").iloc[0]
    oracle = table[table.selected & (table.method == "SRE-CLIP")].iloc[0]
    again = Path(write_report(locate(small_study))).read_text()
    gap = f"{100 * (oracle.test_h_mean - honest.test_h_mean):+.2f}"
    assert f"reaches H = {100 * oracle.test_h_mean:.2f} (sre-0000): the gap to it is {gap} points" in again
    assert "chosen by the test labels" in again and 'role="alert"' not in again


def test_two_objectives_mark_their_pareto_front(small_study: Path, embedded_cache: Path, without_tune: None) -> None:
    arguments = ("--name", "pareto", "--objective", "seen,unseen", "--top", "4", "--seeds", "1")
    assert run(small_study.parent, embedded_cache, *arguments) == 0
    table = pd.read_parquet(small_study.parent / "pareto" / "leaderboard.parquet")
    ours = table[table.method == "SRE-CLIP"]
    assert len(ours) == 4 and ours.pareto.any() and not table[table.method != "SRE-CLIP"].pareto.any()


def test_baselines_stand_beside_the_method_with_the_same_budget(
    small_study: Path, embedded_cache: Path, without_tune: None
) -> None:
    arguments = "--space pva --name beside --configs 1 --epochs 1 --seeds 1 --baselines calibrated-stacking,coop"
    assert run(small_study.parent, embedded_cache, *PREPARED, *arguments.split()) == 0
    folder = small_study.parent / "beside"
    table = pd.read_parquet(folder / "leaderboard.parquet").set_index("method")
    assert {"PVA", "CoOp", "Calibrated CLIP"} < set(table.index)
    assert table.drop("PVA").h_behind.notna().all() and table.h_behind.isna()["PVA"]
    assert table.loc["CoOp", "h_behind"] == pytest.approx(
        table.loc["PVA", "test_h_mean"] - table.loc["CoOp", "test_h_mean"], abs=1e-5
    )
    for ledger in (folder, folder / "baselines" / "coop"):
        journal = optuna.storages.journal.JournalFileBackend(str(ledger / "study.journal"))
        study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))
        assert len(study.trials) == 1
    assert "constant" in json.loads(table.loc["Calibrated CLIP", "params"])


def test_an_ablation_refits_the_winner_and_each_variant(
    small_study: Path, embedded_cache: Path, without_tune: None
) -> None:
    arguments = ("--space", "sre-ablation", "--name", "ablation", "--winner", str(small_study))
    assert run(small_study.parent, embedded_cache, *arguments) == 0
    table = pd.read_parquet(small_study.parent / "ablation" / "leaderboard.parquet").set_index("method")
    winner = pd.read_parquet(small_study / "leaderboard.parquet").set_index("method").loc["SRE-CLIP"]
    assert table.loc["SRE-CLIP: full", "test_h_mean"] == pytest.approx(winner.test_h_mean, abs=1e-6)
    assert json.loads(table.loc["SRE-CLIP: no L_srs", "params"])["w_srs"] == 0.0
    # a row of each variant with its constant beside the variant: what is missing is the part that it names
    assert len(table) == 3 + 2 * 9 and "SRE-CLIP: no head, calibrated" in table.index
    ablation = pd.read_parquet(small_study.parent / "ablation" / "ablation.parquet").set_index("variant")
    assert list(ablation.index) == list(search_spaces.load("sre-ablation").variants)  # type: ignore[union-attr]
    assert ablation.loc["no L_srs", "h_behind"] == pytest.approx(
        ablation.loc["full", "test_h_mean"] - ablation.loc["no L_srs", "test_h_mean"], abs=1e-5
    )
    shown = plot(small_study.parent / "ablation", "ablation")
    (bars,) = shown.data
    behind = {name: x for name, x in zip(bars.y, bars.x, strict=True) if not name.endswith(", calibrated")}
    assert behind == pytest.approx(dict(-100 * ablation.h_behind.fillna(0.0)))
    upper = dict(zip(bars.y, np.add(bars.x, bars.error_x.array), strict=True))
    assert upper["no L_srs"] == pytest.approx(-100 * ablation.loc["no L_srs", "h_behind_lo"])


def test_an_ablation_may_search_every_variant_again(
    small_study: Path, embedded_cache: Path, without_tune: None
) -> None:
    arguments = "--space pva-ablation --name again-pva --re-search --configs 1 --pack 1 --epochs 1 --seeds 1"
    assert run(small_study.parent, embedded_cache, *PREPARED, *arguments.split()) == 0
    folder = small_study.parent / "again-pva"
    table = pd.read_parquet(folder / "ablation.parquet").set_index("variant")
    assert list(table.index) == list(search_spaces.load("pva-ablation").variants)  # type: ignore[union-attr]
    assert table.loc["no residual", ["published_seen", "published_unseen", "published_h"]].tolist() == [
        0.768,
        0.701,
        0.733,
    ]
    assert "PVA, ECCV 2024: ImageNet" in (folder / "ablation.md").read_text()
    published = plot(folder, "ablation").data[1]
    assert published.name == "published, on other data" and "another data set" in (folder / "report.html").read_text()
    assert dict(zip(published.y, published.x, strict=True)) == pytest.approx(
        {"full": 0.0, "no variational inference": -1.3, "no separation": -1.4, "no residual": -1.2}
    )
    board = pd.read_parquet(folder / "leaderboard.parquet").set_index("method")
    assert json.loads(board.loc["PVA: separation by cosine", "params"])["score"] == "cosine"
    assert sorted(p.name for p in (folder / "variants").iterdir()) == [f"pva-ablation-{i}" for i in range(5)]


def test_prep_only_and_dry_run_stop_early(ray_cluster: None, embedded_cache: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(tmp_path, embedded_cache, "--name", "prep", "--prep-only") == 0
    assert run(tmp_path, embedded_cache, "--name", "plan", "--dry-run") == 0
    assert "4 configurations x 2 folds x 2 epochs in packs of 2, 1 at once" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.*"))


def test_a_plan_of_this_machine_starts_no_ray_and_prepares_nothing(
    embedded_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda *a, **k: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    assert run(tmp_path, embedded_cache, "--name", "plan", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "4 configurations x 2 folds x 2 epochs in packs of 2, 2 at once (2 CPUs" in shown
    assert re.search(r"time +about \d+ s of training, \d+ s of votes", shown)
    assert run(tmp_path, embedded_cache, "--name", "plan", "--dry-run", "--set", "token_dim=7") == 2
    assert "SRE-CLIP with adapter=tokens cannot be trained" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path, tmp_path / "none" / "cache", "--name", "plan", "--dry-run") == 0
    assert "icons2emoji: its features are not prepared yet. --prep-only prepares them" in capsys.readouterr().out
    assert not list(tmp_path.rglob("manifest.json"))
    assert run(tmp_path, embedded_cache, "--dry-run", "--cpus-per-pack", "5") == 2
    assert "--cpus-per-pack must fit this machine, got 5 for 4 CPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--space sr", "got 'sr' (nearest: sre)"),
        ("--benchmark icons2emojj", "did you mean 'icons2emoji'?"),
        ("--clip no/such/folder/anywhere", "--clip"),
        ("--configs 0", "--configs must be at least 1, got 0"),
        ("--folds 1", "--folds must be at least 2, got 1"),
        ("--rotation -1", "--rotation must be 0 or more, or all, got -1"),
        ("--cpus-per-pack 0", "--cpus-per-pack must be more than 0, got 0"),
        ("--name ../escape", "--name must be letters"),
        ("--re-search", "--re-search must come with an ablation, got it with --space sre"),
        ("--space sre-ablation --re-search --winner x", "--winner must be left out with --re-search, got x"),
        ("--baselines sre-ablation", "--baselines must be methods' spaces, not ablations; got sre-ablation"),
        ("--resume", "--resume must come with the --name"),
        ("--storage /proc/nowhere", "--storage must be writable"),
        ("--sampler tpr", "invalid choice 'tpr' for argument '--sampler'"),
        ("--confgs 3", "--configs"),
    ],
)
def test_bad_input_is_one_clear_message_before_ray_starts(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *a, **k: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code = main(["--storage", str(tmp_path), *arguments.split()])
    except SystemExit as exit_:  # tyro's own errors
        code = exit_.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rotation 4", "--rotation must be 0 to 3 or all for icons2emoji, got 4"),
        ("--folds 100", "--folds must be at least 2 with two seen classes in each; got 100 for 171"),
        ("--cpus-per-pack 3", "--cpus-per-pack and the GPUs of a pack must fit the cluster, got 3 and 0 for 2 CPUs"),
    ],
)
def test_input_that_only_the_benchmark_or_the_cluster_can_refuse(
    ray_cluster: None,
    arguments: str,
    message: str,
    small_study: Path,
    embedded_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(small_study.parent, embedded_cache, "--name", "bad", *arguments.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_names_of_spaces_are_checked_before_torch_is_loaded() -> None:
    for arguments in ("--space sree", "--baselines tip-adaptr"):
        code = (
            "import sys; from study.run import main; code = main(sys.argv[1:]); "
            "sys.exit(9 if {'torch', 'ray', 'numpy'} & sys.modules.keys() else code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments.split()], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and "nearest: " in done.stderr, done.stderr


def test_help_teaches_without_loading_torch() -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "study" / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for (
        option
    ) in "--space --benchmark --clip --data-root --configs --epochs --pack --folds --seeds --top --select".split():
        assert option in done.stdout
    assert "torch" not in done.stderr


def test_the_storage_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from study.options import OutputOptions

    assert OutputOptions().storage == "results"
    monkeypatch.setenv("ZEROSWEEP_STORAGE", "s3://bucket/studies")
    assert OutputOptions().storage == "s3://bucket/studies"
