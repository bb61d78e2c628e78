"""Trains a pack: K configurations side by side as stacked tensors. No Ray in here.

While configurations are selected every configuration trains once per fold, and all its folds are lanes of the same
pack; a refit trains one lane per configuration and seed on all seen classes.

Suffixes: K lanes, I source images, T target images, B batch, C classes, D CLIP dimension.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from models.data_parallel import average, over_workers, share, workers
from models.stacked import CHUNK, append_lanes, chunks, in_chunks, unit
from models.sweeps import lead_of_seen
from study.methods import METHODS
from study.protocol import TrialData
from study.selection import Criterion, score, seen_classes, trainable_images

if TYPE_CHECKING:
    from study.checkpoints import Checkpoints

Precision = Literal["float32", "bfloat16"]
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
        for p in params:
            p.data = p.data.contiguous()
        self.mean = [torch.zeros_like(p) for p in params]
        self.square = [torch.zeros_like(p) for p in params]
        self.steps_K = torch.zeros(len(self.lr), device=params[0].device if params else None)

    @torch.no_grad()
    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor], schedule: Sequence[float]) -> None:
        """One update of all lanes; `schedule` scales each lane's learning rate."""
        self.steps_K += 1
        # the kernel walks through memory: a gradient in another order of axes would be another gradient
        grads = [g.contiguous() for g in grads]
        assert all(t.is_contiguous() for t in (*params, *self.mean, *self.square))
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

    def join(self, other: "StackedAdamW") -> None:
        """Append another optimiser's lanes."""
        self.lr, self.weight_decay = self.lr + other.lr, self.weight_decay + other.weight_decay
        self.mean = [append_lanes(*pair) for pair in zip(self.mean, other.mean, strict=True)]
        self.square = [append_lanes(*pair) for pair in zip(self.square, other.square, strict=True)]
        self.steps_K = torch.cat([self.steps_K, other.steps_K])


