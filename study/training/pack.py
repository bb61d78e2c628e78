"""A pack: K lanes trained side by side as stacked tensors. No Ray in here.

Suffixes: K lanes, I source images, T target images, B batch, C classes, D CLIP dimension.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from models.data_parallel import average, over_workers, share
from models.stacked import CHUNK, MethodConfig, StackedModule, chunks, in_chunks, unit_features
from models.sweeps import Curve, seen_unseen_curve
from study.protocol.task import best_class
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.cuda_graph import Step, capture
from study.training.methods import method_of_config
from study.training.optimiser import StackedAdamW

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Images divided between seen and unseen classes, whatever the threshold; on the CPU."""

    lead_KI: Tensor
    """Score that an image is of a seen class; at or above a threshold it is classified among them."""
    seen_KI: Tensor
    """Best seen class."""
    unseen_KI: Tensor
    """Best unseen class."""

    def of(self, lanes: slice | Sequence[int]) -> "Division":
        """Return the division by some lanes."""
        return Division(lead_KI=self.lead_KI[lanes], seen_KI=self.seen_KI[lanes], unseen_KI=self.unseen_KI[lanes])

    def of_images(self, rows_B: Tensor) -> "Division":
        """Return the division of some images."""
        return Division(
            lead_KI=self.lead_KI[:, rows_B], seen_KI=self.seen_KI[:, rows_B], unseen_KI=self.unseen_KI[:, rows_B]
        )

    def at(self, threshold: float | Tensor) -> Tensor:
        """Return the classes (K, I) of the images at a threshold of all, or of each image (I,)."""
        return torch.where(self.lead_KI >= threshold, self.seen_KI, self.unseen_KI)

    def curve(self, lane: int, labels_I: Tensor, seen_C: Tensor, chosen: Tensor | slice = slice(None)) -> Curve:
        """Return seen against unseen accuracy of a lane's images (or those chosen) at every threshold."""
        lead, seen, unseen = (t[lane][chosen] for t in (self.lead_KI, self.seen_KI, self.unseen_KI))
        labels = labels_I[chosen]
        return seen_unseen_curve(lead, seen == labels, unseen == labels, labels, seen_C)


