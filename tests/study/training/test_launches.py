"""Operations of a training step, counted: on an accelerator each is a launch, which must not grow with the lanes.

And its arithmetic, which must not grow with the square of the classes.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_configs import CONFIGS, ENCODED, pack_of
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
    (rates_2K,) = pack.optimiser.rates([[1.0] * lanes])
    with Operations() as operations:
        grads = torch.autograd.grad(pack._loss(source_KB, target_KB).sum(), params)
        pack.optimiser.step(params, grads, rates_2K)
    return operations.count


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODED])
def test_a_step_has_as_many_operations_for_96_lanes_as_for_6(data: TrialData, name: str) -> None:
    few, many = (operations_of_a_step(CONFIGS[name], lanes, data) for lanes in (FEW, MANY))
    assert many <= 1.05 * few


def test_lane_by_lane_they_would_grow(data: TrialData) -> None:
    """The check can fail: updates lane by lane, as on CPUs, are counted."""
    few, many = (operations_of_a_step(CONFIGS["linear probe"], n, data, at_once=False) for n in (FEW, MANY))
    assert many > 1.5 * few


# --- arithmetic -------------------------------------------------------------------------------------------------------


def wide(classes: int, *, dim: int = 16) -> TrialData:
    """Random features of many classes, two images of each seen one."""
    g = torch.Generator().manual_seed(0)
    seen_C, labels_I = torch.arange(classes) < classes // 2, torch.arange(classes) // 2

    def unit(rows: int) -> torch.Tensor:
        return normalize(torch.randn(rows, dim, generator=g), dim=-1)

    texts_CD = unit(classes)
    return TrialData(
        source_features_ID=unit(classes),
        source_labels_I=labels_I,
        held_out_I=torch.zeros(classes, dtype=torch.bool),
        target_features_TD=unit(64),
        seen_C=seen_C,
        fold_C=torch.where(seen_C, torch.arange(classes) % 2, -1),
        name_features_CD=texts_CD,
        node_features_ND=torch.cat([texts_CD, unit(classes // 4)]),
        class_node_C=torch.arange(classes),
        edges_E2=torch.stack([torch.arange(classes), classes + torch.arange(classes) // 4], dim=1),
        logit_scale=20.0,
        fingerprint="wide",
    )


def products_of_a_step(config: Any, data: TrialData) -> int:
    pack = pack_of(config, 1, data)
    source_KB, target_KB = next(iter(pack._draw_epoch()))
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(pack._loss(source_KB, target_KB).sum(), list(pack.module.parameters()))
    return counter.get_total_flops()


FEW_CLASSES, MANY_CLASSES = 800, 3200


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODED])
def test_arithmetic_grows_with_the_classes_not_with_their_square(name: str) -> None:
    config = CONFIGS[name]
    if getattr(config, "gcn_layers", 0) > 1:  # the counter takes the sparse products of further layers for dense ones
        config = replace(config, gcn_layers=1)
    few, many = (products_of_a_step(config, wide(classes)) for classes in (FEW_CLASSES, MANY_CLASSES))
    assert many < 1.25 * MANY_CLASSES / FEW_CLASSES * few


def test_the_count_of_arithmetic_can_fail() -> None:
    """With all class texts in L_align each of them meets each class."""
    all_texts = replace(CONFIGS["sre memory"], align_texts=10**6)
    few, many = (products_of_a_step(all_texts, wide(classes)) for classes in (FEW_CLASSES, MANY_CLASSES))
    assert many > 2 * MANY_CLASSES / FEW_CLASSES * few
