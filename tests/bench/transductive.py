"""The transductive baselines on an embedded benchmark: S, U and H in every rotation, at the authors' settings.

They see no label and no rotation: each is fitted once, and its predictions are scored in every rotation.
`python tests/bench/transductive.py` prepares the features if they are not there and prints a table.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load, load_target_labels  # noqa: E402
from models.baselines import zero_shot_prototypes  # noqa: E402
from models.prompts import ClassTexts  # noqa: E402
from models.stacked import unit_features  # noqa: E402
from models.transductive import (  # noqa: E402
    InMaP,
    InMaPConfig,
    TransCLIP,
    TransCLIPConfig,
    ZLaP,
    ZLaPConfig,
)
from study.protocol.scores import seen_unseen  # noqa: E402

METHODS = {
    "ZLaP": (ZLaP, ZLaPConfig()),
    "TransCLIP": (TransCLIP, TransCLIPConfig()),
    "InMaP with Sinkhorn": (InMaP, InMaPConfig()),
    "InMaP without Sinkhorn": (InMaP, InMaPConfig(balance="none")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark", default="icons2emoji")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache = prepare(FeatureOptions(benchmark=args.benchmark, cache_dir=args.cache))
    features, labels_T = load(cache), load_target_labels(cache)
    target_TD = features.target.features_ID
    lemmas_CD = features.node_features_ND[features.graph.class_node_C]
    prototypes_CD = zero_shot_prototypes(features.name_features_CPD, lemmas_CD)["ensemble"]
    texts = ClassTexts(features_CD=prototypes_CD, logit_scale=features.logit_scale)
    images_TD = unit_features(target_TD)
    predictions = {"zero-shot ensemble": ((images_TD @ prototypes_CD.T).argmax(-1), 0.0)}
    for name, (module, config) in METHODS.items():
        started = time.perf_counter()
        logits_KTC = module([config], texts=texts, target_features_TD=target_TD).logits(images_TD)
        predictions[name] = logits_KTC[0].argmax(-1), time.perf_counter() - started
    print("| mean of rotations | S | U | H | H per rotation | seconds |\n|---|--:|--:|--:|---|--:|")
    for name, (predicted_T, seconds) in predictions.items():
        scores_R3 = torch.stack(
            [
                100 * torch.cat(seen_unseen(predicted_T[None], labels_T, ~unseen_C))
                for unseen_C in features.classes.unseen_RC
            ]
        )
        means = " | ".join(f"{value:.2f}" for value in scores_R3.mean(0).tolist())
        print(f"| {name} | {means} | {' '.join(f'{h:.2f}' for h in scores_R3[:, 2].tolist())} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
