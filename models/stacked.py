"""Lanes: K configurations of one method trained side by side as stacked tensors.

Every parameter of a method has a leading lane axis K, and so has every buffer registered with `register_lane`;
a single adapter is simply a pack of one lane. Nothing is summed across lanes, so the gradient of the summed loss
is each lane's own gradient, and a lane that diverges cannot touch its neighbours.

Suffixes: K lanes, B batch, C classes, D CLIP dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn


class MethodConfig(Protocol):
    """What the configuration of every method has."""

    LANE_KNOBS: ClassVar[frozenset[str]]
    """Fields in which the lanes of a pack may differ; all others are static."""

    @property
    def batch_size(self) -> int:
        """Images per step."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay."""


def lane_field(configs: Sequence[Any], name: str) -> Tensor:
    """A numeric field of every lane's configuration, float32 (K,)."""
    return torch.tensor([float(getattr(c, name)) for c in configs])


def unit(features: Tensor) -> Tensor:
    """Image features as the modules take them, float32 rows of length one; float16 is how large ones are stored.

    A row's value does not depend on the rows beside it: cast in batches or all at once, features are the same.
    """
    return nn.functional.normalize(features.float(), dim=-1) if features.dtype == torch.float16 else features


CHUNK = 4096
"""Images whose logits are computed at once where no gradient is: those of all of a large benchmark would not fit."""


def chunks(features_ID: Tensor, size: int = CHUNK) -> Iterator[Tensor]:
    """Image features, `size` rows at a time, as the modules take them."""
    return map(unit, features_ID.split(size))


def in_chunks(
    work: Callable[[Tensor], tuple[Tensor, ...]], features_ID: Tensor, size: int = CHUNK
) -> tuple[Tensor, ...]:
    """What `work` makes of all image features, `size` rows at a time: tensors whose last axis is the images'.

    Into memory that is there before: small results kept between large temporaries would tear holes into the heap, in
    sum as large as the features.
    """
    whole: tuple[Tensor, ...] = ()
    start = 0
    for part in chunks(features_ID, size):
        made = work(part)
        whole = whole or tuple(t.new_empty(*t.shape[:-1], len(features_ID)) for t in made)
        for all_images, some in zip(whole, made, strict=True):
            all_images[..., start : start + len(part)] = some
        start += len(part)
    return whole


def check_static(configs: Sequence[Any], lane_knobs: frozenset[str]) -> None:
    """Raise `ValueError` if configurations of one pack differ in a field that is not a lane knob."""
    for f in fields(configs[0]):
        values = {getattr(c, f.name) for c in configs}
        if f.name not in lane_knobs and len(values) > 1:
            raise ValueError(f"{f.name} is static: all lanes of a pack must share it, got {sorted(map(str, values))}")


def lane_normal(generators: Sequence[torch.Generator], *shape: int, std: float) -> Tensor:
    """Normal noise (K, *shape), each lane from its own generator: independent of K and of the neighbours."""
    return torch.stack([torch.randn(*shape, generator=g) * std for g in generators])


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
        """A unit vector does not change along itself: that part of the gradient is taken off."""
        y, norm = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).sum(-1, keepdim=True), value=-1).div_(norm)


def normalise(x: Tensor) -> Tensor:
    """Rows (..., D) at length 1: what costs most in an adapter beside its products, hence a backward of its own."""
    return _Normalise.apply(x)


class StackedModule(nn.Module):
    """Base of all methods: a module whose parameters carry the lane axis first."""

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
            if isinstance(module, StackedModule):
                for name in module._lane_buffers:
                    module._buffers[name] = getattr(module, name)[lanes]

    def join(self, other: Self) -> None:
        """Append the lanes of a module with the same static fields; both keep their values."""
        for module, more in zip(self.modules(), other.modules(), strict=True):
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(append_lanes(p.detach(), getattr(more, name).detach()))
            if isinstance(module, StackedModule):
                for name in module._lane_buffers:
                    module._buffers[name] = append_lanes(getattr(module, name), getattr(more, name))

    def lanes(self) -> dict[str, Tensor]:
        """All tensors with a lane axis, parameters and lane buffers, by their names."""
        buffers = {
            f"{prefix}.{name}".lstrip("."): getattr(module, name)
            for prefix, module in self.named_modules()
            if isinstance(module, StackedModule)
            for name in module._lane_buffers
        }
        return {**dict(self.named_parameters()), **buffers}

    @torch.no_grad()
    def set_lanes(self, values: dict[str, Tensor]) -> None:
        """Take over the tensors of `lanes`; what this module has beyond them (more classes) stays as it is."""
        for name, mine in self.lanes().items():
            mine[tuple(slice(0, size) for size in values[name].shape)] = values[name]


def append_lanes(a: Tensor, b: Tensor) -> Tensor:
    """Lanes of b after those of a; where one has longer rows (a larger cache), the other is padded with zeros."""
    shape = [max(sizes) for sizes in zip(a.shape[1:], b.shape[1:], strict=True)]
    joined = a.new_zeros(len(a) + len(b), *shape)
    for tensor, lanes in ((a, slice(len(a))), (b, slice(len(a), None))):
        joined[(lanes, *map(slice, tensor.shape[1:]))] = tensor
    return joined
