"""What losses that assume equal classes cost where the target is unbalanced, and what an estimated prior changes.

    python tests/bench/imbalance.py                     # both directions, four rotations, three seeds: two minutes

Of the target images a random half of the classes keep a single one. SRE-CLIP's default configuration is trained with
equal shares of the classes in L_div and L_bal (`class_prior="uniform"`), with shares that are estimated from the target
without labels ("estimated"), and without the two losses. Zero-shot CLIP and TransCLIP stand beside it. H is a mean over
rotations.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load, load_target_labels  # noqa: E402
from models.heads import fitted_heads  # noqa: E402
from models.sre_clip import SREConfig  # noqa: E402
from models.stacked import unit_features  # noqa: E402
from study.protocol.scores import seen_unseen  # noqa: E402
from study.protocol.trial_data import TrialData, trial_data  # noqa: E402
from study.training.refit import refit_pack  # noqa: E402

CONFIGS = {
    "SRE-CLIP, equal shares": SREConfig(),
    "SRE-CLIP, estimated shares": SREConfig(class_prior="estimated"),
    "SRE-CLIP, without L_div and L_bal": SREConfig(w_div=0.0, w_bal=0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", default=".cache")
    args = parser.parse_args()
    for benchmark in ("icons2emoji", "emoji2icons"):
        cache = prepare(FeatureOptions(benchmark=benchmark, cache_dir=args.cache))
        features, labels_T = load(cache), load_target_labels(cache)
        found: dict[str, dict[str, list[float]]] = {}
        for rotation in range(len(features.classes.unseen_RC)):
            data = trial_data(features, rotation=rotation, folds=3, seed=0)
            for name, keep_T in (("balanced", torch.ones_like(labels_T).bool()), ("cut", cut(labels_T, rotation))):
                of_target = replace(data, target_features_TD=data.target_features_TD[keep_T])
                for method, h in scores(of_target, labels_T[keep_T], args.seeds).items():
                    found.setdefault(method, {}).setdefault(name, []).append(h)
        print(f"\n{benchmark}\n\n| | H, as it is | H, half of the classes cut to one image |\n|---|--:|--:|")
        for method, h_of in found.items():
            print(f"| {method} | {statistics.fmean(h_of['balanced']):.2f} | {statistics.fmean(h_of['cut']):.2f} |")


def cut(labels_T: Tensor, seed: int) -> Tensor:
    """Return the images that stay, bool (T,): the first of each class of a random half, and all others."""
    classes = int(labels_T.max()) + 1
    rare = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))[: classes // 2]
    first_C = torch.tensor([int((labels_T == c).nonzero()[0]) for c in range(classes)])
    keep_T = ~torch.isin(labels_T, rare)
    keep_T[first_C] = True
    return keep_T


def scores(data: TrialData, labels_T: Tensor, seeds: int) -> dict[str, float]:
    """Return H in per cent of every method, of trained ones the mean over seeds."""
    images_TD = unit_features(data.target_features_TD)
    heads = fitted_heads(images_TD, data.name_features_CD, data.logit_scale)
    logits: dict[str, Tensor] = {name: head.target_logits() for name, head in heads.items()}
    logits["zero-shot CLIP"] = images_TD @ data.name_features_CD.T
    predicted = {
        name: logits[key].argmax(-1)[None]
        for name, key in (("zero-shot CLIP", "zero-shot CLIP"), ("TransCLIP", "transclip"))
    }
    for name, config in CONFIGS.items():
        (refit,) = refit_pack([config], seeds=list(range(seeds)), data=data, epochs=20)
        predicted[name] = refit.predictions_ST
    return {name: 100 * float(seen_unseen(p_ST, labels_T, data.seen_C)[2].mean()) for name, p_ST in predicted.items()}


if __name__ == "__main__":
    main()
