"""AdamW over stacked lanes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from models.stacked import append_lanes

BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
"""AdamW's decay of both moments, and what keeps it from dividing by zero."""


class StackedAdamW:
    """AdamW (Loshchilov & Hutter, 2019) with a learning rate, weight decay and step count per lane.

    On CPUs torch's fused kernel reads and writes every number once, eight times faster than arithmetic on whole
    tensors; it takes one learning rate, so it runs once per lane, on the lane's slices of the stacked tensors. On
    accelerators a launch costs more than its arithmetic: there all lanes are updated at once, in as many launches for
    one lane as for a hundred.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: Sequence[float],
        weight_decay: Sequence[float],
        *,
        at_once: bool | None = None,
    ) -> None:
        """`at_once`: whether all lanes are updated together; by default where the parameters are not on a CPU."""
        self.lr, self.weight_decay = list(lr), list(weight_decay)
        self.at_once = any(p.device.type != "cpu" for p in params) if at_once is None else at_once
        for p in params:
            p.data = p.data.contiguous()
        self.mean = [torch.zeros_like(p) for p in params]
        self.square = [torch.zeros_like(p) for p in params]
        self.steps_K = torch.zeros(len(self.lr), device=params[0].device if params else None)

    def rates(self, schedules: Sequence[Sequence[float]]) -> Tensor:
        """Return what `step` takes (S, 2, K) for several steps: learning rates, and what is left of the weights.

        `schedules`: each lane's factor on its learning rate, for every step. One copy to the device for all of them.
        """
        lr_K, decay_K = torch.tensor([self.lr, self.weight_decay], dtype=torch.float64)
        rates_SK = lr_K * torch.tensor(schedules, dtype=torch.float64).view(len(schedules), -1)
        planned = torch.stack([rates_SK, 1 - rates_SK * decay_K], dim=1)
        return planned.to(self.steps_K.device, torch.float32, non_blocking=True) if self.at_once else planned

    @torch.no_grad()
    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor], rates_2K: Tensor) -> None:
        """Update all lanes once. `rates_2K`: see `rates`."""
        self.steps_K += 1
        if self.at_once:
            self._step_at_once(params, grads, rates_2K)
        else:
            self._step_by_lane(params, grads, rates_2K)

    def _step_at_once(self, params: Sequence[Tensor], grads: Sequence[Tensor], rates_2K: Tensor) -> None:
        rate_K, decay_K = rates_2K
        step_K = rate_K / (1 - BETA_1**self.steps_K)
        root_K = (1 - BETA_2**self.steps_K).sqrt()
        for p, grad, mean, square in zip(params, grads, self.mean, self.square, strict=True):
            lanes = (-1, *[1] * (p.ndim - 1))
            p.mul_(decay_K.view(lanes))
            mean.lerp_(grad, 1 - BETA_1)
            square.mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
            p.addcdiv_(mean * -step_K.view(lanes), (square.sqrt() / root_K.view(lanes)).add_(EPSILON))

    def _step_by_lane(self, params: Sequence[Tensor], grads: Sequence[Tensor], rates_2K: Tensor) -> None:
        rates = rates_2K[0].tolist()
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
                lr=rates[k],
                beta1=BETA_1,
                beta2=BETA_2,
                weight_decay=self.weight_decay[k],
                eps=EPSILON,
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
