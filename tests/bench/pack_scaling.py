"""Lanes per second against K, for SRE and PVA at three sizes, and an eager loop over single models.

The loop is one model after the other: `plain_sre.py` for SRE, PVA's own module with one lane, `torch.optim.AdamW`.
`python tests/bench/pack_scaling.py` prints one ratio (best K over the loop) per line and writes pack_scaling.json, and
the share of the machine's measured rate of matrix products.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/study"), str(Path(__file__).parent)]

import torch  # noqa: E402
from common import SIZES, in_turn, parser, product_rate, synthetic, write  # noqa: E402
from plain_sre import PlainTraining  # noqa: E402
from tiny_configs import pack_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from models.pva import PVAConfig  # noqa: E402
from models.sre_clip import SREConfig  # noqa: E402
from study.protocol.trial_data import (  # noqa: E402
    TrialData,  # noqa: E402
    seen_classes,
    trainable_images,
)
from study.training.methods import METHODS  # noqa: E402

CONFIGS: dict[str, Any] = {"sre": SREConfig(), "pva": PVAConfig()}
EPOCHS = 10**6
"""More than are trained: the learning rate stays."""


def eager(config: Any, data: TrialData, device: str) -> Callable[[], None]:
    """An epoch of a single model, as one would write it."""
    if isinstance(config, SREConfig) and device == "cpu":
        return PlainTraining(config, seed=0, fold=0, data=data, epochs=10**6).train_epoch
    seen_1C, trainable_1I = seen_classes(data, 0)[None], trainable_images(data, 0)[None]
    model = METHODS[type(config)].build([config], [0], seen_1C.cpu(), trainable_1I.cpu(), data.to("cpu")).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    images = trainable_1I[0].nonzero().flatten()

    def epoch() -> None:
        for _ in range(-(-len(data.source_labels_I) // config.batch_size)):
            source = images[torch.randint(len(images), (1, config.batch_size), device=device)]
            target = torch.randint(len(data.target_features_TD), (1, config.batch_size), device=device)
            batch = [data.source_features_ID[source], data.source_labels_I[source]]
            batch += [data.target_features_TD[target]] if METHODS[type(config)].uses_target else []
            optimiser.zero_grad()
            model.total(model.losses(*batch)).sum().backward()
            optimiser.step()

    return epoch


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    options.add_argument("--methods", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    options.add_argument("--lanes", nargs="+", type=int, default=[1, 4, 16, 64])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    rate, results = product_rate(args.device), []
    for size in args.sizes:
        data = synthetic(size).to(args.device)
        for method in args.methods:
            config = CONFIGS[method]
            with FlopCounterMode(display=False) as counter:
                pack_of(config, 1, data, epochs=EPOCHS).train_epoch()
            # K lanes of 5,000 classes do not fit: their pairs alone take 100 MB each
            ks = [k for k in args.lanes if size != "i2webv" or k <= 4 or args.device == "cuda"]
            works = {"loop": eager(config, data, args.device)}
            works |= {str(k): pack_of(config, k, data, epochs=EPOCHS).train_epoch for k in ks}
            seconds = in_turn(works, rounds=args.rounds, device=args.device)
            per_second = {"loop": 1 / seconds["loop"], **{str(k): k / seconds[str(k)] for k in ks}}
            best = max(ks, key=lambda k: per_second[str(k)])
            share = per_second[str(best)] * counter.get_total_flops() / rate
            results.append(
                {
                    "size": size,
                    "method": method,
                    "lane_epochs_per_second": {name: round(v, 3) for name, v in per_second.items()},
                    "best_lanes": best,
                    "ratio": round(per_second[str(best)] / per_second["loop"], 2),
                    "share_of_product_rate": round(share, 3),
                }
            )
            print(
                f"pack_scaling {method} {size}: ratio {results[-1]['ratio']} at K = {best}, {share:.0%} of "
                f"{rate / 1e9:.0f} GFLOP/s; lane epochs per second {results[-1]['lane_epochs_per_second']}",
                flush=True,
            )
    write(args.out, results, device=args.device, threads=args.threads, flop_per_second=rate)


if __name__ == "__main__":
    main()
