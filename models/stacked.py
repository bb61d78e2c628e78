"""Lanes: K configurations of one method trained side by side as stacked tensors.

Every parameter of a method has a leading lane axis K, and so has every buffer registered with `register_lane`;
a single adapter is simply a pack of one lane. Nothing is summed across lanes, so the gradient of the summed loss
is each lane's own gradient, and a lane that diverges cannot touch its neighbours.

`LaneModule` is the base of all parts of a method, `StackedModule` of the method itself.

Suffixes: K lanes, B batch, I images, C classes, D CLIP dimension, G grid of residual strengths.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from models.sweeps import Swept, lead_of_seen

# --- configurations -------------------------------------------------------------------------------------------------


class MethodConfig(Protocol):
    """The fields that every method's configuration has: a frozen dataclass with numbers, strings and switches."""

    LANE_KNOBS: ClassVar[frozenset[str]]
    """Fields in which lanes of one pack may differ; all others change tensor shapes or the graph of operations."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batch_size(self) -> int:
        """Images of each domain per step."""

    @property
    def lr(self) -> float:
        """Peak learning rate of AdamW."""

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay."""


def check_fields(
    config: MethodConfig,
    *,
    at_least_one: Sequence[str] = (),
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
) -> None:
    """Raise `ValueError` with field, rule and value if a named field of a configuration breaks its rule.

    `positive` and `not_negative` fields must be finite, too.
    """
    for name in at_least_one:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in positive:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise ValueError(f"{name} must be finite and positive, got {getattr(config, name)}")
    for name in not_negative:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {getattr(config, name)}")


def check_static(configs: Sequence[MethodConfig]) -> None:
    """Raise `ValueError` if configurations of one pack differ in a field that is not a lane knob."""
    for f in fields(configs[0]):
        values = {getattr(c, f.name) for c in configs}
        if f.name not in configs[0].LANE_KNOBS and len(values) > 1:
            raise ValueError(f"{f.name} is static: all lanes of a pack must share it, got {sorted(map(str, values))}")


def lane_field(configs: Sequence[MethodConfig], name: str) -> Tensor:
    """Return a numeric field of every lane's configuration, float32 (K,)."""
    return torch.tensor([float(getattr(c, name)) for c in configs])


def lane_normal(generators: Sequence[torch.Generator], *shape: int, std: float) -> Tensor:
    """Draw normal noise (K, *shape), each lane from its own generator: independent of K and of the neighbours."""
    return torch.stack([torch.randn(*shape, generator=g) * std for g in generators])


def lane_uniform(generators: Sequence[torch.Generator], *shape: int, bound: float) -> Tensor:
    """Draw noise (K, *shape) uniform in [-bound, bound), each lane from its own generator."""
    return torch.stack([(2 * torch.rand(*shape, generator=g) - 1) * bound for g in generators])


# --- image features -------------------------------------------------------------------------------------------------

CHUNK = 4096
"""Images whose logits are computed at once where no gradient is: those of all of a large benchmark would not fit."""


def unit_features(features: Tensor) -> Tensor:
    """Return image features as the modules take them, float32 rows of length one; large ones are stored as float16.

    A row's value does not depend on the rows beside it: cast in batches or all at once, features are the same.
    """
    return nn.functional.normalize(features.float(), dim=-1) if features.dtype == torch.float16 else features


def chunks(features_ID: Tensor, size: int = CHUNK) -> Iterator[Tensor]:
    """Yield image features, `size` rows at a time, as the modules take them."""
    return map(unit_features, features_ID.split(size))


def in_chunks(
    work: Callable[[Tensor], tuple[Tensor, ...]], features_ID: Tensor, size: int = CHUNK
) -> tuple[Tensor, ...]:
    """Return the results of `work` for all image features, computed `size` rows at a time.

    The last axis of every tensor that `work` returns is the images' axis. Results are written into memory allocated
    before: small results kept between large temporaries would tear holes into the heap, in sum as large as the
    features.
    """
    whole: tuple[Tensor, ...] = ()
    start = 0
    for part in chunks(features_ID, size):
        results = work(part)
        whole = whole or tuple(t.new_empty(*t.shape[:-1], len(features_ID)) for t in results)
        for all_images, some in zip(whole, results, strict=True):
            all_images[..., start : start + len(part)] = some
        start += len(part)
    return whole


class _Normalise(torch.autograd.Function):
    """`F.normalize` of the last axis with a backward pass of three sweeps over memory instead of nine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)
        y = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """Take off the part of the gradient along the unit vector, in which the vector cannot change."""
        y, norm = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).sum(-1, keepdim=True), value=-1).div_(norm)


def normalise(x: Tensor) -> Tensor:
    """Scale rows (..., D) to length 1: beside its products an adapter's largest cost, hence a backward of its own."""
    return _Normalise.apply(x)


