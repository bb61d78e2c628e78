"""Run every method on an accelerator that computes on the CPU, in a process of its own: `python fake_device.py`.

Its tensors say that they are on a device, and have their numbers in the CPU's memory. A CPU tensor that meets one of
them raises, as on a GPU; how often the host asks for a number is counted. (torch's own fake tensors have no numbers:
scores, sweeps and verdicts cannot be tried on them.)
Prints a line for each method: ok, or the error and where it came from.
"""

import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[1])]

from tiny_configs import CONFIGS  # noqa: E402

import search_spaces  # noqa: E402
from models import heads  # noqa: E402
from models.baselines import LinearProbe, LinearProbeConfig, TipAdapter  # noqa: E402
from models.pva import PVA  # noqa: E402
from models.transductive import InMaPConfig  # noqa: E402
from study.protocol.trial_data import TrialData  # noqa: E402
from study.search.halving import SuccessiveHalving  # noqa: E402
from study.training import methods  # noqa: E402
from study.training.check_method import random_data  # noqa: E402
from study.training.loop import PackRun, TrainingOptions  # noqa: E402
from study.training.methods import method_of_config  # noqa: E402
from study.training.pack import Pack  # noqa: E402

_setup_privateuseone_for_python_backend("fake")  # the process has it from here on, and does not end well with it
torch.fake.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]

DEVICE = torch.device("fake:0")

aten = torch.ops.aten

FROM_HOST = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
"""Operations that carry tensors from one device to another."""

ASKS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
"""Operations for whose result the host waits."""


class OnDevice(torch.Tensor):
    """A tensor of the device; `numbers` are in the CPU's memory."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> "OnDevice":
        place = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            numbers.size(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=DEVICE,
            **(place if numbers.layout == torch.strided else {}),
        )
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        """Return the numbers, for which the host waits; torch's own takes no subclass."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


class Accelerator(TorchDispatchMode):
    """Makes tensors on the device where the device is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.host_syncs = 0
        """Operations for which the host waited."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self)


def run(func: Any, args: Any, kwargs: Any, mode: Accelerator | None) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    on_device = [x for x in given if isinstance(x, OnDevice)]
    device = kwargs.get("device")
    if on_device and func not in FROM_HOST and any(not isinstance(x, OnDevice) and x.dim() for x in given):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found some on the CPU")
    if mode and on_device and (func in ASKS or (func in FROM_HOST and device == torch.device("cpu"))):
        mode.host_syncs += 1
    wrappers = {id(x.numbers): x for x in on_device}
    if device is not None and torch.device(device).type == DEVICE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        made_there = True
    else:
        made_there = bool(on_device) and device is None
    if func is aten.copy_.default:
        made_there = isinstance(args[0], OnDevice)
    args, kwargs = tree_map(lambda x: x.numbers if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func is aten._to_copy.default and not made_there and any(result is x.numbers for x in on_device):
        result = result.clone()

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not made_there:
            return x
        return wrappers.get(id(x)) if id(x) in wrappers else OnDevice(x)

    return tree_map(wrap, result)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """Have tensors made there."""
    before = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor([...], device=...)
    try:
        with Accelerator() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)  # type: ignore[attr-defined]


# --- a pack's life ----------------------------------------------------------------------------------------------------

FEW_LAMBDAS, FEW_BETAS, FEW_STEPS = (0.0, 1.0, math.inf), (1.0, 5.0), 4
"""Residual strengths and betas that are tried, instead of 39 and 20, and descent steps of a head, instead of 80: the
operations are the same, and each costs Python's time here."""


def life(config: Any, data: TrialData, device: str | torch.device, there: Accelerator | None) -> tuple[Any, int]:
    """Train, score, prune, join and restore configurations on a device; return all they gave, and syncs in epochs."""
    data, halving, syncs = data.to(device), SuccessiveHalving(), 0
    methods._text_encoder.cache_clear()  # it stays on the device where it was used last
    sees_target = method_of_config(type(config)).uses_target
    started = PackRun(
        [config] * 2,
        seeds=[1, 2],
        data=data,
        options=TrainingOptions(epochs=3, rungs=(1,), criterion="consensus" if sees_target else "h"),
        judge=lambda epoch, scores: halving.judge(epoch, dict(scores)),
    )
    train_epoch = Pack.train_epoch

    def counted(pack: Pack) -> None:
        nonlocal syncs
        pack.optimiser.at_once = True  # as on accelerators
        before = there.host_syncs if there else 0
        train_epoch(pack)
        syncs += there.host_syncs - before if there else 0

    with mock.patch.object(Pack, "train_epoch", counted):
        started.advance()
        started.add([config], [3])
        pack, state = started.pack, started.pack.state()
        pack.train_epoch()
        pack.restore(state)
        ended: dict[int, Any] = {}
        while started.alive:
            ended |= started.advance()
    parts = [pack.divide(data.target_features_TD), pack.unseen_by_lambda(data.target_features_TD)]
    return ([(r.state, r.score, r.metrics, r.curve, r.votes) for _, r in sorted(ended.items())], parts), syncs


def plain(value: Any) -> Any:
    """Return nested records as lists of numbers, arrays and tensors."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    if isinstance(value, dict):
        return [plain(v) for _, v in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return float(len(value)) if isinstance(value, str) else 0.0 if value is None else value


def verdict(config: Any, data: TrialData) -> str:
    """Return ok, or what is wrong with a method on the device."""
    try:
        with accelerator() as there:
            on_device, syncs = life(config, data, DEVICE, there)
        # a head's constant lies between two differences of logits that come of divisions by small variances
        torch.testing.assert_close(plain(on_device), plain(life(config, data, "cpu", None)[0]), rtol=1e-4, atol=1e-4)
        return f"{syncs} host syncs in epochs" if syncs else "ok"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        said = " ".join(str(error).split())[:200]
        return f"{type(error).__name__}: {said} ({' < '.join(f'{f.name}:{f.lineno}' for f in frames[-3:])})"


def broken(change: Callable[[Tensor], Tensor]) -> Any:
    """Change the loss of the linear probe."""
    losses = LinearProbe.total
    return mock.patch.object(LinearProbe, "total", lambda self, given: change(losses(self, given)))


def main() -> None:
    """Print for each method: ok, or what is wrong."""
    data = random_data(search_spaces.load("sre"))  # type: ignore[arg-type]
    data = replace(data, reference_T=torch.arange(len(data.target_features_TD)) % len(data.seen_C))
    PVA.unseen_by_lambda.__defaults__ = (FEW_LAMBDAS,)
    for sweep, few in ((PVA.sweep, {"lambdas": FEW_LAMBDAS}), (TipAdapter.sweep, {"betas": FEW_BETAS})):
        sweep.__kwdefaults__ = {**(sweep.__kwdefaults__ or {}), **few}
    heads._METHODS["inmap"] = (heads.InMaP, InMaPConfig(steps=FEW_STEPS))
    for name, config in CONFIGS.items():
        print(f"{name}: {verdict(replace(config, batch_size=32), data)}")  # several steps an epoch
    probe = LinearProbeConfig(batch_size=32)
    with broken(lambda total_K: total_K * (1.0 if total_K.sum().item() > 0 else 2.0)):
        print(f"asks for a number: {verdict(probe, data)}")
    with broken(lambda total_K: total_K * torch.ones(len(total_K), device="cpu")):
        print(f"mixes devices: {verdict(probe, data)}")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
