"""Trains a pack: K configurations side by side as stacked tensors. No Ray in here.

While configurations are selected every configuration trains once per fold, and all its folds are lanes of the same
pack; a refit trains one lane per configuration and seed on all seen classes.

Suffixes: K lanes, I source images, T target images, B batch, C classes, D CLIP dimension.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from study.methods import METHODS
from study.protocol import MUTUAL_INFORMATION_WEIGHT, TrialData, seen_unseen, within_halves

PREDICT_CHUNK = 4096
"""Images per forward pass outside training, divided by the lanes: bounds memory on large benchmarks."""

Criterion = Literal["h+mi", "h", "mi"]
Judge = Callable[[int, list[tuple[int, float]]], list[bool]]
"""(epoch, [(configuration's index in the pack, score)]) -> whether each goes on."""


@dataclass(kw_only=True)
class LaneResult:
    """What became of one configuration."""

    state: Literal["complete", "pruned", "failed"] = "complete"
    """Trained to the end, stopped at a rung, or diverged."""
    score: float | None = None
    """What selection maximises, at the last epoch trained; None if failed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """val_h_mean and val_h_std over folds, val_seen, val_unseen, and target_mi in [0, 1]."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, score) at every rung and at the end."""
    epochs: int = 0
    """Epochs trained."""
    train_seconds: float = 0.0
    """Its share of the pack's time."""
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """Images divided between seen and unseen classes, whatever the threshold; on the CPU."""

    lead_KI: Tensor
    """Score that an image is of a seen class; at or above a threshold it is classified among them."""
    seen_KI: Tensor
    """Best seen class."""
    unseen_KI: Tensor
    """Best unseen class."""


def lead_of_seen(logits_KIC: Tensor, seen_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lead of the best seen class's logit over the best unseen one's, and both classes, (K, I) each."""
    seen, seen_KI = logits_KIC.masked_fill(~seen_KC[:, None], -math.inf).max(-1)
    unseen, unseen_KI = logits_KIC.masked_fill(seen_KC[:, None], -math.inf).max(-1)
    return seen - unseen, seen_KI, unseen_KI


def best_class(logits_KIC: Tensor, among_KC: Tensor | None = None) -> Tensor:
    """Class (K, I) of the largest logit, among those of a mask (K, C) or (1, C) if one is given."""
    if among_KC is not None:
        logits_KIC = logits_KIC.masked_fill(~among_KC[:, None], -math.inf)
    return logits_KIC.argmax(-1)


class StackedAdamW:
    """AdamW (Loshchilov & Hutter, 2019) with a learning rate, weight decay and step count per lane.

    torch's fused kernel reads and writes every number once, eight times faster than arithmetic on whole tensors; it
    takes one learning rate, so it runs once per lane, on the lane's slices of the stacked tensors.
    """

    def __init__(self, params: Sequence[Tensor], lr: Sequence[float], weight_decay: Sequence[float]) -> None:
        self.lr, self.weight_decay = list(lr), list(weight_decay)
        self.mean = [torch.zeros_like(p) for p in params]
        self.square = [torch.zeros_like(p) for p in params]
        self.steps_K = torch.zeros(len(self.lr), device=params[0].device if params else None)

    @torch.no_grad()
    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor], schedule: Sequence[float]) -> None:
        """One update of all lanes; `schedule` scales each lane's learning rate."""
        self.steps_K += 1
        stacked = [[t.unbind() for t in tensors] for tensors in (params, grads, self.mean, self.square)]
        for k in range(len(self.lr)):
            params_k, grads_k, mean_k, square_k = ([slices[k] for slices in tensors] for tensors in stacked)
            torch._fused_adamw_(
                params_k,
                grads_k,
                mean_k,
                square_k,
                [],
                [self.steps_K[k]] * len(params),
                lr=self.lr[k] * schedule[k],
                beta1=0.9,
                beta2=0.99,
                weight_decay=self.weight_decay[k],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )

    def keep(self, lanes: Tensor) -> None:
        """Drop all lanes but `lanes`."""
        self.lr, self.weight_decay = ([values[k] for k in lanes.tolist()] for values in (self.lr, self.weight_decay))
        self.mean = [t[lanes] for t in self.mean]
        self.square = [t[lanes] for t in self.square]
        self.steps_K = self.steps_K[lanes]


class Pack:
    """Lanes in training: their module, optimiser and data order.

    `trainable_KI`: bool, the source images each lane may train on; `seen_KC`: the classes it may know of.
    A lane's weights, noise and batches depend on its own seed alone, never on K or on its neighbours.
    """

    def __init__(
        self,
        configs: Sequence[Any],
        *,
        seeds: Sequence[int],
        seen_KC: Tensor,
        trainable_KI: Tensor,
        data: TrialData,
        epochs: int,
    ) -> None:
        self.data, self.epochs, self.epoch = data, epochs, 0
        device = data.source_features_ID.device
        self.batch = configs[0].batch_size
        # an epoch is the same number of steps for every fold, so that lanes stay in step
        self.steps_per_epoch = math.ceil(len(data.source_labels_I) / self.batch)
        self.method = METHODS[type(configs[0])]
        self.module = self.method.build(configs, seeds, seen_KC.cpu(), trainable_KI.cpu(), data.to("cpu"))
        self.module.to(device)
        self.optimiser = StackedAdamW(
            list(self.module.parameters()),
            [c.lr for c in configs],
            [c.weight_decay for c in configs],
        )
        # data order comes from streams of their own: drawing weights must not shift it
        self.generators = [torch.Generator().manual_seed(seed + 2**32) for seed in seeds]
        self.source_indices = [torch.nonzero(row).flatten() for row in trainable_KI.cpu()]
        self.seen_KC = seen_KC.to(device)
        self.diverged_K = torch.zeros(len(configs), dtype=torch.bool, device=device)

    def train_epoch(self) -> None:
        """One epoch of all lanes; no value leaves the device in it."""
        params, data = list(self.module.parameters()), self.data
        if not params:  # a training-free method
            self.epoch += 1
            return
        source_EKB, target_EKB = self._draw_epoch()
        for step, (source_KB, target_KB) in enumerate(zip(source_EKB, target_EKB, strict=True)):
            schedule = self._schedule(self.epoch * self.steps_per_epoch + step)
            target = (data.target_features_TD[target_KB],) if self.method.uses_target else ()
            losses = self.module.losses(data.source_features_ID[source_KB], data.source_labels_I[source_KB], *target)
            total_K = self.module.total(losses)
            self.diverged_K |= ~total_K.detach().isfinite()
            grads = torch.autograd.grad(total_K.sum(), params)
            self.optimiser.step(params, grads, [schedule] * len(self.generators))
        self.epoch += 1

    def calibrate(self, features_ID: Tensor, labels_I: Tensor, allowed_KI: Tensor) -> list[dict[str, float]]:
        """Sweep each lane's inference-time knobs on the images it may choose them by; their values, by lane."""
        if not self.method.swept:
            return [{} for _ in self.generators]
        lanes = (~self.diverged_K).nonzero().flatten().tolist()
        self.module.sweep(features_ID, labels_I, allowed_KI=allowed_KI.to(features_ID.device), lanes=lanes)
        for name in self.method.swept:  # a diverged lane is void, but must not stop its neighbours' predictions
            getattr(self.module, name)[self.diverged_K] = 0
        values = {name: getattr(self.module, name).tolist() for name in self.method.swept}
        return [{name: v[k] for name, v in values.items() if not math.isnan(v[k])} for k in range(len(self.generators))]

    def predict(self, features_ID: Tensor) -> Iterator[Tensor]:
        """Logits over all classes, (K, chunk, C) at a time, in order."""
        with torch.no_grad():
            for chunk in features_ID.split(self._chunk):
                yield self.module.logits(chunk)

    def divide(self, features_ID: Tensor) -> Division:
        """How the lanes would classify images at any threshold between seen and unseen classes."""
        chunks = features_ID.split(self._chunk)
        with torch.no_grad():
            if hasattr(self.module, "divide"):
                parts = [self.module.divide(chunk) for chunk in chunks]
            else:
                parts = [lead_of_seen(self.module.logits(chunk), self.seen_KC) for chunk in chunks]
        lead, seen, unseen = (torch.cat(tensors, dim=1).cpu() for tensors in zip(*parts, strict=True))
        return Division(lead_KI=lead, seen_KI=seen, unseen_KI=unseen)

    def classify(self, features_ID: Tensor, among_KC: Tensor | None = None) -> Tensor:
        """Predicted classes (K, I), int64, of those in the mask `among_KC` (K, C) or (1, C), by default of all."""
        return torch.cat([best_class(logits, among_KC) for logits in self.predict(features_ID)], dim=1)

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only; their results are unchanged, the others cost nothing any more."""
        index = torch.tensor(lanes, device=self.diverged_K.device)
        self.module.keep(index)
        self.optimiser.keep(index)
        self.generators = [self.generators[i] for i in lanes]
        self.source_indices = [self.source_indices[i] for i in lanes]
        self.seen_KC, self.diverged_K = self.seen_KC[index], self.diverged_K[index]

    @property
    def _chunk(self) -> int:
        return max(1, PREDICT_CHUNK // len(self.generators))

    def _draw_epoch(self) -> tuple[Tensor, Tensor]:
        """Image indices of every step of an epoch, (steps, K, B) for source and for target."""
        count = self.steps_per_epoch * self.batch
        source, target = [], []
        for indices, generator in zip(self.source_indices, self.generators, strict=True):
            source.append(indices[_shuffled(len(indices), count, generator)])
            target.append(_shuffled(len(self.data.target_features_TD), count, generator))
        shape = (len(source), self.steps_per_epoch, self.batch)
        device = self.diverged_K.device
        return (
            torch.stack(source).view(shape).transpose(0, 1).to(device),
            torch.stack(target).view(shape).transpose(0, 1).to(device),
        )

    def _schedule(self, step: int) -> float:
        """Linear warm-up over the first twentieth, then cosine decay to zero."""
        total = self.epochs * self.steps_per_epoch
        warm_up = max(1, total // 20)
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / total))


def _shuffled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below n: one permutation after another."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(math.ceil(count / n))])[:count]


def on_worker(arrays: Mapping[str, Any], *, cpus: float, gpus: float) -> TrialData:
    """Trial data on the device of an actor or task with these resources; sets the process's threads to its CPUs."""
    # more threads than CPUs make two actors on two cores ten times slower than one thread each
    torch.set_num_threads(max(1, int(cpus)))
    return TrialData.from_arrays(arrays).to("cuda" if gpus and torch.cuda.is_available() else "cpu")


def train_pack(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    criterion: Criterion = "h+mi",
    rungs: Sequence[int] = (),
    judge: Judge | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> list[LaneResult]:
    """Train and score configurations that share their static knobs.

    Every configuration trains once per fold, its folds side by side. At each epoch in `rungs`, `judge` hears the
    scores of the configurations still alive and says which go on. `on_epoch` hears (epoch, configurations alive).
    Only `data` is looked at: its held-out and pseudo-unseen source images and its unlabelled target images.
    """
    folds = [None] if data.oracle_labels_T is not None else list(range(data.folds))
    lanes = [(i, fold) for i in range(len(configs)) for fold in folds]
    pack = Pack(
        [configs[i] for i, _ in lanes],
        seeds=[seeds[i] for i, _ in lanes],
        seen_KC=torch.stack([seen_classes(data, fold) for _, fold in lanes]),
        trainable_KI=torch.stack([trainable_images(data, fold) for _, fold in lanes]),
        data=data,
        epochs=epochs,
    )
    results = [LaneResult() for _ in configs]
    alive = list(range(len(configs)))
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        pack.train_epoch()
        judged = epoch in rungs or epoch == epochs
        if judged:
            _score(pack, lanes, data, criterion, results, epoch)
        seconds = (time.perf_counter() - started) / len(alive)
        for i in alive:
            results[i].epochs, results[i].train_seconds = epoch, results[i].train_seconds + seconds
        if judged:
            stay = [i for i in alive if results[i].state != "failed"]
            if judge and epoch < epochs and stay:
                verdicts = judge(epoch, [(i, results[i].curve[-1][1]) for i in stay])
                for i, goes_on in zip(stay, verdicts, strict=True):
                    if not goes_on:
                        results[i].state = "pruned"
                stay = [i for i, goes_on in zip(stay, verdicts, strict=True) if goes_on]
            if len(stay) < len(alive):
                kept = [k for k, (i, _) in enumerate(lanes) if i in stay]
                lanes, alive = [lanes[k] for k in kept], stay
                if not alive:
                    break
                pack.keep(kept)
        if on_epoch:
            on_epoch(epoch, len(alive))
    return results


def seen_classes(data: TrialData, fold: int | None) -> Tensor:
    """Bool (C,): the classes a lane may know of; those of its fold play unseen ones."""
    return data.seen_C if fold is None else data.seen_C & (data.fold_C != fold)


def trainable_images(data: TrialData, fold: int | None) -> Tensor:
    """Bool (I,): the source images a lane may train on. Without a fold (refits, the oracle) all of them."""
    if fold is None:
        return torch.ones_like(data.held_out_I)
    return seen_classes(data, fold)[data.source_labels_I] & ~data.held_out_I


def scored_images(data: TrialData, fold: int) -> Tensor:
    """Bool (I,): held-out images of a fold's seen classes and all images of its pseudo-unseen ones."""
    return data.held_out_I | (data.fold_C == fold)[data.source_labels_I]


def _score(
    pack: Pack,
    lanes: Sequence[tuple[int, int | None]],
    data: TrialData,
    criterion: Criterion,
    results: Sequence[LaneResult],
    epoch: int,
) -> None:
    """Append every living configuration's score to its result; a lane whose loss was not finite fails."""
    # calibrated first: predictions depend on the swept knobs
    folds = [fold for _, fold in lanes if fold is not None]
    if data.oracle_labels_T is not None:
        everything_KT = torch.ones(len(lanes), len(data.oracle_labels_T), dtype=torch.bool)
        swept = pack.calibrate(data.target_features_TD, data.oracle_labels_T, everything_KT)
        target_1C = None if data.target_C is None else data.target_C[None]
        predictions_KT = pack.classify(data.target_features_TD, target_1C)
        if data.halves:
            classify = functools.partial(pack.classify, data.target_features_TD)
            predictions_KT = within_halves(classify, data.oracle_labels_T, pack.seen_KC)
        scores = seen_unseen(predictions_KT, data.oracle_labels_T, data.seen_C)
        seen_K, unseen_K, h_K = (s.tolist() for s in scores)
    else:
        scored_KI = torch.stack([scored_images(data, fold) for fold in folds])
        swept = pack.calibrate(data.source_features_ID, data.source_labels_I, scored_KI)
        if data.apart:
            classify = functools.partial(pack.classify, data.source_features_ID)
            predictions_KI = within_halves(classify, data.source_labels_I, pack.seen_KC)
        else:
            predictions_KI = pack.classify(data.source_features_ID)
        seen_K, unseen_K, h_K = pseudo_unseen_scores(predictions_KI, folds, data)
    information = [0.0] * len(lanes)
    if pack.method.uses_target:
        information = mutual_information(pack.predict(data.target_features_TD)).tolist()
    diverged_K = pack.diverged_K.tolist()
    for i in sorted({i for i, _ in lanes}):
        of_config = [k for k, (j, _) in enumerate(lanes) if j == i]
        result = results[i]
        if any(diverged_K[k] for k in of_config):
            result.state, result.score, result.error = "failed", None, f"loss was not finite by epoch {epoch}"
            continue
        result.metrics = summarise(
            [seen_K[k] for k in of_config],
            [unseen_K[k] for k in of_config],
            [h_K[k] for k in of_config],
            [information[k] for k in of_config],
        )
        # the refit takes the middle fold's value: a mean would be lost to one fold that chose infinity
        result.metrics |= {name: sorted(swept[k][name] for k in of_config)[len(of_config) // 2] for name in swept[0]}
        result.score = selection_score(result.metrics, criterion if data.oracle_labels_T is None else "h")
        result.curve.append((epoch, result.score))


def pseudo_unseen_scores(
    predictions_KI: Tensor, folds: Sequence[int], data: TrialData
) -> tuple[list[float], list[float], list[float]]:
    """S, U and H of each lane in its fold: held-out images of its seen classes, all images of its fold's classes."""
    seen: list[Tensor] = []
    unseen: list[Tensor] = []
    h: list[Tensor] = []
    for predicted_I, fold in zip(predictions_KI, folds, strict=True):
        seen_C = seen_classes(data, fold)
        scored_I = scored_images(data, fold)
        for values, value in zip(
            (seen, unseen, h),
            seen_unseen(predicted_I[None, scored_I], data.source_labels_I[scored_I], seen_C),
            strict=True,
        ):
            values.append(value)
    return torch.cat(seen).tolist(), torch.cat(unseen).tolist(), torch.cat(h).tolist()


def mutual_information(logits: Iterable[Tensor]) -> Tensor:
    """How much predictions tell about unlabelled images, (K,) in [0, 1], from logits (K, chunk, C), chunk by chunk.

    Entropy of the mean prediction minus mean entropy of the predictions, over its maximum log C. Needs no label.
    """
    sums: list[Tensor] = []
    entropies: list[Tensor] = []
    images = 0
    for logits_KBC in logits:
        log_p = logits_KBC.log_softmax(-1)
        p = log_p.exp()
        sums.append(p.sum(1))
        entropies.append(-(p * log_p).sum((1, 2)))
        images += p.shape[1]
    mean_KC = torch.stack(sums).sum(0) / images
    entropy_of_mean_K = -torch.xlogy(mean_KC, mean_KC).sum(-1)
    return (entropy_of_mean_K - torch.stack(entropies).sum(0) / images) / math.log(mean_KC.shape[1])


def summarise(
    seen: Sequence[float], unseen: Sequence[float], h: Sequence[float], information: Sequence[float]
) -> dict[str, float]:
    """A configuration's selection metrics from those of its folds."""
    h_F = torch.tensor(h)
    return {
        "val_h_mean": float(h_F.mean()),
        "val_h_std": float(h_F.std(correction=0)),
        "val_seen": sum(seen) / len(seen),
        "val_unseen": sum(unseen) / len(unseen),
        "target_mi": sum(information) / len(information),
    }


def selection_score(metrics: dict[str, float], criterion: Criterion) -> float:
    """What the search maximises: H of the pseudo-unseen folds, the target's mutual information, or their sum."""
    h, information = metrics["val_h_mean"], metrics["target_mi"]
    return {"h": h, "mi": information, "h+mi": h + MUTUAL_INFORMATION_WEIGHT * information}[criterion]