# --- modules --------------------------------------------------------------------------------------------------------


class LaneModule(nn.Module):
    """A module whose parameters and registered buffers have the lane axis first; lanes can be dropped and appended."""

    def __init__(self) -> None:
        super().__init__()
        self._lane_buffers: list[str] = []

    def register_lane(self, name: str, value_K: Tensor) -> None:
        """Register a buffer whose first axis is the lane axis."""
        self.register_buffer(name, value_K.clone())  # its own memory: callers expand one row to all lanes
        self._lane_buffers.append(name)

    def keep(self, lanes: Tensor) -> None:
        """Drop all lanes but `lanes` (int64 indices); the survivors' values are unchanged."""
        for module in self.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(p.detach()[lanes].clone(), requires_grad=p.requires_grad)
            if isinstance(module, LaneModule):
                for name in module._lane_buffers:
                    module._buffers[name] = getattr(module, name)[lanes]

    def join(self, other: Self) -> None:
        """Append the lanes of a module with the same static fields; both keep their values."""
        for module, more in zip(self.modules(), other.modules(), strict=True):
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(append_lanes(p.detach(), getattr(more, name).detach()))
            if isinstance(module, LaneModule):
                for name in module._lane_buffers:
                    module._buffers[name] = append_lanes(getattr(module, name), getattr(more, name))

    def lanes(self) -> dict[str, Tensor]:
        """Return all tensors with a lane axis, parameters and lane buffers, by their names."""
        buffers = {
            f"{prefix}.{name}".lstrip("."): getattr(module, name)
            for prefix, module in self.named_modules()
            if isinstance(module, LaneModule)
            for name in module._lane_buffers
        }
        return {**dict(self.named_parameters()), **buffers}

    @torch.no_grad()
    def set_lanes(self, values: dict[str, Tensor]) -> None:
        """Copy the tensors of another module's `lanes`; rows beyond theirs (more classes) stay unchanged."""
        for name, mine in self.lanes().items():
            mine[tuple(slice(0, size) for size in values[name].shape)] = values[name]


class StackedModule(LaneModule, ABC):
    """K lanes of a method: `losses`, `total` and `logits` are its own, the rest may stay as it is here."""

    def __init__(self) -> None:
        super().__init__()
        self.run_steps = 1
        """Steps of the whole training, for losses that change in its course; whoever trains the lanes sets it."""

    @abstractmethod
    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute all losses of one training step by name, each (K,), not weighted.

        `images_KBD`, `labels_KB`: labelled images, and their class ids. `target_KBD`: unlabelled target images, for
        methods that may look at them.
        """

    @abstractmethod
    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum (K,) of `losses`, which each lane minimises."""

    @abstractmethod
    def logits(self, images_BD: Tensor) -> Tensor:
        """Compute logits over all classes (K, B, C) of image features (B, D), L2-normalised."""

    def divide(self, images_BD: Tensor, seen_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how much each image looks seen, its best seen class and its best unseen class, (K, B) each.

        At or above any threshold an image is classified among seen classes. `seen_KC`: bool.
        """
        return lead_of_seen(self.logits(images_BD), seen_KC)

    def sweep(
        self,
        images_ID: Tensor,
        labels_I: Tensor,
        *,
        allowed_KI: Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        apart: bool = False,
    ) -> list[Swept]:
        """Set each lane's inference-time knobs to its best on labelled images; return what was found, by group.

        `labels_I`: class ids. `allowed_KI`: bool, the images each lane may choose by. `groups`: the lanes of each
        configuration, by default each lane alone; other lanes keep their knobs. `apart`: whether only base classes
        compete for images of base classes and only novel ones for the others, as where base-to-novel is scored.
        Nothing is swept by default.
        """
        return []

    def unseen_by_lambda(self, images_BD: Tensor) -> Tensor | None:
        """Return the best unseen class at each residual strength (K, G, B); None for methods without a residual."""
        return None

    def embed(self, images_TD: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return features (K, T, D) of images and prototypes (K, C, D), L2-normalised: what a head takes (`heads.py`).

        None where logits are no scaled cosines of the two: of another method, or under a head already.
        """
        return None


def append_lanes(a: Tensor, b: Tensor) -> Tensor:
    """Append the lanes of b to those of a; where one has longer rows (a larger cache), zeros fill up the other."""
    shape = [max(sizes) for sizes in zip(a.shape[1:], b.shape[1:], strict=True)]
    joined = a.new_zeros(len(a) + len(b), *shape)
    for tensor, lanes in ((a, slice(len(a))), (b, slice(len(a), None))):
        joined[(lanes, *map(slice, tensor.shape[1:]))] = tensor
    return joined
