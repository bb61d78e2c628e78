"""Are folds worth being a fidelity? Halving on all folds against a first look at one fold, at equal compute.

Trains random configurations of SRE-CLIP once, without pruning, notes each fold's score at the rungs (agreement with
training-free methods on unlabelled target images), and trains each once more on all seen classes for its true H. Then
searches are played again in many random orders, with asynchronous halving as the study has it, until a budget of
epochs is spent; the consensus of the configurations that came through selects. Prints the true H of what each scheme
selects, and its regret: how far that is behind the best configuration of all.

    python tests/bench/fold_fidelity.py            # both directions, half an hour on 2 cores

Schemes: all folds at every rung (the study's own); one fold at the first rung, survivors catch up with the others; one
fold at both rungs.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from common import IDENTITY  # noqa: E402

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load, load_target_labels  # noqa: E402
from search_spaces.sre import SPACE  # noqa: E402
from study.cluster.tasks import packs_of  # noqa: E402
from study.pipeline.choice import find_consensus  # noqa: E402
from study.protocol.consensus import training_free_labels  # noqa: E402
from study.protocol.scores import seen_unseen  # noqa: E402
from study.protocol.trial_data import TrialData, seen_classes, trainable_images, trial_data  # noqa: E402
from study.protocol.votes import Votes  # noqa: E402
from study.search.halving import SuccessiveHalving, rung_epochs  # noqa: E402
from study.search.ledger import open_ledger  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import Lane  # noqa: E402
from study.training.pack import Pack, pack_on_folds  # noqa: E402
from study.training.scoring import _on_target  # noqa: E402

EPOCHS, FOLDS = 20, 3
RUNGS = rung_epochs(EPOCHS)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a configuration gave without pruning."""

    score_RF: list[list[float]]
    """Its score at each rung, by fold."""
    votes: Votes
    """Its predictions at the end."""
    true_h: float
    """H on the test images, trained on all seen classes."""


def drawn(configs: int) -> list[Lane]:
    """Return the configurations that a study draws."""
    with tempfile.TemporaryDirectory() as folder, open_ledger(Path(folder), space=SPACE, identity=IDENTITY) as ledger:
        queue = PackQueue(ledger, SPACE, configs=configs, pack=1, sampler="random", seed=0)
        return [lane for i in range(configs) for lane in queue.next_pack(f"pack-{i}")]


def trained(lanes: list[Lane], data: TrialData, labels_T: Tensor) -> list[Trained]:
    """Train configurations on the folds and on all seen classes; those that share static knobs together."""
    configs = [SPACE.config(**lane.params) for lane in lanes]
    found: dict[int, Trained] = {}
    for together in packs_of(configs):
        some, seeds = [configs[i] for i in together], [lanes[i].seed for i in together]
        pack = pack_on_folds(some, seeds=seeds, data=data, epochs=EPOCHS)
        scores: list[list[float]] = []
        for epoch in range(1, EPOCHS + 1):
            pack.train_epoch()
            if epoch in RUNGS:
                scores.append(_on_target(pack, data)[1]["target_agreement"])
        predicted_KT, _ = _on_target(pack, data)
        whole = Pack(
            some,
            seeds=seeds,
            seen_KC=seen_classes(data, None).expand(len(some), -1),
            trainable_KI=trainable_images(data, None).expand(len(some), -1),
            data=data,
            epochs=EPOCHS,
        )
        for _ in range(EPOCHS):
            whole.train_epoch()
        true_h_N = 100 * seen_unseen(whole.classify(data.target_features_TD), labels_T, data.seen_C)[2]
        for n, i in enumerate(together):
            folds = slice(FOLDS * n, FOLDS * n + FOLDS)
            classes = {"none": predicted_KT[folds].numpy().astype("int16")}
            found[i] = Trained(
                score_RF=[of_rung[folds] for of_rung in scores],
                votes=Votes(classes=classes),  # type: ignore[arg-type]
                true_h=float(true_h_N[n]),
            )
    return [found[i] for i in range(len(configs))]


SCHEMES = {"all folds": (FOLDS, FOLDS), "one fold at the first rung": (1, FOLDS), "one fold at both rungs": (1, 1)}
"""Folds that are trained up to each rung."""


def played(pool: list[Trained], folds_R: tuple[int, ...], budget: int) -> list[Trained]:
    """Search until a budget of epochs is spent; return the configurations that came through."""
    halving, spent, through = SuccessiveHalving(), 0, []
    for index, one in enumerate(pool):
        epoch, folds = 0, 0
        for rung, wanted, score_F in zip(RUNGS, folds_R, one.score_RF, strict=True):
            spent += (rung - epoch) * folds + rung * (wanted - folds)  # folds that come later catch up
            epoch, folds = rung, wanted
            if not halving.judge(rung, {index: statistics.fmean(score_F[:wanted])})[0]:
                break
        else:
            spent += (EPOCHS - epoch) * folds + EPOCHS * (FOLDS - folds)
            through.append(one)
        if spent >= budget:
            break
    return through


def selected(through: list[Trained], seen_C: Tensor) -> float:
    """Return the true H of the configuration that agrees best with the consensus of all that came through."""
    agreed = find_consensus([one.votes for one in through], seen_C)
    assert agreed is not None
    return max(through, key=lambda one: agreed.score(one.votes)["none"]).true_h


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", default=["icons2emoji", "emoji2icons"])
    parser.add_argument("--configs", type=int, default=128, help="configurations that are trained")
    parser.add_argument("--orders", type=int, default=50, help="random orders in which they are searched")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64], help="in configurations of today")
    parser.add_argument("--rotations", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default=".cache")
    parser.add_argument("--out", type=Path, default=Path("fold_fidelity.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    epochs_of_one = FOLDS * (RUNGS[0] + (RUNGS[1] - RUNGS[0]) / 2 + (EPOCHS - RUNGS[1]) / 4)
    lanes, results = drawn(args.configs), {}
    for benchmark in args.benchmarks:
        cache = prepare(FeatureOptions(benchmark=benchmark, cache_dir=args.cache))
        features, labels_T = load(cache), load_target_labels(cache)
        h: dict[tuple[str, int], list[float]] = {(scheme, n): [] for scheme in SCHEMES for n in args.budgets}
        best = []
        for rotation in args.rotations:
            data = trial_data(features, rotation=rotation, folds=FOLDS, seed=0)
            data = replace(data, reference_T=training_free_labels(data))
            pool = trained(lanes, data, labels_T)
            best.append(max(one.true_h for one in pool))
            order = torch.Generator().manual_seed(rotation)
            for _ in range(args.orders):
                shuffled = [pool[i] for i in torch.randperm(len(pool), generator=order).tolist()]
                for scheme, n in h:
                    through = played(shuffled, SCHEMES[scheme], int(n * epochs_of_one))
                    h[scheme, n].append(selected(through, data.seen_C))
        print(f"\n{benchmark}: true H of the selected configuration (regret to the best of {args.configs})\n")
        print("| scheme | " + " | ".join(f"budget of {n}" for n in args.budgets) + " |")
        print("|---|" + "--:|" * len(args.budgets))
        for scheme in SCHEMES:
            means = [statistics.fmean(h[scheme, n]) for n in args.budgets]
            cells = [f"{mean:.2f} ({statistics.fmean(best) - mean:.2f})" for mean in means]
            print(f"| {scheme} | {' | '.join(cells)} |", flush=True)
            results[f"{benchmark}, {scheme}"] = dict(zip(args.budgets, means, strict=True))
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