class Pack:
    """Lanes in training: their module, optimiser and data order.

    `trainable_KI`: bool, the source images each lane may train on; `seen_KC`: the classes it may know of.
    A lane's weights, noise and batches depend on its own seed alone, never on K or on its neighbours.
    Steps run eagerly: on a CPU half of a step is matrix products, and `torch.compile` spent 16 s of one core (and more
    in compiler processes) on the first epoch, per static bucket and actor; a whole pack trains in less than a minute.
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
        precision: Precision = "float32",
    ) -> None:
        self.data, self.epochs, self.precision = data, epochs, precision
        self.epoch = [0] * len(configs)  # of each lane: lanes that joined later are behind
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
        params = list(self.module.parameters())
        for step, (source_KB, target_KB) in enumerate(self._draw_epoch() if params else ()):
            total_K = self._loss(share(source_KB), share(target_KB))
            self.diverged_K |= ~total_K.detach().isfinite()
            grads = average(torch.autograd.grad(total_K.sum(), params))
            self.optimiser.step(params, grads, [self._schedule(e * self.steps_per_epoch + step) for e in self.epoch])
        self.diverged_K = over_workers(self.diverged_K.float()) > 0
        self.epoch = [e + 1 for e in self.epoch]

    def _loss(self, source_KB: Tensor, target_KB: Tensor) -> Tensor:
        """The loss (K,) that each lane minimises on its images."""
        data = self.data
        with torch.autocast(self.seen_KC.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            target = (unit(data.target_features_TD[target_KB]),) if self.method.uses_target else ()
            source_KBD = unit(data.source_features_ID[source_KB])
            losses = self.module.losses(source_KBD, data.source_labels_I[source_KB], *target)
            return self.module.total(losses)

    def bytes(self) -> int:
        """Memory that training takes, about: weights, their gradients and moments, and twice what backward keeps.

        Computes a loss for it, which draws noise: for a pack that will not train.
        """
        kept: dict[int, torch.UntypedStorage] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        rows = [indices[torch.arange(self.batch) % len(indices)] for indices in self.source_indices]
        source_KB = torch.stack(rows).to(self.seen_KC.device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._loss(source_KB, torch.zeros_like(source_KB))
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return 4 * weights + 2 * sum(storage.nbytes() for storage in kept.values())

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
            for images_BD in chunks(features_ID, self._chunk):
                yield self.module.logits(images_BD)

    @property
    def _chunk(self) -> int:
        return max(1, 4 * CHUNK // len(self.generators))  # larger ones: in each the class prototypes are made anew

    @torch.no_grad()
    def divide(self, features_ID: Tensor) -> Division:
        """How the lanes would classify images at any threshold between seen and unseen classes."""

        def by_logits(images_BD: Tensor) -> tuple[Tensor, ...]:
            return lead_of_seen(self.module.logits(images_BD), self.seen_KC)

        divided = in_chunks(getattr(self.module, "divide", by_logits), features_ID, self._chunk)
        lead, seen, unseen = (t.cpu() for t in divided)
        return Division(lead_KI=lead, seen_KI=seen, unseen_KI=unseen)

    def unseen_by_lambda(self, features_ID: Tensor) -> Tensor | None:
        """Best unseen class at every residual strength, (K, G, I) int16 on the CPU; None for methods without any."""
        if not hasattr(self.module, "unseen_by_lambda"):
            return None
        parts = [self.module.unseen_by_lambda(chunk) for chunk in chunks(features_ID, self._chunk)]
        return None if parts[0] is None else torch.cat([p.to(torch.int16).cpu() for p in parts], dim=-1)

    @torch.no_grad()
    def classify(self, features_ID: Tensor, among_KC: Tensor | None = None) -> Tensor:
        """Predicted classes (K, I), int64, of those in the mask `among_KC` (K, C) or (1, C), by default of all."""

        def best(images_BD: Tensor) -> tuple[Tensor]:
            return (best_class(self.module.logits(images_BD), among_KC),)

        return in_chunks(best, features_ID, self._chunk)[0]

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only; their results are unchanged, the others cost nothing any more."""
        index = torch.tensor(lanes, device=self.diverged_K.device)
        self.module.keep(index)
        self.optimiser.keep(index)
        self.generators = [self.generators[i] for i in lanes]
        self.source_indices = [self.source_indices[i] for i in lanes]
        self.epoch = [self.epoch[i] for i in lanes]
        self.seen_KC, self.diverged_K = self.seen_KC[index], self.diverged_K[index]

    def join(self, other: "Pack") -> None:
        """Train another pack's lanes as well, each from where it stands; all results are unchanged."""
        self.module.join(other.module)
        self.optimiser.join(other.optimiser)
        self.generators += other.generators
        self.source_indices += other.source_indices
        self.epoch += other.epoch
        self.seen_KC = torch.cat([self.seen_KC, other.seen_KC])
        self.diverged_K = torch.cat([self.diverged_K, other.diverged_K])

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, on the CPU; small enough to be written often."""
        kept = {f"lane.{name}": t for name, t in self.module.lanes().items()}
        kept |= {f"mean.{i}": t for i, t in enumerate(self.optimiser.mean)}
        kept |= {f"square.{i}": t for i, t in enumerate(self.optimiser.square)}
        kept |= {f"stream.{i}": stream.get_state() for i, stream in enumerate(self._streams)}
        kept |= {"diverged_K": self.diverged_K, "steps_K": self.optimiser.steps_K, "epoch": torch.tensor(self.epoch)}
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in kept.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the `state` of a pack of the same configurations, seeds and lanes still alive."""
        self.module.set_lanes({n.removeprefix("lane."): t for n, t in state.items() if n.startswith("lane.")})
        for i, (mean, square) in enumerate(zip(self.optimiser.mean, self.optimiser.square, strict=True)):
            mean.copy_(state[f"mean.{i}"])
            square.copy_(state[f"square.{i}"])
        for i, stream in enumerate(self._streams):
            stream.set_state(state[f"stream.{i}"])
        self.diverged_K.copy_(state["diverged_K"])
        self.optimiser.steps_K.copy_(state["steps_K"])
        self.epoch = state["epoch"].tolist()

    @property
    def _streams(self) -> list[torch.Generator]:
        """All random streams that training draws from."""
        return [*self.generators, *getattr(self.module, "noise_generators", [])]

    def _draw_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Image indices (K, B) of every step of an epoch, for source and for target."""
        count = self.steps_per_epoch * self.batch
        source, target = [], []
        for indices, generator in zip(self.source_indices, self.generators, strict=True):
            source.append(indices[_shuffled(len(indices), count, generator)])
            target.append(_shuffled(len(self.data.target_features_TD), count, generator))
        device = self.diverged_K.device
        source_KI, target_KI = torch.stack(source).to(device), torch.stack(target).to(device)
        return zip(source_KI.split(self.batch, dim=1), target_KI.split(self.batch, dim=1), strict=True)

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


def train_pack(configs: Sequence[Any], **options: Any) -> list[LaneResult]:
    """Train and score configurations that share their static knobs, to their end; `options` as in `train_lanes`."""
    results: dict[int, LaneResult] = {}
    for ended in train_lanes(configs, **options):
        results.update(ended)
    return [results[i] for i in range(len(configs))]


Training = Generator[dict[int, LaneResult], Sequence[tuple[Any, int]] | None, None]
"""Yields the results of configurations that have ended, by index; may be sent configurations with their seeds."""


def train_lanes(
    configs: Sequence[Any], *, seeds: Sequence[int], judge: Judge | None = None, **options: Any
) -> Training:
    """Train and score configurations; yields those that have ended, whenever some have, by their index.

    Every configuration trains once per fold, its folds side by side. At its epochs in `rungs`, `judge` hears the
    scores of the configurations still alive and says which go on. `on_epoch` hears (epoch, configurations alive).
    Configurations and seeds that are sent in return take the room of the ended ones, with the next indices; each
    starts from its own first epoch. Only `data` is looked at: its held-out and pseudo-unseen source images and its
    unlabelled target images. `options`: see `_train_together`.

    With `checkpoints` a pack that was cut off goes on from its last one, with the same results to the bit. Only for
    packs that no configuration joins.

    Where memory does not suffice, the configurations not yet ended start again, one half after the other and without
    checkpoints.
    """
    asked = list(zip(configs, seeds, strict=True))
    parts = [list(range(len(asked)))]
    while parts:
        alive = parts.pop(0)
        try:
            yield from _train_part(asked, alive, judge, options)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or len(alive) < 2 or workers()[1] > 1:  # the others would not know
                raise
            half = (len(alive) + 1) // 2
            parts[:0] = [alive[:half], alive[half:]]
            options = {**options, "checkpoints": None}
            print(f"out of memory with {len(alive)} configurations, going on with {half}: {error}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """CUDA's error has a type of its own, the CPU's allocator raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def _train_part(
    asked: list[tuple[Any, int]], alive: list[int], judge: Judge | None, options: Mapping[str, Any]
) -> Training:
    """Train some of the configurations asked for; both lists are kept up to date as lanes end and others join."""
    indices = list(alive)
    training = _train_together(
        [asked[i][0] for i in indices],
        seeds=[asked[i][1] for i in indices],
        judge=judge and (lambda epoch, scores: judge(epoch, [(indices[i], score) for i, score in scores])),
        **options,
    )
    new: Sequence[tuple[Any, int]] | None = None
    while True:
        try:
            ended = {indices[i]: result for i, result in training.send(new).items()}
        except StopIteration:
            return
        alive[:] = [i for i in alive if i not in ended]
        new = (yield ended) or []
        indices += range(len(asked), len(asked) + len(new))
        alive += range(len(asked), len(asked) + len(new))
        asked += new


