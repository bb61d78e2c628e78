"""Packs on real Ray actors: a whole search, the deaths of actors and drivers, and what the terminal shows."""

import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import toy
from optuna.trial import TrialState
from rich.console import Console

import search_spaces
from data_prep.errors import UserError
from study.cluster import pack_actor
from study.cluster.coordinator import Coordinator, Handed
from study.cluster.jobs import PackJob, Search, SearchOutcome
from study.cluster.pack_actor import PackTrainable
from study.cluster.search_run import run_searches
from study.cluster.session import concurrent_packs
from study.options import ResourceOptions
from study.outputs.folder import open_storage
from study.protocol.trial_data import TrialData
from study.search.halving import SuccessiveHalving
from study.search.ledger import Ledger, open_ledger, read_ledger
from study.search.pack_queue import PackQueue
from study.search.records import Lane, PackReport
from study.training.loop import TrainingOptions, train_pack
from study.training.scoring import LaneResult

ONE_AT_A_TIME = ResourceOptions(cpus_per_pack=2)
"""On the two CPUs of the session's cluster."""


@pytest.fixture(scope="module", autouse=True)
def toy_travels(ray_cluster: None) -> None:
    toy.register()


def search(folder: Path, *, configs: int = 12, resume: bool = False, **options: Any) -> SearchOutcome:
    """One search with packs of four; `options` go to it and to `run_searches`."""
    with open_ledger(folder, space=toy.SPACE, identity=toy.IDENTITY, resume=resume) as book:
        queue = PackQueue(book, toy.SPACE, configs=configs, pack=4, sampler="random", seed=5)
        of_search = {name: options.pop(name) for name in ("train", "halving", "mirror") if name in options}
        options = {"console": Console(file=io.StringIO()), "resources": ResourceOptions(), **options}
        search = Search(queue=queue, training=toy.OPTIONS, **{"train": toy.Training, **of_search})
        (done,) = run_searches([search], toy.trial_data().to_arrays(), **options)
        return done


def without_ray(folder: Path, configs: int = 12) -> None:
    """The same search in this process, pack after pack."""
    halving = SuccessiveHalving()
    with open_ledger(folder, space=toy.SPACE, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, toy.SPACE, configs=configs, pack=4, sampler="random", seed=5)
        while lanes := queue.next_pack("pack"):
            training = toy.Training(
                [lane.params for lane in lanes],
                seeds=[lane.seed for lane in lanes],
                data=toy.trial_data(),
                options=toy.OPTIONS,
                judge=lambda epoch, scores: halving.judge(epoch, {lanes[i].index: s for i, s in scores}),  # noqa: B023
            )
            ended: dict[int, LaneResult] = {}
            while not training.done:
                ended |= training.advance()
            queue.end("pack", PackReport(ended={lanes[i].number: result for i, result in ended.items()}))


def outcome(folder: Path) -> list[Any]:
    return [(c.index, c.params, c.seed, c.state, c.score) for c in read_ledger(folder).finished()]


def each_once(folder: Path, configs: int) -> bool:
    return [c.index for c in read_ledger(folder).finished()] == list(range(configs))


