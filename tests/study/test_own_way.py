"""What a user changes without editing the package: ranges, first configurations, methods."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small import SMALL, run

import search_spaces
from data_prep.errors import UserError
from search_spaces import Space
from study.api import make_options
from study.outputs.provenance import RecordedOptions
from study.pipeline.candidates import enqueued_params
from study.search.ledger import read_ledger
from study.training import method_template

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(method_template.__file__)


@pytest.fixture(scope="module")
def winners(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of a study whose best in selection is not the default."""
    folder = tmp_path_factory.mktemp("winners")
    shutil.copytree(small_study / "configs", folder / "configs")
    (file,) = (p for p in (folder / "configs").glob("sre-0*.json"))
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"params": row["params"] | {"adapter": "tokens", "lr": 2e-3, "rho": 3.0}}))
    return folder


def test_ranges_are_changed_and_another_studys_winners_are_tried_first(
    winners: Path, embedded_cache: Path, tmp_path: Path, without_tune: None, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--set", "lr=1e-4..2e-2:log", "--set", "heads=2", "--enqueue", str(winners), "--configs", "6"]
    assert run(tmp_path, embedded_cache, "--name", "changed", *changes) == 0
    assert f"first the defaults, then 1 of {winners}" in " ".join(capsys.readouterr().out.split())
    (winner,) = enqueued_params([str(winners)], load("sre"), "pseudo-unseen")
    assert (winner["adapter"], winner["lr"], winner["rho"], winner["w_ent"]) == ("tokens", 2e-3, 3.0, 1.0)
    third = read_ledger(tmp_path / "changed").finished()[2]  # the first of the second pack
    assert third.params == winner
    (row,) = [json.loads(p.read_text()) for p in (tmp_path / "changed/configs").glob("*.json") if "defaults" in p.name]
    assert row["params"]["heads"] == 2 and row["options"]["study"]["set"] == ["lr=1e-4..2e-2:log", "heads=2"]
    identity = json.loads((tmp_path / "changed/study.json").read_text())
    assert {"lr=0.0001..0.02:log@0.001", "heads=2"} <= set(identity["knobs"])
    assert identity["enqueue"] == [str(winners)]
    # resumed with other ranges
    other = ["--set", "lr=1e-4..3e-2:log", *changes[2:], "--resume"]
    assert run(tmp_path, embedded_cache, "--name", "changed", *other) == 2
    message = "--set must search what .*/changed searches: lr=0.0001..0.02:log@0.001; now lr=0.0001..0.03:log@0.001"
    assert_matches(message, capsys.readouterr().err)
    # one row of it again, which needs no option repeated
    selected = json.loads((tmp_path / "changed/adapters/selected/config.json").read_text())["leaderboard"]
    again = ["--rerun", str(tmp_path / f"changed/configs/{selected['config_id']}.json"), "--name", "again"]
    assert run(tmp_path, embedded_cache, *again) == 0
    made = json.loads((tmp_path / "again/adapters/selected/config.json").read_text())
    assert made["leaderboard"]["test_h_mean"] == selected["test_h_mean"] and made["config"]["heads"] == 2


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def load(name: str) -> Space:
    found = search_spaces.load(name)
    assert isinstance(found, Space)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set lrr=1", "--set must name a knob of SRE-CLIP .* .nearest: lr."),
        (
            "--space pva --set tau=0.3",
            "--set must leave out tau: its best value is found exactly for every configuration",
        ),
        ("--set head=vote", "--set must leave out head: its best value is found exactly"),
        ("--space nothing.yaml", "--space must be a name or a file that is there; got nothing.yaml"),
        ("--plugin nothing.py", "--plugin must be a Python file that is there; got "),
        (
            "--plugin no.such_module",
            "--plugin must be a Python file or a module that can be imported; got no.such_module",
        ),
        ("--enqueue nowhere", "--enqueue must hold configurations of sre; nowhere has none"),
        ("--enqueue s3:/x", "--enqueue must "),
        ("--space sre-ablation --enqueue nowhere", "--enqueue must come with the search of a method's space"),
        ("--enqueue SMALL --configs 1", "--enqueue must leave room for the defaults: 1 configurations, --configs 1"),
        (
            "--enqueue SMALL --set lr=1e-9..1e-8",
            "--enqueue must lie in the ranges of this search; lr=.* of sre-.*: widen",
        ),
        ("--time 5", "must be such as 45s, 30m or 1h30m, got 5"),
        ("--time soon", "must be such as 45s, 30m or 1h30m, got soon"),
        ("--enqueue SMALL --refill", "must be left out with --enqueue, got True"),
        ("--push nobody", "--push must be USER/NAME of the Hugging Face hub; got 'nobody'"),
    ],
)
def test_a_mistake_is_one_line_before_ray_starts(
    arguments: str, message: str, winners: Path, embedded_cache: Path, tmp_path: Path, capsys, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("study.pipeline.study.start_session", lambda _: pytest.fail("Ray starts"))
    monkeypatch.chdir(tmp_path)
    try:
        code = run(tmp_path, embedded_cache, *arguments.replace("SMALL", str(winners)).split())
    except SystemExit as exit_:  # tyro's own errors
        code = exit_.code
    assert code == 2
    error = " ".join(word for word in capsys.readouterr().err.split() if word != "│")
    assert_matches(message, error)


def test_winners_that_saw_test_labels_are_not_tried(winners: Path, tmp_path: Path) -> None:
    (file,) = (winners / "configs").glob("sre-0*.json")
    (tmp_path / "configs").mkdir()
    oracle = tmp_path / "configs" / file.name
    oracle.write_text(json.dumps(json.loads(file.read_text()) | {"select": "oracle"}))
    for place in (tmp_path, oracle):
        with pytest.raises(UserError, match="enqueue must not have looked at test labels"):
            enqueued_params([str(place)], load("sre"), "pseudo-unseen")
        assert len(enqueued_params([str(place)], load("sre"), "oracle")) == 1
    with pytest.raises(UserError, match="enqueue must hold configurations of pva; .* has none"):
        enqueued_params([str(winners)], load("pva"), "pseudo-unseen")


def test_python_takes_spaces_and_mappings_and_refuses_what_the_command_line_refuses() -> None:
    options = make_options(
        {"set": {"lr": "1e-4..1e-3:log", "adapter": ["memory", "tokens"], "residual": False, "rho": 2}}
    )
    assert options.study.set == ("lr=1e-4..1e-3:log", "adapter=memory,tokens", "residual=false", "rho=2")
    sre = load("sre")
    fewer = make_options({"space": replace(sre, knobs=sre.knobs[:1]), "set": {"heads": 2}})
    assert fewer.study.space == "sre" and {"adapter=memory,tokens@memory", "lr=0.001", "heads=2"} <= set(
        fewer.study.set
    )
    json.dumps(RecordedOptions.of(fewer).by_group)  # run.json holds it
    for given, message in (
        ({"sampler": "tpee"}, r"sampler must be tpe, random, nsga2; got 'tpee' \(nearest: tpe\)"),
        ({"rotation": "al"}, r"rotation must be a number or all; got 'al' \(nearest: all\)"),
        ({"configs": "3"}, "configs must be int; got '3'"),
        ({"configs": 2.5}, "configs must be int; got 2.5"),
        ({"pruning": 1}, "pruning must be bool; got 1"),
        ({"templates": "single"}, "templates must be tuple.str, ....; got 'single'"),
        ({"konfigs": 3}, r"options must be those of the command line, got konfigs=3 \(nearest: configs\)"),
        ({"set": {"lr": 1}, "space": replace(sre, knobs=sre.knobs[::-1])}, "space needs a name of its own"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            make_options(given)
    assert make_options({"data_root": "x", "cpus_per_pack": 2}).study.data_root == Path("x")


def test_a_space_without_its_method_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEMPLATE.read_text().replace("register(SPACE, build=build)", "").replace("task-residual", "never-registered")
    (tmp_path / "never_registered_method.py").write_text(text)
    from study.run import main

    assert main(["--space", str(tmp_path / "never_registered_method.py"), "--storage", str(tmp_path)]) == 2
    message = "--space must be a space whose method is known; TaskResidualConfig is not: its module"
    assert message in capsys.readouterr().err


def test_a_method_of_ones_own_is_searched_on_rays_workers_exported_and_predicts(
    ray_cluster: None, embedded_cache: Path, tmp_path: Path
) -> None:
    """As a user does: the template copied out of the package, changed, checked, run in a process of its own."""
    text = TEMPLATE.read_text().replace("task-residual", "gained-residual").replace("TaskResidual", "GainedResidual")
    (tmp_path / "gained_method.py").write_text(text)
    python = [sys.executable, str(ROOT / "study/run.py"), "--plugin", "gained_method.py", "--space", "gained-residual"]

    def done(*arguments: str) -> str:
        ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "Task Residual keeps the laws of packs" in done(*python, "--check-method")
    assert "base: gained-residual" in done(*python, "--print-space")
    small = [*SMALL, "--benchmark", "icons2emoji", "--set", "alpha=0.2..0.8", "--name", "own"]
    shown = done(*python, *small, "--storage", str(tmp_path), "--cache", str(embedded_cache.parent))
    assert "4/4 configs" in shown
    alphas = [c.params["alpha"] for c in read_ledger(tmp_path / "own").finished()]
    assert len(alphas) == 4 and all(0.2 <= float(alpha) <= 0.8 for alpha in alphas)
    adapter = str(tmp_path / "own/adapters/selected")
    code = (
        "import gained_method, sys; from study import Adapter; "
        f"print(Adapter.load({adapter!r}).predict([sys.argv[1]])[0].classes[0][0] != '')"
    )
    image = str(ROOT / "study/assets/report-sre.png")
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin"}
    ended = subprocess.run([sys.executable, "-c", code, image], env=environment, capture_output=True, text=True)
    assert ended.stdout.strip() == "True", ended.stderr
    bare = subprocess.run(
        [sys.executable, str(ROOT / "study/predict.py"), image, "--adapter", adapter], capture_output=True, text=True
    )
    assert bare.returncode == 2
    assert "--plugin must name the file or module of GainedResidualConfig, the method of " in bare.stderr
