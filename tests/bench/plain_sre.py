"""SRE-CLIP as one would write it for a single configuration: one model, eager PyTorch, `torch.optim.AdamW`.

The baseline of the benchmarks, and an implementation of `models/sre_clip.py` that shares none of its arithmetic: both
must give the same losses and scores from the same seed. `naive=True` also leaves out what a GCN tutorial leaves out:
the adjacency is dense, all nodes pass through every layer and through the residual projection.

Suffixes: I source images, T target images, B batch, C classes, N nodes, D CLIP dimension.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.graph_conv import normalised_adjacency
from models.sre_clip import SREConfig
from study.protocol.consensus import agreement  # noqa: E402
from study.protocol.scores import mutual_information, pseudo_unseen_scores, selection_score, summarise
from study.protocol.trial_data import TrialData, seen_classes, trainable_images


class PlainSRE(nn.Module):
    """One SRE-CLIP adapter; its weights are those of a lane with this configuration and seed."""

    def __init__(self, config: SREConfig, *, seed: int, seen_C: Tensor, data: TrialData, naive: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.config, self.seen_C, self.scale, self.naive = config, seen_C, data.logit_scale, naive
        self.text_ND, self.class_node_C = data.graph.text_features(config.class_text), data.class_node_C
        dim = self.text_ND.shape[1]

        def normal(*shape: int, std: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g) * std)

        if config.adapter == "memory":
            self.query = normal(dim, config.attention_width)
            self.keys = normal(config.slots, config.attention_width)
            self.values = normal(config.slots, config.attention_width)
            self.out = nn.Parameter(torch.zeros(config.attention_width, dim))
        else:
            width = self.token_dim = config.token_dim or dim // 4
            self.position = normal(dim // width, width, std=width**-0.5)
            self.qkv = normal(width, 3 * width)
            self.out = nn.Parameter(torch.zeros(width, width))
        self.gcn = nn.ParameterList()
        if config.gcn_layers:
            edges = data.edges_E2 if config.adjacency != "identity" else data.edges_E2[:0]
            kind = "symmetric" if config.adjacency == "symmetric" else "row"
            adjacency = normalised_adjacency(edges, len(self.text_ND), kind)
            self.adjacency_NN = adjacency.to_dense() if naive else adjacency
            sizes = [dim] + [config.gcn_width] * (config.gcn_layers - 1) + [dim]
            self.gcn.extend(normal(i, o, std=(2 / (i + o)) ** 0.5) for i, o in zip(sizes, sizes[1:], strict=False))
            nn.init.zeros_(self.gcn[-1])
        self.residual = nn.Parameter(torch.eye(dim))

    def adapt(self, x_BD: Tensor) -> Tensor:
        """Adapted, normalised features."""
        c = self.config
        if c.adapter == "memory":
            q, k, v = (
                t.unflatten(-1, (c.heads, -1)).transpose(0, 1) for t in (x_BD @ self.query, self.keys, self.values)
            )
            attended = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1) @ self.out
        else:
            tokens = x_BD.unflatten(-1, (-1, self.token_dim)) + self.position
            q, k, v = (t.unflatten(-1, (c.heads, -1)).transpose(1, 2) for t in (tokens @ self.qkv).chunk(3, dim=-1))
            attended = (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ self.out).flatten(1)
        return F.normalize(x_BD + c.rho * attended, dim=-1)

    def prototypes(self) -> Tensor:
        """Class prototypes (C, D)."""
        hidden_ND = self.text_ND
        for i, weight in enumerate(self.gcn):
            hidden_ND = self.adjacency_NN @ ((F.leaky_relu(hidden_ND, 0.2) if i else hidden_ND) @ weight)
        if self.naive:
            mixed_ND = self.config.residual_scale * self.text_ND @ self.residual
            return F.normalize(mixed_ND + hidden_ND if len(self.gcn) else mixed_ND, dim=-1)[self.class_node_C]
        mixed_CD = self.config.residual_scale * self.text_ND[self.class_node_C] @ self.residual
        return F.normalize(mixed_CD + hidden_ND[self.class_node_C] if len(self.gcn) else mixed_CD, dim=-1)

    def logits(self, x_BD: Tensor) -> Tensor:
        """Logits (B, C) over all classes."""
        return self.scale * self.adapt(x_BD) @ self.prototypes().T

    def loss(self, source_BD: Tensor, labels_B: Tensor, target_BD: Tensor) -> Tensor:
        """The weighted sum of all losses."""
        c = self.config
        prototypes_CD = self.prototypes()
        source_BC = self.adapt(source_BD) @ prototypes_CD.T
        target_BC = self.adapt(target_BD) @ prototypes_CD.T
        text_CC = self.adapt(self.text_ND[self.class_node_C]) @ prototypes_CD.T
        classes = torch.arange(len(text_CC))
        relations_CC = F.softmax((prototypes_CD @ prototypes_CD.T).detach() / c.relation_temperature, dim=-1)

        def relation_loss(cosine_BC: Tensor, labels_B: Tensor) -> Tensor:
            log_p_BC = F.log_softmax(cosine_BC / c.relation_temperature, dim=-1)
            return F.kl_div(log_p_BC, relations_CC[labels_B], reduction="none").sum(-1)

        p_BC = F.softmax(self.scale * target_BC / c.target_temperature, dim=-1)
        log_p_BC = F.log_softmax(self.scale * target_BC / c.target_temperature, dim=-1)
        mean_C = p_BC.mean(0)
        confidence_B, pseudo_B = p_BC.detach().max(-1)
        trusted_B = confidence_B >= c.pseudo_label_threshold
        cls = F.cross_entropy((self.scale * source_BC).masked_fill(~self.seen_C, -math.inf), labels_B)
        srs = relation_loss(source_BC, labels_B).mean()
        srs = srs + (relation_loss(target_BC, pseudo_B) * trusted_B).sum() / trusted_B.sum().clamp_min(1)
        align = F.cross_entropy(self.scale * text_CC, classes)
        entropy = -(p_BC * log_p_BC).sum(-1).mean()
        diversity = math.log(len(mean_C)) + (mean_C * mean_C.clamp_min(1e-12).log()).sum()
        prior = (c.unseen_prior * (~self.seen_C).float().mean()).clamp(max=0.99)
        mass = mean_C[~self.seen_C].sum().clamp(1e-6, 1 - 1e-6)
        balance = prior * (prior / mass).log() + (1 - prior) * ((1 - prior) / (1 - mass)).log()
        return cls + c.w_srs * srs + c.w_align * align + c.w_ent * entropy + c.w_div * diversity + c.w_bal * balance


class PlainTraining:
    """A configuration in training on one fold."""

    def __init__(
        self, config: SREConfig, *, seed: int, fold: int, data: TrialData, epochs: int, naive: bool = False
    ) -> None:
        self.data, self.fold, self.batch = data, fold, config.batch_size
        self.model = PlainSRE(config, seed=seed, seen_C=seen_classes(data, fold), data=data, naive=naive)
        self.steps = math.ceil(len(data.source_labels_I) / self.batch)
        total = epochs * self.steps
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda s: min(1.0, (s + 1) / max(1, total // 20)) * 0.5 * (1 + math.cos(math.pi * s / total)),
        )
        self.order = torch.Generator().manual_seed(seed + 2**32)
        self.images = trainable_images(data, fold).nonzero().flatten()

    def train_epoch(self) -> None:
        """One epoch."""
        source = self.images[self._shuffled(len(self.images))]
        target = self._shuffled(len(self.data.target_features_TD))
        for source_B, target_B in zip(source.split(self.batch), target.split(self.batch), strict=True):
            self.optimiser.zero_grad()
            loss = self.model.loss(
                self.data.source_features_ID[source_B],
                self.data.source_labels_I[source_B],
                self.data.target_features_TD[target_B],
            )
            loss.backward()
            self.optimiser.step()
            self.schedule.step()

    @torch.no_grad()
    def score(self) -> dict[str, Any]:
        """Seen, unseen and H on the fold; of the target mutual information and, with a reference, agreement."""
        predictions_1I = self.model.logits(self.data.source_features_ID).argmax(-1)[None]
        target_1TC = self.model.logits(self.data.target_features_TD)[None]
        measured = {"target_mi": float(mutual_information([target_1TC]))}
        if self.data.reference_T is not None:
            agreed_1 = agreement(target_1TC.argmax(-1), self.data.reference_T, self.data.seen_C)
            measured["target_agreement"] = float(agreed_1)
        return {"scores": pseudo_unseen_scores(predictions_1I, [self.fold], self.data), "target": measured}

    def _shuffled(self, n: int) -> Tensor:
        count = self.steps * self.batch
        rounds = math.ceil(count / n)
        return torch.cat([torch.randperm(n, generator=self.order) for _ in range(rounds)])[:count]


def train_plain(
    config: SREConfig, *, seed: int, data: TrialData, epochs: int, naive: bool = False
) -> Iterator[dict[str, float]]:
    """Train one model per fold; the selection metrics and score after every epoch."""
    folds = [
        PlainTraining(config, seed=seed, fold=fold, data=data, epochs=epochs, naive=naive) for fold in range(data.folds)
    ]
    for _ in range(epochs):
        scores = []
        for fold in folds:
            fold.train_epoch()
            scores.append(fold.score())
        seen, unseen, h = ([s["scores"][i][0] for s in scores] for i in range(3))
        target = {name: [s["target"][name] for s in scores] for name in scores[0]["target"]}
        metrics = summarise(seen, unseen, h, target)
        yield {**metrics, "score": selection_score(metrics, "h*mi" if data.reference_T is None else "agreement")}
