"""What the benchmarks share: synthetic data of published sizes, fair timing, one line and one JSON file per result."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from study.protocol.trial_data import TrialData
from study.search.records import StudyIdentity

IDENTITY = StudyIdentity(
    space="sre",
    benchmark="icons2emoji",
    clip=None,
    rotation=0,
    templates=(),
    epochs=20,
    seed=0,
    objective="h",
    select="pseudo-unseen",
    folds=3,
    ledger=None,
)
"""Of searches that nobody resumes."""

SIZES = {
    # source images, target images, classes, unseen classes, graph nodes, CLIP dimension
    "embedded": (1319, 1308, 228, 57, 568, 192),
    "i2awa": (2970, 37322, 50, 10, 255, 512),
    "i2webv": (1024, 1024, 5000, 4000, 7000, 512),  # of 1.28 M + 294 k images a sample
}
"""Benchmarks as the engine sees them."""


def synthetic(size: str, *, folds: int = 3, seed: int = 0) -> TrialData:
    """Random features and a random tree of classes, of a benchmark's size."""
    source, target, classes, unseen, nodes, dim = SIZES[size]
    g = torch.Generator().manual_seed(seed)
    text_ND = F.normalize(torch.randn(nodes, dim, generator=g), dim=-1)
    seen_C = torch.arange(classes) >= unseen
    labels_I = unseen + torch.arange(source) % (classes - unseen)

    def images(labels: torch.Tensor) -> torch.Tensor:
        # cosines as CLIP's: 0.28 with the own class; sharper ones make every prediction 0 or 1, and exp slow
        return F.normalize(text_ND[labels] + 3.4 * dim**-0.5 * torch.randn(len(labels), dim, generator=g), dim=-1)

    parents = classes + torch.arange(nodes) * (nodes - classes) // nodes
    return TrialData(
        source_features_ID=images(labels_I),
        source_labels_I=labels_I,
        held_out_I=torch.rand(source, generator=g) < 0.2,
        target_features_TD=images(torch.randint(classes, (target,), generator=g)),
        seen_C=seen_C,
        fold_C=torch.where(seen_C, torch.arange(classes) % folds, -1),
        name_features_CD=text_ND[:classes],
        node_features_ND=text_ND,
        class_node_C=torch.arange(classes),
        edges_E2=torch.stack([torch.arange(nodes), parents], dim=1),
        logit_scale=100.0,
        fingerprint=f"synthetic {size}",
    )


def in_turn(works: dict[str, Callable[[], None]], *, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Seconds of each work, the fastest of `rounds` in which all take turns.

    On a CPU seconds of one thread's own time: what else runs on the machine does not count.
    """
    clock = time.perf_counter if device == "cuda" else time.thread_time
    best = dict.fromkeys(works, float("inf"))
    for i in range(rounds + 1):  # the first round warms up
        for name, work in works.items():
            started = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if i:
                best[name] = min(best[name], clock() - started)
    return best


def product_rate(device: str = "cpu") -> float:
    """Floating-point operations per second of a large float32 matrix product: the machine's peak, for our purposes."""
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device)
    return 2 * n**3 / in_turn({"product": lambda: a @ a}, rounds=3, device=device)["product"]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark: threads and the JSON file."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="intra-op threads")
    options.add_argument("--out", type=Path, default=Path(f"{Path(sys.argv[0]).stem}.json"), help="JSON file to write")
    return options


def write(path: Path, results: Any, **about: Any) -> None:
    """The JSON file: results and what they were measured on."""
    machine = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path.write_text(json.dumps({**machine, **about, "results": results}, indent=1) + "\n")
