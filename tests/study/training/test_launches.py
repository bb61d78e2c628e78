"""Operations of a training step, counted: on an accelerator each is a launch, which must not grow with the lanes."""

from typing import Any

import pytest
import torch
from tiny_configs import CONFIGS, ENCODED, pack_of
from torch.utils._python_dispatch import TorchDispatchMode

from study.protocol.trial_data import TrialData

FEW, MANY = 6, 96


class Operations(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func not in (torch.ops.aten.detach.default, torch.ops.aten.view.default)
        return func(*args, **(kwargs or {}))


def operations_of_a_step(config: Any, lanes: int, data: TrialData, *, at_once: bool = True) -> int:
    pack = pack_of(config, lanes, data)
    pack.optimiser.at_once = at_once  # as on an accelerator
    params = list(pack.module.parameters())
    source_KB, target_KB = next(iter(pack._draw_epoch()))
    with Operations() as operations:
        grads = torch.autograd.grad(pack._loss(source_KB, target_KB).sum(), params)
        pack.optimiser.step(params, grads, [1.0] * lanes)
    return operations.count


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODED])
def test_a_step_has_as_many_operations_for_96_lanes_as_for_6(data: TrialData, name: str) -> None:
    few, many = (operations_of_a_step(CONFIGS[name], lanes, data) for lanes in (FEW, MANY))
    assert many <= 1.05 * few


def test_lane_by_lane_they_would_grow(data: TrialData) -> None:
    """The check can fail: updates lane by lane, as on CPUs, are counted."""
    few, many = (operations_of_a_step(CONFIGS["linear probe"], n, data, at_once=False) for n in (FEW, MANY))
    assert many > 1.5 * few
