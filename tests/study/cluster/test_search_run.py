"""Packs on real Ray actors: a whole search, the deaths of actors and drivers, and what the terminal shows."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import toy
from optuna.trial import TrialState
from rich.console import Console

import search_spaces
from study.cluster.coordinator import Board, PackProgress
from study.cluster.jobs import PackJob, Search, SearchOutcome
from study.cluster.monitor import best_line, progress_line
from study.cluster.pack_actor import PackTrainable
from study.cluster.search_run import run_searches
from study.cluster.session import concurrent_packs
from study.outputs.folder import open_storage
from study.protocol.trial_data import TrialData
from study.search.halving import RungBoard
from study.search.ledger import open_ledger, read_ledger
from study.search.pack_queue import Counts, PackSearcher
from study.training.loop import TrainingOptions, train_lanes, train_pack

IDENTITY = {"benchmark": "toy", "select": "pseudo-unseen"}


@pytest.fixture(scope="module", autouse=True)
def toy_travels(ray_cluster: None) -> None:
    toy.register()


def search(folder: Path, *, configs: int = 12, resume: bool = False, **options: Any) -> SearchOutcome:
    """One search with packs of four; `options` go to it and to `run_searches`."""
    with open_ledger(folder, space=toy.SPACE, identity=IDENTITY, resume=resume) as book:
        searcher = PackSearcher(book, toy.SPACE, configs=configs, pack=4, sampler="random", seed=5)
        of_search = {name: options.pop(name) for name in ("train", "board", "mirror") if name in options}
        options = {"console": Console(file=io.StringIO()), **options}
        (done,) = run_searches(
            [Search(searcher=searcher, **{"train": toy.train, **of_search})],
            toy.trial_data().to_arrays(),
            epochs=toy.EPOCHS,
            rungs=toy.RUNGS,
            **options,
        )
        return done


def without_ray(folder: Path, configs: int = 12) -> None:
    """The same search in this process, pack after pack."""
    board = RungBoard()
    with open_ledger(folder, space=toy.SPACE, identity=IDENTITY) as book:
        searcher = PackSearcher(book, toy.SPACE, configs=configs, pack=4, sampler="random", seed=5)
        while isinstance(pack := searcher.suggest("pack"), dict):
            lanes = pack["lanes"]
            (results,) = toy.train(
                [lane["params"] for lane in lanes],
                seeds=[lane["seed"] for lane in lanes],
                data=toy.trial_data(),
                epochs=toy.EPOCHS,
                rungs=toy.RUNGS,
                judge=lambda epoch, scores: board.judge(epoch, [score for _, score in scores]),
                on_epoch=lambda epoch, alive: None,
            )
            told = [{"number": lane["number"], **asdict(results[i])} for i, lane in enumerate(lanes)]
            searcher.on_trial_complete("pack", {"lanes": told})


def outcome(folder: Path) -> list[Any]:
    return [(c.index, c.params, c.seed, c.state, c.score) for c in read_ledger(folder).finished()]


def each_once(folder: Path, configs: int) -> bool:
    return [c.index for c in read_ledger(folder).finished()] == list(range(configs))


def test_one_worker_does_what_a_plain_loop_does(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    said = io.StringIO()
    mirror = open_storage(str(tmp_path / "mirror"), "study")
    train = functools.partial(toy.train, threads=2)
    console = Console(file=said, width=200)
    done = search(tmp_path / "study", cpus_per_pack=2, train=train, console=console, mirror=mirror)
    without_ray(tmp_path / "loop")
    assert outcome(tmp_path / "study") == outcome(tmp_path / "loop")
    assert not done.interrupted and done.concurrent == 1 and done.counts.packs == 3
    assert each_once(tmp_path / "study", 12)
    trials = read_ledger(tmp_path / "study").trials()
    assert {t.state for t in trials} >= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            assert sorted(trial.intermediate_values) in ([1], [1, 2])
    assert said.getvalue().splitlines()[-1].startswith("Toy: 12/12 configs · ")
    printed = capfd.readouterr()
    assert printed.out == "" and "tune" not in printed.err.lower()  # no table, no advice
    assert mirror.read("study.journal") == (tmp_path / "study" / "study.journal").read_bytes()
    assert sorted(os.listdir(tmp_path / "study")) == ["driver.lock", "study.journal"]


def test_searches_run_together_and_each_as_if_alone(tmp_path: Path) -> None:
    spaces = {"one": toy.SPACE, "two": replace(toy.SPACE, name="other", method="other")}
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        searches = []
        for folder, space in spaces.items():
            book = stack.enter_context(open_ledger(tmp_path / folder, space=space, identity=IDENTITY))
            searcher = PackSearcher(book, space, configs=12, pack=4, sampler="random", seed=5)
            searches.append(Search(searcher=searcher, train=functools.partial(toy.train, threads=2)))
        arrays = toy.trial_data().to_arrays()
        done = run_searches(
            searches, arrays, epochs=toy.EPOCHS, rungs=toy.RUNGS, cpus_per_pack=2, console=Console(file=said, width=200)
        )
    without_ray(tmp_path / "alone")  # the same draws: those of a seed and an index
    for folder in spaces:
        assert outcome(tmp_path / folder) == outcome(tmp_path / "alone") and each_once(tmp_path / folder, 12)
    assert [d.trained for d in done] == [12, 12] and not any(d.interrupted for d in done)
    assert [line.split(" · ")[0] for line in said.getvalue().splitlines()][-2:] == [
        "Toy: 12/12 configs",
        "other: 12/12 configs",
    ]


def test_packs_whose_actor_dies_or_that_raise_are_trained_again(tmp_path: Path) -> None:
    die, fail = tmp_path / "die", tmp_path / "fail"
    die.touch()
    fail.touch()
    train = functools.partial(toy.train, threads=2, die_once=die, fail_once=fail)
    done = search(tmp_path / "study", cpus_per_pack=2, train=train)
    without_ray(tmp_path / "undisturbed")
    assert outcome(tmp_path / "study") == outcome(tmp_path / "undisturbed")
    assert done.counts.deaths == 2 and not die.exists() and not fail.exists()
    assert each_once(tmp_path / "study", 12)
    void = [t for t in read_ledger(tmp_path / "study").trials() if "requeued" in t.user_attrs]
    assert len(void) == 8
    assert {t.user_attrs["reason"] for t in void} == {
        "its pack died: its actor or node died",
        "its pack died: RuntimeError: out of luck [/tcp/pair.cc:553]",
    }


def test_refilled_packs_train_every_configuration_once_and_as_it_would_be_alone(
    tmp_path: Path, data: TrialData
) -> None:
    space = replace(search_spaces.load("linear-probe"), benchmark="toy")
    arrays, train = data.to_arrays(), functools.partial(train_lanes, criterion="h")
    with open_ledger(tmp_path / "study", space=space, identity=IDENTITY) as book:
        searcher = PackSearcher(book, space, configs=10, pack=3, sampler="random", seed=5)
        console = Console(file=io.StringIO())
        (done,) = run_searches(
            [Search(searcher=searcher, train=train)], arrays, epochs=4, rungs=(1, 2), refill=True, console=console
        )
        finished = book.finished()
    assert [c.index for c in finished] == list(range(10)) and not done.interrupted
    assert done.counts.pruned and done.counts.packs < 4  # four without refilling
    for c in finished:
        config = space.config(**c.params)
        (alone,) = train_pack(
            [config], seeds=[c.seed], data=data, options=TrainingOptions(epochs=4, rungs=(1, 2), criterion="h")
        )
        assert c.curve == [(e, pytest.approx(s, abs=1e-5)) for e, s in alone.curve[: len(c.curve)]]


CONFIGS = 20
"""Five packs: enough to interrupt a study twice."""

DRIVER = """
import functools, sys
sys.path[:0] = {paths!r}
import ray, toy
import test_search_run
from pathlib import Path
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
toy.register()
resume = sys.argv[1] == "resume"
train = functools.partial(toy.train, seconds=1.0)
done = test_search_run.search(Path({folder!r}), configs={configs}, resume=resume, train=train)
print("interrupted" if done.interrupted else "finished")
"""


def start_driver(folder: Path, mode: str = "new") -> subprocess.Popen:
    """A search in a process of its own, on this session's cluster."""
    paths = [str(Path(__file__).parents[i]) for i in (0, 1, 3)]
    address = ray.get_runtime_context().gcs_address
    script = DRIVER.format(paths=paths, address=address, folder=str(folder), configs=CONFIGS)
    return subprocess.Popen([sys.executable, "-c", script, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen) -> None:
    while not condition():
        assert driver.poll() is None, driver.communicate()[1].decode()
        time.sleep(0.02)


def finished(folder: Path) -> int:
    return len(read_ledger(folder).finished()) if (folder / "driver.lock").exists() and _has_study(folder) else 0


def _has_study(folder: Path) -> bool:
    journal = folder / "study.journal"
    return journal.exists() and '"identity"' in journal.read_text()


def test_ctrl_c_then_kill_minus_nine_then_resume(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    driver = start_driver(folder)
    wait_for(lambda: finished(folder) >= 4, driver)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=120)
    assert out.decode().strip() == "interrupted", err.decode()
    assert not err.decode().strip()
    assert {t.state for t in read_ledger(folder).trials()}.isdisjoint({TrialState.RUNNING, TrialState.WAITING})
    kept = finished(folder)

    driver = start_driver(folder, "resume")
    wait_for(lambda: finished(folder) > kept, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert kept < finished(folder) < CONFIGS

    assert not search(folder, configs=CONFIGS, resume=True).interrupted and each_once(folder, CONFIGS)
    without_ray(tmp_path / "undisturbed", configs=CONFIGS)  # the draws and seeds are those of a study nobody disturbed
    assert [o[:3] for o in outcome(folder)] == [o[:3] for o in outcome(tmp_path / "undisturbed")]


def test_a_resumed_board_knows_the_ledgers_scores(tmp_path: Path) -> None:
    without_ray(tmp_path / "study", configs=8)
    board = RungBoard()
    search(tmp_path / "study", configs=8, resume=True, board=board)
    curves = [dict(c.curve) for c in read_ledger(tmp_path / "study").finished()]
    assert board.scores == {epoch: [c[epoch] for c in curves if epoch in c] for epoch in toy.RUNGS}


def test_an_actor_takes_pack_after_pack() -> None:
    import torch

    board: Any = Board.remote({"toy": RungBoard()})  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    job = PackJob(
        study="study",
        space="toy",
        config=dict,
        arrays=ray.put(toy.trial_data().to_arrays()),
        board=board,
        epochs=toy.EPOCHS,
        rungs=toy.RUNGS,
        cpus=0.5,
        gpus=0,
        train=toy.train,
    )

    class Actor(PackTrainable):
        def setup(self, config: dict[str, Any], jobs: Mapping[str, PackJob] = {"toy": job}) -> None:  # noqa: B006
            super().setup(config, jobs=jobs)

    def lanes(*xs: float) -> dict[str, Any]:
        return {
            "space": "toy",
            "lanes": [
                {"number": i, "index": i, "seed": i, "params": {"layers": 0, "lr": 0.1, "x": x}}
                for i, x in enumerate(xs)
            ],
        }

    try:
        actor = Actor(lanes(0.4, 0.99, 0.9))
        assert repr(actor) == "packs(study=study, spaces=toy, cpus=0.5)"
        result = actor.step()
        assert [x["state"] for x in result["lanes"]] == ["complete", "failed", "pruned"] and result["done"]
        assert json.loads(json.dumps(result)) is not None
        assert actor.reset(lanes(0.5))
        assert [x["number"] for x in actor.step()["lanes"]] == [0]
        assert actor.reset({"space": "toy", "lanes": [{"number": 0, "index": 0, "seed": 0, "params": {}}]})
        assert actor.step() == {"lanes": [], "crash": "KeyError: 'layers'", "done": True}
    finally:
        torch.set_num_threads(threads)
        ray.kill(board)


def test_packs_must_fit_the_cluster() -> None:
    assert concurrent_packs(1, 0) == 2 and concurrent_packs(0.5, 0) == 4 and concurrent_packs(2, 0) == 1
    with pytest.raises(ValueError, match="--cpus-per-pack and --gpus-per-pack must fit the cluster, got 3 and 0"):
        concurrent_packs(3, 0)
    with pytest.raises(ValueError, match="got 1 and 1 for 2 CPUs and 0 GPUs"):
        concurrent_packs(1, 1)


def test_workers_that_the_autoscaler_may_start_count(monkeypatch: pytest.MonkeyPatch) -> None:
    most = {"CPU": 36, "GPU": 8}
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: most)
    assert concurrent_packs(1, 0.5) == 16 and concurrent_packs(4, 0) == 9
    with pytest.raises(ValueError, match="got 1 and 9 for 36 CPUs and 8 GPUs"):
        concurrent_packs(1, 9)


def test_progress_line() -> None:
    counts = Counts(complete=6, pruned=5, failed=1, best=0.51234, best_h=0.41234)
    packs = {
        "a": PackProgress(space="toy", lanes=8, alive=8, epoch=5),
        "b": PackProgress(space="toy", lanes=8, alive=2, epoch=10),
    }
    line = progress_line(counts, packs, configs=48, already=4, epochs=20, seconds=60)
    # 8 configurations of this run, 2 + 7 worth of running ones: 17 of 44 in 60 s
    assert line == (
        "12/48 configs · 5 pruned · 1 failed · best score 0.5123 (H 41.23) · 10/16 lanes alive in 2 packs · "
        "about 1:35 left"
    )
    assert progress_line(Counts(), {}, configs=8, already=0, epochs=20, seconds=1) == "0/8 configs"
    counts.add("complete", 0.6, 0.4, {"lr": 0.00123456, "adapter": "tokens"})
    counts.add("complete", 0.5, 0.4, {"lr": 0.5, "adapter": "tokens"})
    assert best_line(counts) == "\nbest: lr 0.00123, adapter tokens" and best_line(Counts()) == ""
