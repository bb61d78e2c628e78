"""Train every method on fake tensors of a fake accelerator, in a process of its own: `python fake_device.py`.

Fake tensors have shapes and a device, but no numbers: a CPU tensor that meets one of the device raises, and so does
whatever asks for a number (`.item()`, `.tolist()`, an `if` over a tensor), for which the device would have to wait.
Prints a line for each method: ok, or the error and where it came from.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[1])]

from tiny_configs import CONFIGS, ENCODED, pack_of  # noqa: E402

import search_spaces  # noqa: E402
from models.baselines import LinearProbeConfig  # noqa: E402
from study.protocol.trial_data import TrialData  # noqa: E402
from study.training.check_method import random_data  # noqa: E402
from study.training.pack import Pack  # noqa: E402

LANES = 6


def on_device(pack: Pack, data: TrialData, device: torch.device, mode: FakeTensorMode) -> None:
    """Move all that a pack computes with to the device, as `Pack` does where its data are there."""

    def moved(tensor: Tensor) -> Tensor:
        # sparse tensors are not supported there; a dense one passes the same products
        return mode.from_tensor(tensor.to_dense() if tensor.is_sparse else tensor).to(device)

    tensors = {f.name: getattr(data, f.name) for f in fields(data) if isinstance(getattr(data, f.name), Tensor)}
    pack.data = replace(data, **{name: moved(tensor) for name, tensor in tensors.items()})
    for module in pack.module.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(moved(p.detach()))
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = moved(b)
    pack.seen_KC, pack.diverged_K = moved(pack.seen_KC), moved(pack.diverged_K)
    optimiser = pack.optimiser
    optimiser.mean, optimiser.square = ([moved(t) for t in ts] for ts in (optimiser.mean, optimiser.square))
    optimiser.steps_K, optimiser.at_once = moved(optimiser.steps_K), True


def train(config: Any, data: TrialData, change: Callable[[Pack], object] = lambda pack: None) -> str:
    """Train two epochs; return ok or what went wrong."""
    pack = pack_of(config, LANES, data)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            on_device(pack, data, torch.device("fake:0"), mode)
            change(pack)
            pack.train_epoch()
            pack.train_epoch()
            assert all(t.device.type == "fake" for t in pack.module.parameters())
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({frames[-1].name})"
    return "ok"


def asks_for_a_number(pack: Pack) -> None:
    total = pack.module.total
    pack.module.total = lambda losses: total(losses) * (1.0 if total(losses).sum().item() > 0 else 2.0)


def mixes_devices(pack: Pack) -> None:
    total = pack.module.total
    pack.module.total = lambda losses: total(losses) * torch.ones(LANES, device="cpu")


def main() -> None:
    _setup_privateuseone_for_python_backend("fake")
    torch.fake.get_amp_supported_dtype = lambda: [torch.bfloat16]
    data = random_data(search_spaces.load("sre"))  # type: ignore[arg-type]
    for name, config in CONFIGS.items():
        if name not in ENCODED:  # a text encoder has 50 MB of weights to move
            print(f"{name}: {train(config, data)}")
    probe = LinearProbeConfig(batch_size=32)
    for broken in (asks_for_a_number, mixes_devices):
        print(f"{broken.__name__}: {train(probe, data, broken)}")
    sys.stdout.flush()
    os._exit(0)  # the fake backend does not survive the interpreter's end


if __name__ == "__main__":
    main()
