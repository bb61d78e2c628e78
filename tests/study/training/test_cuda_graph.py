"""Replayed steps: what surrounds a CUDA graph, with a graph that is a list of one function. No GPU is needed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_configs import CONFIGS, pack_of
from torch import Tensor

from study.protocol.trial_data import TrialData
from study.training import pack as pack_module
from study.training.pack import Pack

NAMES = ["sre memory", "pva relative", "linear probe"]


class Graphs:
    """Captures steps as `cuda_graph.capture` does: a step is tried on inputs of its own, then replayed on them."""

    def __init__(self) -> None:
        self.captured = 0

    def capture(self, step: Callable[..., None], *inputs: Tensor) -> Callable[..., None]:
        static = [tensor.clone() for tensor in inputs]
        for _ in range(3):
            step(*static)
        self.captured += 1

        def replay(*given: Tensor) -> None:
            for mine, other in zip(static, given, strict=True):
                mine.copy_(other)
            step(*static)

        return replay


def trained(name: str, data: TrialData, *, cuda_graphs: bool) -> Pack:
    pack = pack_of(CONFIGS[name], 3, data)
    pack.cuda_graphs = cuda_graphs  # a pack on the CPU takes none
    pack.train_epoch()
    pack.keep([0, 2])
    pack.train_epoch()
    return pack


def same(a: Pack, b: Pack) -> bool:
    return all(torch.equal(x, b.state()[name]) for name, x in a.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_replayed_steps_train_as_steps_do(name: str, data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs()
    monkeypatch.setattr(pack_module, "capture", graphs.capture)
    replayed = trained(name, data, cuda_graphs=True)
    assert graphs.captured == 2  # and again when a lane had left
    assert same(replayed, trained(name, data, cuda_graphs=False)) and graphs.captured == 2


def test_a_step_that_cannot_be_captured_is_taken_as_it_is(data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: Callable[..., None], *inputs: Tensor) -> None:
        step(*inputs)  # what was tried is undone
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(pack_module, "capture", fails)
    with pytest.warns(UserWarning, match="^steps are not replayed: no CUDA graph of them: operation not permitted"):
        tried = trained("sre memory", data, cuda_graphs=True)
    assert not tried.cuda_graphs and same(tried, trained("sre memory", data, cuda_graphs=False))


def test_packs_on_a_cpu_have_no_graphs(data: TrialData) -> None:
    options: dict[str, Any] = {"seeds": [0], "data": data, "epochs": 1, "cuda_graphs": True}
    assert not pack_module.pack_on_folds([CONFIGS["linear probe"]], **options).cuda_graphs


def test_the_tensors_that_a_graph_writes_stay_where_they_are(data: TrialData) -> None:
    """A graph knows addresses: nothing that a step changes may be made anew in its course."""
    for name in NAMES:
        pack = pack_of(CONFIGS[name], 2, data)
        pack.optimiser.at_once = True

        def addresses(pack: Pack = pack) -> list[int]:
            tensors = [*pack.module.lanes().values(), *pack.optimiser.state().values(), pack.diverged_K]
            return [tensor.data_ptr() for tensor in tensors]

        before = addresses()
        pack.train_epoch()
        assert addresses() == before
