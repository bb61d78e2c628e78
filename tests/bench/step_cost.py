"""One training step of our engine, per lane, against a naive dense step of one model.

The naive step (`plain_sre.py`): dense adjacency, all nodes through every layer, `A_hat T` recomputed, no fused kernel.
`python tests/bench/step_cost.py` prints one ratio per line and writes step_cost.json. Last it counts the arithmetic of
a step with many classes (I2WebV has 5,000), which depends on no clock, with all class texts in L_align and with some.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import torch  # noqa: E402
from common import SIZES, in_turn, parser, synthetic, write  # noqa: E402
from plain_sre import PlainTraining  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from models.sre_clip import ClassGraph, SREClip, SREConfig  # noqa: E402
from study.protocol.trial_data import seen_classes, trainable_images  # noqa: E402
from study.training.pack import Pack  # noqa: E402


def gflop_of_a_step(config: SREConfig, classes: int, *, dim: int = 512) -> float:
    """Count the products of one lane's step, forward and backward, with random features."""
    g = torch.Generator().manual_seed(0)
    above = classes // 3  # hypernyms

    def unit(rows: int) -> torch.Tensor:
        return normalize(torch.randn(rows, dim, generator=g), dim=-1)

    texts_CD = unit(classes)
    graph = ClassGraph(
        name_features_CD=texts_CD,
        node_features_ND=torch.cat([texts_CD, unit(above)]),
        class_node_C=torch.arange(classes),
        edges_E2=torch.stack([torch.arange(classes), classes + torch.arange(classes) % above], dim=1),
        logit_scale=100.0,
    )
    seen_1C = (torch.arange(classes) < 0.8 * classes)[None]
    module = SREClip([config], seeds=[0], seen_KC=seen_1C, graph=graph)
    labels_1B = torch.randint(int(0.8 * classes), (1, config.batch_size), generator=g)
    with FlopCounterMode(display=False) as counter:
        losses = module.losses(unit(config.batch_size)[None], labels_1B, unit(config.batch_size)[None])
        torch.autograd.grad(module.total(losses).sum(), list(module.parameters()))
    return counter.get_total_flops() / 1e9


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["embedded", "i2awa"], choices=list(SIZES))
    options.add_argument("--layers", nargs="+", type=int, default=[1, 2], help="graph layers")
    options.add_argument("--lanes", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--classes", type=int, default=5000, help="classes of the step whose arithmetic is counted")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for size in args.sizes:
        data = synthetic(size)
        for layers in args.layers:
            config = SREConfig(gcn_layers=layers)
            kwargs = {"data": data, "epochs": 10**6}
            naive = PlainTraining(config, seed=0, fold=0, naive=True, **kwargs)
            plain = PlainTraining(config, seed=0, fold=0, **kwargs)
            pack = Pack(
                [config] * args.lanes,
                seeds=list(range(args.lanes)),
                seen_KC=torch.stack([seen_classes(data, k % 3) for k in range(args.lanes)]),
                trainable_KI=torch.stack([trainable_images(data, k % 3) for k in range(args.lanes)]),
                **kwargs,
            )
            works = {"naive": naive.train_epoch, "plain": plain.train_epoch, "ours": pack.train_epoch}
            seconds = in_turn(works, rounds=args.rounds)
            ms = {name: 1e3 * s / pack.steps_per_epoch for name, s in seconds.items()}
            ms["ours"] /= args.lanes
            result = {"size": size, "layers": layers, **{k: round(v, 2) for k, v in ms.items()}}
            results.append({**result, "ratio": round(ms["naive"] / ms["ours"], 2)})
            print(
                f"step_cost {size}, {layers} graph layers: ratio {ms['naive'] / ms['ours']:.2f} "
                f"(naive {ms['naive']:.2f} ms, plain sparse {ms['plain']:.2f} ms, ours {ms['ours']:.2f} ms per lane)",
                flush=True,
            )
    texts = (args.classes, SREConfig().align_texts)
    whole, ours = (gflop_of_a_step(SREConfig(align_texts=n), args.classes) for n in texts)
    results.append({"classes": args.classes, "gflop_all_texts": round(whole, 1), "gflop": round(ours, 1)})
    print(f"step_cost {args.classes} classes: {ours:.1f} GFLOP per lane, {whole:.1f} with all class texts in L_align")
    write(args.out, results, lanes=args.lanes, threads=args.threads)


if __name__ == "__main__":
    main()
