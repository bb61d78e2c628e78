"""One training step of our engine, per lane, against a naive dense step of one model.

The naive step (`plain_sre.py`): dense adjacency, all nodes through every layer, `A_hat T` recomputed, no fused kernel.
`python tests/bench/step_cost.py` prints one ratio per line and writes step_cost.json. Then it sets the votes of a
configuration on a fold, by which a consensus ranks, beside its training: three heads on all target images. Last it
counts each method's arithmetic with many classes (I2WebV has 5,000), which depends on no clock: it grows with the
classes, never with their square.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/study"), str(Path(__file__).parent)]

import torch  # noqa: E402
from common import SIZES, in_turn, parser, product_rate, synthetic, write  # noqa: E402
from plain_sre import PlainTraining  # noqa: E402
from tiny_configs import pack_of  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from models.baselines import CLIPAdapterConfig, LinearProbeConfig, TipAdapterConfig  # noqa: E402
from models.heads import fitted_heads  # noqa: E402
from models.pva import PVAConfig  # noqa: E402
from models.sre_clip import SREConfig  # noqa: E402
from models.stacked import MethodConfig, unit_features  # noqa: E402
from study.protocol.trial_data import TrialData  # noqa: E402
from study.training.pack import Pack  # noqa: E402

METHODS: dict[str, MethodConfig] = {
    "SRE-CLIP": SREConfig(),
    "SRE-CLIP, all texts in L_align": SREConfig(align_texts=10**6),
    "PVA": PVAConfig(),
    "Tip-Adapter-F": TipAdapterConfig(variant="F"),
    "CLIP-Adapter": CLIPAdapterConfig(),
    "linear probe": LinearProbeConfig(),
}


def wide_data(classes: int, *, shots: int = 16, dim: int = 512) -> TrialData:
    """Random features of many classes, four fifths of them seen with some images each."""
    g = torch.Generator().manual_seed(0)
    seen, above = 4 * classes // 5, classes // 3  # hypernyms

    def unit(rows: int) -> torch.Tensor:
        return normalize(torch.randn(rows, dim, generator=g), dim=-1)

    texts_CD, labels_I = unit(classes), torch.arange(seen * shots) % seen
    return TrialData(
        source_features_ID=unit(len(labels_I)),
        source_labels_I=labels_I,
        held_out_I=torch.zeros(len(labels_I), dtype=torch.bool),
        target_features_TD=unit(1000),
        seen_C=torch.arange(classes) < seen,
        fold_C=torch.where(torch.arange(classes) < seen, torch.arange(classes) % 3, -1),
        name_features_CD=texts_CD,
        node_features_ND=torch.cat([texts_CD, unit(above)]),
        class_node_C=torch.arange(classes),
        edges_E2=torch.stack([torch.arange(classes), classes + torch.arange(classes) % above], dim=1),
        logit_scale=100.0,
        fingerprint=f"{classes} classes",
    )


def gflop_per_image(config: MethodConfig, data: TrialData) -> float:
    """Count the products of one lane's step, forward and backward, for each image of its batch."""
    every_1I = torch.ones(1, len(data.source_labels_I), dtype=torch.bool)
    pack = Pack([config], seeds=[0], seen_KC=data.seen_C[None], trainable_KI=every_1I, data=data, epochs=1)
    source_KB, target_KB = next(iter(pack._draw_epoch()))
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(pack._loss(source_KB, target_KB).sum(), list(pack.module.parameters()))
    return counter.get_total_flops() / 1e9 / config.batch_size


def vote(data: TrialData) -> None:
    """Let the three heads classify all target images, as at the end of a fold's training."""
    heads = fitted_heads(unit_features(data.target_features_TD), data.name_features_CD, data.logit_scale)
    for head in heads.values():
        head.target_logits()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["embedded", "i2awa"], choices=list(SIZES))
    options.add_argument("--layers", nargs="+", type=int, default=[1, 2], help="graph layers")
    options.add_argument("--lanes", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=20, help="of a training, beside which votes are set")
    options.add_argument("--classes", nargs="+", type=int, default=[200, 1000, 5000], help="of steps that are counted")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    rate, results = product_rate(), []
    print(f"step_cost: products take {rate / 1e9:.0f} GFLOP/s on {args.threads} threads", flush=True)
    for size in args.sizes:
        data = synthetic(size)
        for layers in args.layers:
            config = SREConfig(gcn_layers=layers)
            kwargs = {"data": data, "epochs": 10**6}
            naive = PlainTraining(config, seed=0, fold=0, naive=True, **kwargs)
            plain = PlainTraining(config, seed=0, fold=0, **kwargs)
            pack = pack_of(config, args.lanes, **kwargs)
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
        votes = in_turn({"votes": lambda data=data: vote(data)}, rounds=1)["votes"]
        training = args.epochs * pack.steps_per_epoch * ms["ours"] / 1e3
        results.append({"size": size, "votes_seconds": round(votes, 2), "training_seconds": round(training, 2)})
        print(
            f"step_cost {size}, votes of a fold: {votes / training:.2f} of its training in {args.epochs} epochs "
            f"({votes:.1f} s and {training:.1f} s)",
            flush=True,
        )
    counted: dict[str, list[float]] = {name: [] for name in METHODS}
    for classes in args.classes:
        data = wide_data(classes)
        for name, config in METHODS.items():
            counted[name].append(gflop_per_image(config, data))
    for name, gflops in counted.items():
        results.append({"method": name, "gflop_per_image": dict(zip(args.classes, gflops, strict=True))})
        shown = ", ".join(f"{1000 * g:.1f} of {n:,}" for n, g in zip(args.classes, gflops, strict=True))
        print(f"step_cost MFLOP for an image of a batch, by classes: {name} {shown}")
    write(args.out, results, lanes=args.lanes, threads=args.threads, flop_per_second=rate)


if __name__ == "__main__":
    main()
