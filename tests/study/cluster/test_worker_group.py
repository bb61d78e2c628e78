"""Packs that several workers train together do what those of one worker do."""

import functools
import io
from pathlib import Path

import pytest
import ray
import toy
from rich.console import Console
from small import run, search_here

from models.sre_clip import SREConfig
from search_spaces import Knob, Space
from study.cluster.jobs import Search
from study.cluster.search_run import run_searches
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData
from study.search.ledger import open_ledger
from study.search.pack_queue import PackQueue
from study.search.records import Configuration
from study.training.loop import TrainingOptions

SPACE = Space(
    name="two",
    method="SRE-CLIP",
    config=functools.partial(SREConfig, heads=2, slots=4, attention_width=8, gcn_width=8, batch_size=16),
    benchmark="toy",
    criterion="h*mi",
    knobs=(
        Knob(name="lr", scope="lane", default=3e-3, low=1e-3, high=1e-2, log=True, why="how far a step goes"),
        Knob(name="rho", scope="lane", default=0.5, low=0.1, high=1.0, why="strength of the adapter"),
    ),
)


def searched(folder: Path, data: TrialData, workers: int) -> list[Configuration]:
    """Search with packs of several workers; with one worker in this process, which is what one actor does."""
    with open_ledger(folder, space=SPACE, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, SPACE, configs=8, pack=4, sampler="random", seed=1)
        search = Search(queue=queue, training=TrainingOptions(epochs=4, rungs=(1, 2)))
        # one pack at a time: who is pruned depends on who came before
        resources = ResourceOptions(cpus_per_pack=2 // workers, workers_per_pack=workers)
        arrays, console = ray.put(data.to_arrays()), Console(file=io.StringIO())
        run = run_searches if workers > 1 else search_here
        (done,) = run([search], arrays, resources=resources, console=console)
        assert done.concurrent == 1 and not done.counts.deaths
        return book.finished()


def test_two_workers_search_what_one_does(ray_cluster: None, data: TrialData, tmp_path: Path) -> None:
    one, two = (searched(tmp_path / str(n), data, n) for n in (1, 2))
    assert {c.state for c in one} == {"complete", "pruned"}
    for a, b in zip(one, two, strict=True):
        assert (a.index, a.params, a.state, a.epochs) == (b.index, b.params, b.state, b.epochs)
        assert b.score == pytest.approx(a.score, abs=0.02)  # one of its 50 images may fall on the other side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers-per-pack", "3"], "--workers-per-pack must divide every batch size of sre, got 3 for"),
        (["--workers-per-pack", "2", "--refill"], "--workers-per-pack must be 1 with --refill, got 2"),
        (["--workers-per-pack", "2", "--gpus-per-pack", "0.5"], "--workers-per-pack needs whole GPUs, got 2 workers"),
    ],
)
def test_bad_numbers_of_workers(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, tmp_path, *options) == 2
    assert message in capsys.readouterr().err