class Pack:
    """Lanes in training: their module, optimiser and data order.

    `trainable_KI`: bool, the source images each lane may train on; `seen_KC`: the classes it may know of.
    A lane's weights, noise and batches depend on its own seed alone, never on K or on its neighbours; the steps of an
    epoch on the largest of the folds, which are all there with each configuration.
    Steps run eagerly: on a CPU half of a step is matrix products, and `torch.compile` spent 16 s of one core (and more
    in compiler processes) on the first epoch, per static bucket and actor; a whole pack trains in less than a minute.
    """

    def __init__(
        self,
        configs: Sequence[MethodConfig],
        *,
        seeds: Sequence[int],
        seen_KC: Tensor,
        trainable_KI: Tensor,
        data: TrialData,
        epochs: int,
        precision: Precision = "float32",
        cuda_graphs: bool = False,
    ) -> None:
        """`cuda_graphs`: whether a GPU replays steps, instead of being told each of their operations."""
        self.data, self.epochs, self.precision = data, epochs, precision
        self.epoch = [0] * len(configs)  # of each lane: lanes that joined later are behind
        device = data.source_features_ID.device
        self.cuda_graphs = cuda_graphs and device.type == "cuda"
        self._replay: Step | None = None
        self.batch = configs[0].batch_size
        # an epoch is one pass over a lane's own images; the lane with the most sets its length, so that lanes stay in
        # step (by all source images, an image was seen 1.8 times per epoch in a search, and once in a refit)
        self.steps_per_epoch = math.ceil(int(trainable_KI.sum(1).max()) / self.batch)
        self.method = method_of_config(type(configs[0]))
        self.takes_head = hasattr(configs[0], "head")  # else none could be chosen, whatever the module embeds
        self.module = self.method.build(configs, seeds, seen_KC.cpu(), trainable_KI.cpu(), data.to("cpu"))
        self.module.to(device)
        self.module.run_steps = epochs * self.steps_per_epoch
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
        """Train all lanes for an epoch; no value leaves the device in it."""
        params = list(self.module.parameters())
        if params:
            first = [e * self.steps_per_epoch for e in self.epoch]
            schedules = [[self._schedule(f + step) for f in first] for step in range(self.steps_per_epoch)]
            steps = [
                (*images, rates)
                for images, rates in zip(self._draw_epoch(), self.optimiser.rates(schedules), strict=True)
            ]
            take = self._replayed(*steps[0]) if self.cuda_graphs else self._step
            for source_KB, target_KB, rates_2K in steps:
                take(source_KB, target_KB, rates_2K)
            if self._replay:
                increment_version(params)  # a replay counts no change of theirs, see `StackedAdamW`
        self.diverged_K.copy_(over_workers(self.diverged_K.float()) > 0)
        self.epoch = [e + 1 for e in self.epoch]

    def _step(self, source_KB: Tensor, target_KB: Tensor, rates_2K: Tensor) -> None:
        """Train all lanes on a batch each."""
        params = list(self.module.parameters())
        total_K = self._loss(share(source_KB), share(target_KB))
        self.diverged_K |= ~total_K.detach().isfinite()
        grads = average(torch.autograd.grad(total_K.sum(), params))
        self.optimiser.step(params, grads, rates_2K)

    def _replayed(self, *inputs: Tensor) -> Step:
        """Return the step as a CUDA graph, captured again when lanes have left; the step itself if that fails."""
        if self._replay is None:
            before = self.state()  # trying a step is training
            try:
                self._replay = capture(self._step, *inputs)
            except Exception as error:  # CUDA's and torch's own, of whatever cannot be captured
                warnings.warn(f"steps are not replayed: no CUDA graph of them: {error}", stacklevel=2)
                self.cuda_graphs = False
            self.restore(before)
        return self._replay or self._step

    def _loss(self, source_KB: Tensor, target_KB: Tensor) -> Tensor:
        """Return the loss (K,) that each lane minimises on its images."""
        data = self.data
        with torch.autocast(self.seen_KC.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            target = (unit_features(data.target_features_TD[target_KB]),) if self.method.uses_target else ()
            source_KBD = unit_features(data.source_features_ID[source_KB])
            losses = self.module.losses(source_KBD, data.source_labels_I[source_KB], *target)
            return self.module.total(losses)

    def bytes(self) -> int:
        """Estimate the memory that training takes: weights, gradients, moments, and twice what backward keeps.

        Computes a loss for it, which draws noise: for a pack that will not train.
        """
        saved: dict[int, torch.UntypedStorage] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage
            return tensor

        rows = [indices[torch.arange(self.batch) % len(indices)] for indices in self.source_indices]
        source_KB = torch.stack(rows).to(self.seen_KC.device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._loss(source_KB, torch.zeros_like(source_KB))
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return 4 * weights + 2 * sum(storage.nbytes() for storage in saved.values())

    def calibrate(
        self, features_ID: Tensor, labels_I: Tensor, allowed_KI: Tensor, groups: Sequence[Sequence[int]]
    ) -> list[Mapping[str, float]]:
        """Sweep each lane's inference-time knobs on images that it may choose them by.

        `groups`: the lanes of each configuration. Each lane takes its own best values; returned are, for each group,
        the values with the best mean over its lanes: none where nothing is swept or all lanes of a group diverged.
        """
        if not self.method.swept:
            return [{} for _ in groups]
        diverged_K = self.diverged_K.tolist()
        sound = [[k for k in lanes if not diverged_K[k]] for lanes in groups]
        allowed_KI = allowed_KI.to(features_ID.device)
        swept = self.module.sweep(
            features_ID,
            labels_I,
            allowed_KI=allowed_KI,
            groups=[lanes for lanes in sound if lanes],
            apart=not self.data.competing.thresholded,
        )
        found = iter(swept)
        for name in self.method.swept:  # a diverged lane is void, but must not stop its neighbours' predictions
            getattr(self.module, name)[self.diverged_K] = 0
        knobs = [next(found).knobs if lanes else {} for lanes in sound]
        return [{name: value for name, value in of.items() if not math.isnan(value)} for of in knobs]

    def predict(self, features_ID: Tensor) -> Iterator[Tensor]:
        """Yield logits over all classes, (K, chunk, C) at a time, in order."""
        with torch.no_grad():
            for images_BD in chunks(features_ID, self._chunk):
                yield self.module.logits(images_BD)

    def part(self, lanes: Sequence[int]) -> StackedModule:
        """Return a copy of some lanes: what all lanes embed of a large target would not fit."""
        module = copy.deepcopy(self.module)
        module.keep(torch.tensor(lanes, device=self.diverged_K.device))
        return module

    @property
    def _chunk(self) -> int:
        return max(1, 4 * CHUNK // len(self.generators))  # larger ones: in each the class prototypes are made anew

    @torch.no_grad()
    def divide(self, features_ID: Tensor) -> Division:
        """Divide images between seen and unseen classes, as the lanes would at any threshold between the two."""
        divided = in_chunks(lambda images_BD: self.module.divide(images_BD, self.seen_KC), features_ID, self._chunk)
        lead, seen, unseen = (t.cpu() for t in divided)
        return Division(lead_KI=lead, seen_KI=seen, unseen_KI=unseen)

    def unseen_by_lambda(self, features_ID: Tensor) -> Tensor | None:
        """Return the best unseen class at every residual strength, (K, G, I) int16 on the CPU; None without any."""
        parts = []
        for images_BD in chunks(features_ID, self._chunk):
            unseen_KGB = self.module.unseen_by_lambda(images_BD)
            if unseen_KGB is None:
                return None
            parts.append(unseen_KGB.to(torch.int16).cpu())
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def classify(self, features_ID: Tensor, among_KC: Tensor | None = None) -> Tensor:
        """Classify images: (K, I) int64, among the classes of a mask (K, C) or (1, C), by default among all."""

        def best(images_BD: Tensor) -> tuple[Tensor]:
            return (best_class(self.module.logits(images_BD), among_KC),)

        return in_chunks(best, features_ID, self._chunk)[0]

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only; their results are unchanged, the others cost nothing any more."""
        index, self._replay = torch.tensor(lanes, device=self.diverged_K.device), None
        self.module.keep(index)
        self.optimiser.keep(index)
        self.generators = [self.generators[i] for i in lanes]
        self.source_indices = [self.source_indices[i] for i in lanes]
        self.epoch = [self.epoch[i] for i in lanes]
        self.seen_KC, self.diverged_K = self.seen_KC[index], self.diverged_K[index]

    def join(self, other: "Pack") -> None:
        """Train another pack's lanes as well, each from where it stands; all results are unchanged."""
        self._replay = None
        self.module.join(other.module)
        self.optimiser.join(other.optimiser)
        self.generators += other.generators
        self.source_indices += other.source_indices
        self.epoch += other.epoch
        self.seen_KC = torch.cat([self.seen_KC, other.seen_KC])
        self.diverged_K = torch.cat([self.diverged_K, other.diverged_K])

    def state(self) -> dict[str, Tensor]:
        """Return everything that training goes on from, on the CPU; small enough to be written often."""
        state = {f"lane.{name}": t for name, t in self.module.lanes().items()} | self.optimiser.state()
        state |= {f"stream.{i}": stream.get_state() for i, stream in enumerate(self.generators)}
        state |= {"diverged_K": self.diverged_K, "epoch": torch.tensor(self.epoch)}
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the `state` of a pack of the same configurations, seeds and lanes still alive."""
        self.module.set_lanes({n.removeprefix("lane."): t for n, t in state.items() if n.startswith("lane.")})
        self.optimiser.restore(state)
        for i, stream in enumerate(self.generators):
            stream.set_state(state[f"stream.{i}"])
        self.diverged_K.copy_(state["diverged_K"])
        self.epoch = state["epoch"].tolist()

    def _draw_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return image indices (K, B) of every step of an epoch, for source and for target."""
        count = self.steps_per_epoch * self.batch
        source, target = [], []
        for indices, generator in zip(self.source_indices, self.generators, strict=True):
            source.append(indices[_shuffled(len(indices), count, generator)])
            target.append(_shuffled(len(self.data.target_features_TD), count, generator))
        device = self.diverged_K.device
        source_KI, target_KI = torch.stack(source).to(device), torch.stack(target).to(device)
        return zip(source_KI.split(self.batch, dim=1), target_KI.split(self.batch, dim=1), strict=True)

    def _schedule(self, step: int) -> float:
        """Return the learning rate's factor: linear warm-up over the first twentieth, then cosine decay to zero."""
        total = self.epochs * self.steps_per_epoch
        warm_up = max(1, total // 20)
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / total))


def _shuffled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` indices below n: one permutation after another."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(math.ceil(count / n))])[:count]


def pack_on_folds(
    configs: Sequence[MethodConfig],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    precision: Precision = "float32",
    cuda_graphs: bool = False,
) -> Pack:
    """Return a pack with a lane per configuration and fold, a configuration's folds side by side."""
    folds = folds_of(data)
    return Pack(
        [config for config in configs for _ in folds],
        seeds=[seed for seed in seeds for _ in folds],
        seen_KC=torch.stack([seen_classes(data, fold) for fold in folds]).repeat(len(configs), 1),
        trainable_KI=torch.stack([trainable_images(data, fold) for fold in folds]).repeat(len(configs), 1),
        data=data,
        epochs=epochs,
        precision=precision,
        cuda_graphs=cuda_graphs,
    )


def folds_of(data: TrialData) -> Sequence[int | None]:
    """Return the folds that play the unseen classes in turn; an oracle trains on everything, once."""
    return [None] if data.oracle_labels_T is not None else list(range(data.folds))
