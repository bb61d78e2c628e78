"""A pack that is cut off goes on from its checkpoint as if nothing had been."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from data_prep.storage import locate
from models.baselines import LinearProbeConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from study.cluster.checkpoint_store import RemoteStore, start_checkpoint_store
from study.cluster.coordinator import Coordinator, Handed
from study.cluster.jobs import PackJob
from study.cluster.pack_actor import PackTrainable
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData
from study.search.halving import SuccessiveHalving
from study.search.records import Lane, PackReport
from study.training import pack_checkpoint as checkpoints
from study.training.loop import Training, TrainingOptions
from study.training.pack import Pack
from study.training.pack_checkpoint import Moving, PackCheckpoint
from study.training.scoring import LaneResult

SRE = SREConfig(gcn_width=8, gcn_layers=2, batch_size=16, lr=3e-3)
PVA = PVAConfig(latent_dim=8, hidden=8, tau=0.2, batch_size=16)
EPOCHS, RUNGS = 6, (1, 3)


class Judge:
    """Of a search with one pack."""

    def __init__(self) -> None:
        self.halving = SuccessiveHalving()

    def __call__(self, epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
        return self.halving.judge(epoch, dict(scores))


@pytest.fixture(scope="module")
def store(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteStore]:
    store = start_checkpoint_store(locate(tmp_path_factory.mktemp("study")))
    yield store
    store.close()


def comparable(results: dict[int, LaneResult]) -> list[dict[str, Any]]:
    return [asdict(replace(results[i], train_seconds=0.0)) for i in sorted(results)]


def trained(configs: Sequence[Any], data: TrialData, judge: Any, **options: Any) -> dict[int, LaneResult]:
    results: dict[int, LaneResult] = {}
    how = TrainingOptions(epochs=EPOCHS, rungs=RUNGS)
    training = Training(configs, seeds=range(len(configs)), data=data, options=how, judge=judge, **options)
    while not training.done:
        results |= training.advance()
    return results


class Killed(Exception):
    pass


@pytest.mark.parametrize("config", [SRE, PVA], ids=["sre", "pva"])
@pytest.mark.parametrize("driver_too", [False, True], ids=["pack", "driver"])
def test_a_pack_killed_again_and_again_ends_as_if_undisturbed(
    data: TrialData, store: RemoteStore, monkeypatch: pytest.MonkeyPatch, config: Any, driver_too: bool
) -> None:
    """To the bit, with lanes pruned at two rungs and one that diverges; killed an epoch after every checkpoint."""
    monkeypatch.setattr(checkpoints, "COST", 0)
    configs = [replace(config, lr=lr) for lr in (1e-3, 3e-3, 1e38, 2e-3, 4e-3)]
    undisturbed = Judge()
    expected = trained(configs, data, undisturbed)
    assert sorted(r.state for r in expected.values()) == ["complete", "failed", "pruned", "pruned", "pruned"]
    epochs: list[int] = []

    class Mortal(PackCheckpoint):
        saved = False

        def save(self, pack: Pack, results: Sequence[LaneResult] = ()) -> None:
            epochs.append(pack.epoch[0])
            if self.saved:
                raise Killed
            super().save(pack, results)
            self.saved = True

    name, judge, results = f"{type(config).__name__}-{driver_too}", Judge(), dict[int, LaneResult]()
    while not results:
        judge = Judge() if driver_too else judge
        checkpoint = Mortal(store, name, seconds=0.0)
        with contextlib.suppress(Killed):
            results = trained(configs, data, judge, checkpoint=checkpoint)
    assert epochs == [1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert comparable(results) == comparable(expected)
    assert judge.halving.scores == undisturbed.halving.scores
    checkpoint.remove()
    assert PackCheckpoint(store, name).load() is None


def test_a_pack_that_must_move_leaves_a_checkpoint_whatever_the_time(data: TrialData, store: RemoteStore) -> None:
    checkpoint = PackCheckpoint(store, "moving", every=100, seconds=1000.0)
    heard: list[int] = []

    def on_epoch(epoch: int, alive: int) -> None:
        heard.append(epoch)
        checkpoint.moving = epoch == 4

    with pytest.raises(Moving):
        trained([SRE, replace(SRE, lr=1e-3)], data, None, checkpoint=checkpoint, on_epoch=on_epoch)
    assert heard == [1, 2, 3, 4]
    checkpoint.moving = False
    results = trained([SRE, replace(SRE, lr=1e-3)], data, None, checkpoint=checkpoint, on_epoch=on_epoch)
    assert heard == [1, 2, 3, 4, 5, 6]
    assert comparable(results) == comparable(trained([SRE, replace(SRE, lr=1e-3)], data, None))


def test_checkpoints_are_apart_by_epochs_by_seconds_and_by_what_they_cost(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints, "monotonic", lambda: now)

    class Pack:
        epochs = 1000

        def __init__(self, epoch: int) -> None:
            self.epoch = [epoch]

        def state(self) -> dict[str, Any]:
            nonlocal now
            now += 0.5  # what it takes
            written.append(self.epoch[0])
            return {}

    checkpoint, written = PackCheckpoint(store, "apart", every=2, seconds=10.0), list[int]()
    assert checkpoint.load() is None
    for epoch in range(1, 101):
        now += 1.0
        checkpoint.save(Pack(epoch))  # type: ignore[arg-type]
    assert written == [10, 36, 62, 88]  # every other epoch, 10 s after the start, then 25 s apart
    checkpoint.save(Pack(1000))  # type: ignore[arg-type]  # the last: a refit's other packs may take hours
    assert written[-1] == 1000


def test_storage_that_fails_costs_checkpoints_but_no_pack(ray_cluster: None, data: TrialData, tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("no folder")
    store = start_checkpoint_store(locate(tmp_path) / "packs")
    checkpoint = PackCheckpoint(store, "pack", seconds=0.0)
    assert comparable(trained([SRE], data, None, checkpoint=checkpoint)) == comparable(trained([SRE], data, None))
    checkpoint.remove()
    assert PackCheckpoint(store, "pack").load() is None
    assert [p.name for p in tmp_path.iterdir()] == ["packs"]
    store.close()


def test_an_actor_moves_once_and_begins_anew_where_a_checkpoint_does_not_fit(data: TrialData, tmp_path: Path) -> None:
    coordinator: Any = Coordinator.remote({"probe": SuccessiveHalving()})  # type: ignore[attr-defined]
    store = start_checkpoint_store(locate(tmp_path))
    job = PackJob(
        study="study",
        space="probe",
        config=LinearProbeConfig,
        arrays=ray.put(data.to_arrays()),
        coordinator=coordinator,
        training=TrainingOptions(epochs=EPOCHS),
        resources=ResourceOptions(),
        store=store,
    )

    class Actor(PackTrainable):
        def setup(self, config: dict[str, Any], jobs: dict[str, PackJob] = {"probe": job}) -> None:  # type: ignore[override]  # noqa: B006
            super().setup(config, jobs=jobs)

    lanes = [Lane(number=i, trial_id=i, index=i, seed=i, params={"lr": 1e-3 * (i + 1)}) for i in range(2)]
    pack = {"pack": Handed(space="probe", lanes=lanes)}
    undisturbed = Actor(pack).step()["report"].ended
    assert not list(tmp_path.iterdir())  # it took no ten seconds

    actor = Actor(pack)
    assert actor.checkpoint
    actor.checkpoint.moving = True
    assert actor.step() == {"report": PackReport(moved=True), "done": False}
    with pytest.raises(Moving):  # Tune lets go of the actor
        actor.step()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert comparable(Actor(pack).step()["report"].ended) == comparable(undisturbed)
    store.load("")  # it has dealt with all before
    assert not file.exists()

    file.write_bytes(content[: len(content) // 2])
    actor = Actor(pack)
    assert actor.step()["report"].crash
    actor.reset(pack)
    assert comparable(actor.step()["report"].ended) == comparable(undisturbed)
    ray.kill(coordinator)
    store.close()
