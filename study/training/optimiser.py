"""AdamW over stacked lanes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from models.stacked import append_lanes


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
        """Update all lanes once; `schedule` scales each lane's learning rate."""
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
        # the kernel changes views of the parameters and counts no change of theirs: who caches by a parameter's version
        # (learned prompts cache their class texts) went on with what it had computed at the first rung
        increment_version(params)

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

    def state(self) -> dict[str, Tensor]:
        """Return all that training goes on from, by name."""
        state = {f"mean.{i}": t for i, t in enumerate(self.mean)}
        return state | {f"square.{i}": t for i, t in enumerate(self.square)} | {"steps_K": self.steps_K}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the `state` of an optimiser of the same lanes; other names in it are left alone."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
