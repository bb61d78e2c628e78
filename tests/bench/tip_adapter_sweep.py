"""Tip-Adapter's alpha x beta search: `models.sweeps.tip_adapter_grid` against the double loop that public code runs.

Both score the same grid on the same features; the loop recomputes the affinity and the cache product at every point.
`python tests/bench/tip_adapter_sweep.py` prints the ratio and writes `tip_adapter_sweep.json`; it takes minutes, all
of them the loop's.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.sweeps import tip_adapter_grid  # noqa: E402


def double_loop(
    images_ID: Tensor,
    prototypes_CD: Tensor,
    keys_ND: Tensor,
    values_NC: Tensor,
    labels_I: Tensor,
    alphas: list[float],
    betas: list[float],
) -> Tensor:
    """Accuracy (B, A), both products formed at every point."""
    clip_IC = 100 * images_ID @ prototypes_CD.T
    grid = torch.zeros(len(betas), len(alphas), dtype=torch.float64)
    for b, beta in enumerate(betas):
        for a, alpha in enumerate(alphas):
            affinity_IN = images_ID @ keys_ND.T
            cache_IC = torch.exp(beta * (affinity_IN - 1)) @ values_NC
            grid[b, a] = ((clip_IC + alpha * cache_IC).argmax(-1) == labels_I).double().mean()
    return grid


def swept(
    images_ID: Tensor,
    prototypes_CD: Tensor,
    keys_ND: Tensor,
    cache_labels_N: Tensor,
    labels_I: Tensor,
    alphas: list[float],
    betas: list[float],
) -> Tensor:
    """The same from one affinity."""
    return tip_adapter_grid(
        [(100 * images_ID @ prototypes_CD.T, images_ID @ keys_ND.T)],
        cache_labels_N=cache_labels_N,
        labels_I=labels_I,
        alphas=alphas,
        betas=betas,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--cached", type=int, default=500)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--alphas", type=int, default=200)
    parser.add_argument("--betas", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("tip_adapter_sweep.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(0)
    centres_CD = torch.randn(args.classes, args.dim, generator=g)

    def around(labels: Tensor, spread: float) -> Tensor:
        return F.normalize(centres_CD[labels] + spread * torch.randn(len(labels), args.dim, generator=g), dim=-1)

    cache_labels_N = torch.arange(args.cached) % args.classes
    labels_I = torch.randint(0, args.classes, (args.images,), generator=g)
    prototypes_CD = around(torch.arange(args.classes), 1.0)
    keys_ND, images_ID = around(cache_labels_N, 4.0), around(labels_I, 5.0)
    grid = {
        "alphas": torch.linspace(0.5, 100, args.alphas).tolist(),
        "betas": torch.linspace(1, 20, args.betas).tolist(),
    }
    swept(images_ID, prototypes_CD, keys_ND, cache_labels_N, labels_I, **grid)  # warm up
    started = time.perf_counter()
    ours_BA = swept(images_ID, prototypes_CD, keys_ND, cache_labels_N, labels_I, **grid)
    ours_s = time.perf_counter() - started
    print(f"one sweep   {ours_s:8.2f} s   best {_best(ours_BA, grid)}", flush=True)

    started = time.perf_counter()
    values_NC = F.one_hot(cache_labels_N, args.classes).float()
    loop_BA = double_loop(images_ID, prototypes_CD, keys_ND, values_NC, labels_I, **grid)
    loop_s = time.perf_counter() - started
    print(f"double loop {loop_s:8.2f} s   best {_best(loop_BA, grid)}")
    result = {
        "images": args.images,
        "cached": args.cached,
        "classes": args.classes,
        "dim": args.dim,
        "grid": [args.alphas, args.betas],
        "threads": args.threads,
        "sweep_seconds": round(ours_s, 3),
        "loop_seconds": round(loop_s, 3),
        "ratio": round(loop_s / ours_s, 1),
        "sweep_best": _best(ours_BA, grid),
        "loop_best": _best(loop_BA, grid),
        "same_best_point": _best(ours_BA, grid) == _best(loop_BA, grid),
        "largest_difference": float((ours_BA - loop_BA).abs().max()),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"ratio {result['ratio']}, same best point: {result['same_best_point']}, written to {args.out}")
    if not result["same_best_point"]:
        sys.exit(1)


def _best(accuracy_BA: Tensor, grid: dict[str, list[float]]) -> dict[str, float]:
    """The grid's best point, the first of equals."""
    b, a = divmod(int(accuracy_BA.argmax()), accuracy_BA.shape[1])
    return {
        "alpha": round(grid["alphas"][a], 4),
        "beta": round(grid["betas"][b], 4),
        "accuracy": round(float(accuracy_BA[b, a]), 6),
    }


if __name__ == "__main__":
    main()