def _train_together(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    criterion: Criterion = "h+mi",
    rungs: Sequence[int] = (),
    judge: Judge | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
    precision: Precision = "float32",
    checkpoints: "Checkpoints | None" = None,
) -> Training:
    """`train_lanes` as one pack, whatever memory it takes."""
    folds = _folds(data)

    def pack_of(configs: Sequence[Any], seeds: Sequence[int]) -> Pack:
        return pack_on_folds(configs, seeds=seeds, data=data, epochs=epochs, precision=precision)

    pack, count = pack_of(configs, seeds), len(configs)
    alive = {i: LaneResult() for i in range(count)}
    results = dict(alive)
    if checkpoints and (kept := checkpoints.load()):
        results = dict(enumerate(kept[1]))
        alive = {i: r for i, r in results.items() if r.state == "complete"}
        pack.keep([k for k in range(count * len(folds)) if k // len(folds) in alive])
        pack.restore(kept[0])
        _judge_again(results, rungs, judge)
        if len(alive) < count:
            yield {i: r for i, r in results.items() if i not in alive}
    while alive:
        started = time.perf_counter()
        pack.train_epoch()
        for result in alive.values():
            result.epochs += 1
        lanes = [(i, fold) for i in alive for fold in folds]
        judged = {i: result for i, result in alive.items() if result.epochs in rungs or result.epochs == epochs}
        if judged:
            score(pack, lanes, data, criterion, judged)
        seconds = (time.perf_counter() - started) / len(alive)
        for result in alive.values():
            result.train_seconds += seconds
        if judge:
            _prune(judged, epochs, judge)
        ended = {i: r for i, r in judged.items() if r.state != "complete" or r.epochs == epochs}
        going_on = sum(r.state == "complete" for r in alive.values())
        if on_epoch and going_on:
            on_epoch(max(r.epochs for r in alive.values()), going_on)
        alive = {i: r for i, r in alive.items() if i not in ended}
        if alive and ended:
            pack.keep([k for k, (i, _) in enumerate(lanes) if i in alive])
        if alive and checkpoints:
            checkpoints.save(pack, list(results.values()))
        if not ended:
            continue
        new = (yield ended) or ()
        if new:
            joining = pack_of([config for config, _ in new], [seed for _, seed in new])
            if alive:
                pack.join(joining)
            else:
                pack = joining
            alive |= {count + i: LaneResult() for i in range(len(new))}
            count += len(new)


def pack_on_folds(configs: Sequence[Any], *, seeds: Sequence[int], data: TrialData, **options: Any) -> Pack:
    """A pack of a lane per configuration and fold, a configuration's folds side by side; `options` of `Pack`."""
    folds = _folds(data)
    return Pack(
        [config for config in configs for _ in folds],
        seeds=[seed for seed in seeds for _ in folds],
        seen_KC=torch.stack([seen_classes(data, fold) for fold in folds]).repeat(len(configs), 1),
        trainable_KI=torch.stack([trainable_images(data, fold) for fold in folds]).repeat(len(configs), 1),
        data=data,
        **options,
    )


def _folds(data: TrialData) -> Sequence[int | None]:
    """Folds that play the unseen classes in turn; an oracle trains on everything, once."""
    return [None] if data.oracle_labels_T is not None else list(range(data.folds))


def bfloat16_keeps_ranking(configs: Sequence[Any], *, seeds: Sequence[int], data: TrialData, **options: Any) -> bool:
    """Whether configurations rank alike in both precisions after one epoch; `options` of `train_lanes`."""
    rankings = []
    for precision in ("float32", "bfloat16"):
        results = train_pack(configs, seeds=seeds, data=data, epochs=1, precision=precision, **options)
        rankings.append(sorted(range(len(configs)), key=lambda i: results[i].score or 0.0))  # noqa: B023
    return rankings[0] == rankings[1]


def _prune(judged: Mapping[int, LaneResult], epochs: int, judge: Judge) -> None:
    """Ask who goes on, among configurations that stand at the same rung."""
    for epoch in sorted({r.epochs for r in judged.values()} - {epochs}):
        scores = [(i, r.curve[-1][1]) for i, r in judged.items() if r.epochs == epoch and r.state != "failed"]
        for (i, _), goes_on in zip(scores, judge(epoch, scores) if scores else [], strict=True):
            if not goes_on:
                judged[i].state = "pruned"


def _judge_again(results: Mapping[int, LaneResult], rungs: Sequence[int], judge: Judge | None) -> None:
    """Tell a judge who may be new, as after the driver's death, the scores of lanes whose verdicts stand."""
    for epoch in rungs if judge else ():
        scores = [(i, score) for i, r in results.items() for at, score in r.curve if at == epoch]
        if judge and scores:
            judge(epoch, scores)
