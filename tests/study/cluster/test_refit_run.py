"""Refits: one worker and two agree, and what was interrupted goes on from its checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from data_prep.storage import locate
from models.baselines import CLIPAdapterConfig, TipAdapterConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from study.cluster.refit_run import refit
from study.cluster.session import cpus_per_worker
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.pack import Pack
from study.training.refit import Refit, refit_pack

SRE = SREConfig(gcn_width=8, gcn_layers=2, batch_size=16, pseudo_label_threshold=0.2)
PVA = PVAConfig(latent_dim=8, hidden=8, tau=0.2, batch_size=16)
MIXED = (
    SRE,
    PVA,
    TipAdapterConfig(shots=3),
    replace(SRE, lr=1e-3, w_div=1.0),
    CLIPAdapterConfig(width=4, batch_size=8),
)
"""Four packs, the first with two configurations; losses with batch statistics, noise, none at all."""


def pack_of(configs: Sequence[Any], data: TrialData, epochs: int) -> Pack:
    return Pack(
        configs,
        seeds=range(len(configs)),
        seen_KC=seen_classes(data, None).expand(len(configs), -1),
        trainable_KI=trainable_images(data, None).expand(len(configs), -1),
        data=data,
        epochs=epochs,
    )


@pytest.mark.parametrize("config", [SRE, PVA])
def test_a_restored_pack_goes_on_as_if_it_had_not_stopped(config: Any, data: TrialData) -> None:
    undisturbed, stopped, restored = (pack_of([config] * 2, data, epochs=4) for _ in range(3))
    for _ in range(4):
        undisturbed.train_epoch()
    for _ in range(2):
        stopped.train_epoch()
    stopped.diverged_K[1] = True
    restored.restore(stopped.state())
    assert restored.epoch == [2, 2]
    for _ in range(2):
        restored.train_epoch()
    logits_KTC = torch.cat(list(undisturbed.predict(data.target_features_TD)), dim=1)
    assert torch.equal(torch.cat(list(restored.predict(data.target_features_TD)), dim=1), logits_KTC)
    assert restored.diverged_K.tolist() == [False, True]


class Stop(Exception):
    pass


def test_an_interrupted_refit_goes_on_from_its_checkpoint(data: TrialData) -> None:
    class Checkpoint:
        """Checkpoints in memory; dies after three epochs."""

        state: Any = None
        epochs: list[int] = []

        def load(self) -> Any:
            return self.state and (self.state, [])

        def save(self, pack: Pack) -> None:
            self.epochs.append(pack.epoch[0])
            self.state = pack.state()
            if len(self.epochs) == 3:
                raise Stop

    checkpoint: Any = Checkpoint()
    with pytest.raises(Stop):
        refit_pack([SRE], seeds=[1, 2], data=data, epochs=5, checkpoint=checkpoint)
    (done,) = refit_pack([SRE], seeds=[1, 2], data=data, epochs=5, checkpoint=checkpoint)
    assert checkpoint.epochs == [1, 2, 3, 4, 5]
    (undisturbed,) = refit_pack([SRE], seeds=[1, 2], data=data, epochs=5)
    for name, tensor in undisturbed.weights.items():
        assert torch.equal(done.weights[name], tensor), name


def test_two_workers_refit_what_one_does(ray_cluster: None, data: TrialData, tmp_path: Path) -> None:
    """In one run of Ray Train, against the same packs trained here."""
    on_cluster = refit(
        MIXED,
        seeds=[3, 4],
        arrays=ray.put(data.to_arrays()),
        epochs=5,
        resources=ResourceOptions(refit_workers=2, checkpoint_every=2),
        storage=locate(str(tmp_path)),
    )
    here: list[Refit] = []
    for config in MIXED:
        here += refit_pack([config], seeds=[3, 4], data=data, epochs=5)
    for config, two, one in zip(MIXED, on_cluster, here, strict=True):
        for name, tensor in one.weights.items():
            # gradients of half batches add in another order: where one is nearly zero, AdamW turns its sign into a step
            close = torch.isclose(two.weights[name], tensor, rtol=2e-3, atol=2e-4).float().mean()
            assert close > 0.999, (type(config).__name__, name, float(close))
        assert (two.predictions_ST == one.predictions_ST).float().mean() > 0.99
        assert not two.diverged
    assert not list(tmp_path.iterdir())  # checkpoints of a finished refit go


def test_a_refits_workers_take_whole_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    head, node, gpu = {"memory": 1.0}, {"CPU": 8.0}, {"CPU": 6.0, "GPU": 2.0}
    alive = [{"Alive": True, "Resources": r} for r in (head, node, node, gpu)]
    dead = {"Alive": False, "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])

    def cpus(workers: int, cpus: float = 1, gpus: float = 0) -> float:
        return cpus_per_worker(ResourceOptions(refit_workers=workers, cpus_per_pack=cpus, gpus_per_pack=gpus))

    assert cpus(0) == 1
    assert cpus(1) == cpus(3) == 6  # the smallest node's, wherever it is placed
    assert cpus(4) == 3  # two on a node
    assert cpus(2, 2, 1) == 3 and cpus(12, 2) == 2
