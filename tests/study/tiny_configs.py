"""Tiny configurations of every method that trains, one for each way in which its graph of operations can differ."""

from dataclasses import replace
from typing import Any

import torch

from models.baselines import CLIPAdapterConfig, CoOpConfig, LinearProbeConfig, TipAdapterConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.pack import Pack

SRE = SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8, token_dim=8, batch_size=32, lr=1e-3)
PVA = PVAConfig(latent_dim=12, hidden=8, batch_size=32, tau=0.1)
CONFIGS: dict[str, Any] = {
    "sre memory": SRE,
    "sre tokens": replace(SRE, adapter="tokens", adjacency="symmetric", gcn_layers=2),
    "sre no adapter": replace(SRE, adapter="none", gcn_layers=3),
    "sre no graph network": replace(SRE, gcn_layers=0),
    "sre no residual": replace(SRE, residual=False, class_text="both"),
    "sre no edges": replace(SRE, adjacency="identity", class_text="lemmas"),
    "pva": PVA,
    "pva relative": replace(PVA, score="relative", prompts="none", skip=False),
    "pva kl": replace(PVA, score="kl", alignment="w2"),
    "pva not variational": replace(PVA, variational=False, residual=False),
    "pva not separated": replace(PVA, separation=False, tau=None),
    "pva shared prompts": replace(PVA, prompts="shared", batch_size=128),
    "clip-adapter": CLIPAdapterConfig(width=8, batch_size=32),
    "tip-adapter-f": TipAdapterConfig(variant="F", shots=4, batch_size=32),
    "linear probe": LinearProbeConfig(batch_size=32),
    "coop": CoOpConfig(batch_size=128),
}
ENCODED = {"pva shared prompts", "coop"}
"""With a text encoder in the loop: packs of twelve lanes instead of 64, to save time."""


def pack_of(config: Any, lanes: int, data: TrialData, *, epochs: int = 2) -> Pack:
    """A pack with a lane per seed, each of which plays the next fold."""
    folds = [k % data.folds for k in range(lanes)]
    return Pack(
        [config] * lanes,
        seeds=list(range(lanes)),
        seen_KC=torch.stack([seen_classes(data, fold) for fold in folds]),
        trainable_KI=torch.stack([trainable_images(data, fold) for fold in folds]),
        data=data,
        epochs=epochs,
    )