def test_one_worker_does_what_a_plain_loop_does(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    said = io.StringIO()
    mirror = open_storage(str(tmp_path / "mirror"), "study")
    train = functools.partial(toy.Training, threads=2)
    console = Console(file=said, width=200)
    seen: list[str] = []
    looking = SimpleNamespace(every_s=0.0, look=lambda packs: not seen.append("look"), end=lambda: seen.append("end"))
    options: dict[str, Any] = {"train": train, "console": console, "mirror": mirror, "observers": [looking]}
    done = search(tmp_path / "study", resources=ONE_AT_A_TIME, **options)
    assert seen[0] == "look" and seen[-1] == "end" and seen.count("end") == 1
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
            book = stack.enter_context(open_ledger(tmp_path / folder, space=space, identity=toy.IDENTITY))
            queue = PackQueue(book, space, configs=12, pack=4, sampler="random", seed=5)
            train = functools.partial(toy.Training, threads=2)
            searches.append(Search(queue=queue, training=toy.OPTIONS, train=train))
        arrays, console = toy.trial_data().to_arrays(), Console(file=said, width=200)
        done = run_searches(searches, arrays, resources=ONE_AT_A_TIME, console=console)
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
    train = functools.partial(toy.Training, threads=2, die_once=die, fail_once=fail)
    done = search(tmp_path / "study", resources=ONE_AT_A_TIME, train=train)
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
    options, console = TrainingOptions(epochs=4, rungs=(1, 2), criterion="h"), Console(file=io.StringIO())
    with open_ledger(tmp_path / "study", space=space, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, space, configs=10, pack=3, sampler="random", seed=5, refill=True)
        search = Search(queue=queue, training=options)
        (done,) = run_searches([search], data.to_arrays(), resources=ResourceOptions(), console=console)
        finished = book.finished()
    assert [c.index for c in finished] == list(range(10)) and not done.interrupted
    assert done.counts.pruned and done.counts.packs < 4  # four without refilling
    for c in finished:
        config = space.config(**c.params)
        (alone,) = train_pack([config], seeds=[c.seed], data=data, options=options)
        assert c.curve == [(e, pytest.approx(s, abs=1e-5)) for e, s in alone.curve[: len(c.curve)]]


CONFIGS = 20
"""Five packs: enough to interrupt a study twice."""

DRIVER = """
import functools, sys
sys.path[:0] = {paths!r}
import ray, toy
import test_search_run
from pathlib import Path
from types import SimpleNamespace
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
toy.register()
resume = sys.argv[1] == "resume"
train = functools.partial(toy.Training, seconds=1.0)
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
    before = finished(folder)

    driver = start_driver(folder, "resume")
    wait_for(lambda: finished(folder) > before, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert before < finished(folder) < CONFIGS

    assert not search(folder, configs=CONFIGS, resume=True).interrupted and each_once(folder, CONFIGS)
    without_ray(tmp_path / "undisturbed", configs=CONFIGS)  # draws, seeds and verdicts of a study nobody disturbed
    assert outcome(folder) == outcome(tmp_path / "undisturbed")


def test_an_interrupted_search_in_a_notebook_frees_the_cluster_for_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    train = functools.partial(toy.Training, seconds=2.0)

    def interrupt() -> None:
        while not (finished(folder) or over.wait(0.1)):
            pass
        interrupt_main()

    over = threading.Event()
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert search(folder, configs=CONFIGS, train=train).interrupted
    finally:
        over.set()
    assert {t.state for t in read_ledger(folder).trials()}.isdisjoint({TrialState.RUNNING, TrialState.WAITING})
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 2:  # its actors are gone, in a process that goes on
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not search(folder, configs=CONFIGS, resume=True).interrupted and each_once(folder, CONFIGS)


def test_more_actors_do_what_one_does(tmp_path: Path) -> None:
    """Though the second actor has its scores long before the first."""
    search(tmp_path / "study", configs=24, train=functools.partial(toy.Training, seconds_of_first=4.0))
    without_ray(tmp_path / "loop", configs=24)
    assert outcome(tmp_path / "study") == outcome(tmp_path / "loop")
    assert {state for _, _, _, state, _ in outcome(tmp_path / "loop")} == {"complete", "pruned"}


def test_no_pack_waits_where_the_order_may_count(tmp_path: Path) -> None:
    search(tmp_path / "study", configs=24, in_order=False, train=functools.partial(toy.Training, seconds_of_first=4.0))
    ended = [trial.datetime_complete for trial in read_ledger(tmp_path / "study").trials()]
    assert each_once(tmp_path / "study", 24) and max(ended[:4]) == max(ended)  # the first pack's


def test_a_pack_does_not_wait_for_ever_for_one_that_hangs(tmp_path: Path) -> None:
    def train(*args: Any, **options: Any) -> toy.Training:
        pack_actor.PATIENCE_S = 0.1
        return toy.Training(*args, seconds_of_first=8.0, **options)

    search(tmp_path / "study", configs=24, train=train)
    ended = [trial.datetime_complete for trial in read_ledger(tmp_path / "study").trials()]
    assert each_once(tmp_path / "study", 24) and max(ended[:4]) == max(ended)  # the first pack's


def test_a_resumed_search_judges_with_the_ledgers_scores(tmp_path: Path) -> None:
    without_ray(tmp_path / "study", configs=8)
    halving = SuccessiveHalving()
    search(tmp_path / "study", configs=8, resume=True, halving=halving)
    curves = [dict(c.curve) for c in read_ledger(tmp_path / "study").finished()]
    assert halving.scores == {e: {i: c[e] for i, c in enumerate(curves) if e in c} for e in toy.RUNGS}


def test_an_actor_takes_pack_after_pack() -> None:
    import torch

    coordinator: Any = Coordinator.remote({"toy": SuccessiveHalving()})  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    job = PackJob(
        study="study",
        space="toy",
        config=dict,
        arrays=ray.put(toy.trial_data().to_arrays()),
        coordinator=coordinator,
        training=toy.OPTIONS,
        resources=ResourceOptions(cpus_per_pack=0.5),
        train=toy.Training,
    )

    class Actor(PackTrainable):
        def setup(self, config: dict[str, Any], jobs: Mapping[str, PackJob] = {"toy": job}) -> None:  # noqa: B006
            super().setup(config, jobs=jobs)

    def pack(*params: dict[str, Any]) -> Handed:
        lanes = [Lane(number=i + 10, trial_id=i, index=i, seed=i, params=p) for i, p in enumerate(params)]
        return Handed(space="toy", lanes=lanes)

    def at(x: float) -> dict[str, Any]:
        return {"layers": 0, "lr": 0.1, "x": x}

    try:
        actor = Actor({"pack": pack(at(0.4), at(0.99), at(0.9))})
        assert repr(actor) == "packs(study=study, spaces=toy, cpus=0.5)"
        result = actor.step()
        states = {number: outcome.state for number, outcome in result["report"].ended.items()}
        assert states == {10: "complete", 11: "failed", 12: "pruned"} and result["report"].over
        ray.get(coordinator.hand.remote(actor.trial_id, pack(at(0.5))))
        assert list(actor.step()["report"].ended) == [10]
        ray.get(coordinator.hand.remote(actor.trial_id, pack({})))
        assert actor.step() == {"report": PackReport(crash="KeyError: 'layers'", over=True), "done": False}
        assert actor.step() == {"report": PackReport(), "done": True}  # there is no other pack
        assert actor.reset({"pack": pack(at(0.5))})  # Tune uses it again
        assert list(actor.step()["report"].ended) == [10]
    finally:
        torch.set_num_threads(threads)
        ray.kill(coordinator)


def concurrent(cpus: float, gpus: float, workers: int = 1) -> int:
    return concurrent_packs(ResourceOptions(cpus_per_pack=cpus, gpus_per_pack=gpus, workers_per_pack=workers))


def test_packs_must_fit_the_cluster(tmp_path: Path) -> None:
    assert [concurrent(1, 0), concurrent(0.5, 0), concurrent(2, 0), concurrent(1, 0, workers=2)] == [2, 4, 1, 1]
    assert [concurrent(3, 0), concurrent(1, 1), concurrent(1, 0, workers=3)] == [0, 0, 0]
    with pytest.raises(ValueError, match="the cluster must hold a pack"):
        search(tmp_path / "study", resources=ResourceOptions(cpus_per_pack=3))


def test_a_ledger_that_is_gone_ends_the_search_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise UserError("must be a database that answers", option="ledger")

    monkeypatch.setattr(Ledger, "tell", gone)
    with pytest.raises(UserError, match="^ledger must be a database that answers$"):
        search(tmp_path)
