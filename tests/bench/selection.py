"""Does selection without labels pick well? Every criterion, on both embedded directions and their four rotations.

Runs the study's own search of SRE-CLIP over its neutral ranges (or reads the studies that are there), trains every
complete configuration once more on all seen classes, and only then looks at the test labels. It prints, for every
criterion, how it ranks the configurations (Spearman's rho with their true H, without a head), and the true H of the one
that it would select; for consensus agreement also under the heads. Then the studies' own leaderboards: rows with the
gain over zero-shot CLIP and its interval, as the study wrote them.

    python tests/bench/selection.py                  # both directions, 64 configurations each; takes an hour on 2 cores
    python tests/bench/selection.py --no-pruning     # all configurations complete: random ones, for the ranking
    python tests/bench/selection.py --no-pruning --pack 8     # eight share their static knobs; the table of regret

Criteria: H of the folds; mutual information (MI); their geometric mean; H + 0.15 MI (this project's first); agreement
with training-free methods, each and together; agreement with the consensus of all configurations, alone and times the
mean of H and MI (Hu et al., 2023, EnsV); agreement of the folds with each other; soft neighbourhood density (Saito et
al., 2021). The true H is of one seed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load, load_target_labels  # noqa: E402
from data_prep.storage import locate  # noqa: E402
from models.heads import HEADS, fitted_heads  # noqa: E402
from models.stacked import MethodConfig, unit_features  # noqa: E402
from search_spaces.sre import SPACE  # noqa: E402
from study import read_leaderboard, run_study  # noqa: E402
from study.cluster.tasks import packs_of  # noqa: E402
from study.pipeline.choice import find_consensus  # noqa: E402
from study.protocol.consensus import agreement, training_free_labels  # noqa: E402
from study.protocol.scores import seen_unseen  # noqa: E402
from study.protocol.trial_data import TrialData, seen_classes, trainable_images, trial_data  # noqa: E402
from study.search.ledger import read_ledger  # noqa: E402
from study.search.records import Configuration  # noqa: E402
from study.search.votes import VoteFolder  # noqa: E402
from study.training.pack import Pack  # noqa: E402

BUDGET = "the first "
LANES = 8
"""Configurations trained at once for their true H."""
DENSITY_TEMPERATURE = 0.05
"""Of soft neighbourhood density, the article's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", default=["icons2emoji", "emoji2icons"])
    parser.add_argument("--configs", type=int, default=64)
    parser.add_argument("--sampler", default=None, help="tpe or random; the space's own by default")
    parser.add_argument("--pruning", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pack", type=int, help="configurations that share their static knobs; the study's own rule")
    parser.add_argument("--storage", default="results", help="where the studies are; those that are finished are read")
    parser.add_argument("--cache", default=".cache")
    parser.add_argument("--out", type=Path, default=Path("selection.json"))
    args = parser.parse_args()
    results = {}
    for benchmark in args.benchmarks:
        name = f"selection-{benchmark}-{args.sampler or 'own'}{'' if args.pruning else '-unpruned'}"
        name += f"-packs-of-{args.pack}" if args.pack else ""
        folder = Path(args.storage) / name
        if not (folder / "leaderboard.parquet").exists():
            options = {"sampler": args.sampler} if args.sampler else {}
            options |= {"pack": args.pack} if args.pack else {}
            run_study(
                **{"space": "sre", "benchmark": benchmark, "rotation": "all", "configs": args.configs, "name": name},
                **{"storage": args.storage, "cache": args.cache, "pruning": args.pruning, "resume": True, **options},
            )
        results[benchmark] = report(benchmark, folder, args.cache)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def report(benchmark: str, folder: Path, cache_dir: str) -> dict[str, dict[str, list[float]]]:
    """Print a benchmark's tables; return rho and H of every criterion in each rotation."""
    cache = prepare(FeatureOptions(benchmark=benchmark, cache_dir=cache_dir))
    features, labels_T = load(cache), load_target_labels(cache)
    found: dict[str, dict[str, list[float]]] = {}
    for rotation in range(len(features.classes.unseen_RC)):
        data = trial_data(features, rotation=rotation, folds=3, seed=0)
        for criterion, numbers in of_rotation(folder / f"rotation-{rotation}", data, labels_T).items():
            for name, value in numbers.items():
                found.setdefault(criterion, {}).setdefault(name, []).append(value)
    print(f"\n{benchmark}: H of the selected configuration, mean of rotations; rho, mean (smallest)\n")
    print("| criterion | rho | selected | five best | per rotation |\n|---|--:|--:|--:|---|")
    of_budget = {name: numbers for name, numbers in found.items() if name.startswith(BUDGET)}
    for criterion, numbers in found.items():
        if criterion in of_budget:
            continue
        rho = f"{statistics.fmean(numbers['rho']):.2f} ({min(numbers['rho']):.2f})" if "rho" in numbers else ""
        five = f"{statistics.fmean(numbers['five']):.2f}" if "five" in numbers else ""
        each = " ".join(f"{h:.2f}" for h in numbers["h"])
        print(f"| {criterion} | {rho} | {statistics.fmean(numbers['h']):.2f} | {five} | {each} |")
    print(f"\n{benchmark}: H of what the consensus of the first configurations selects among them\n")
    print("| configurations | combinations of static knobs | selected | best of them (by the labels) |")
    print("|--:|--:|--:|--:|")
    for name, numbers in of_budget.items():
        statics, h, best = (statistics.fmean(numbers[column]) for column in ("statics", "h", "best"))
        print(f"| {name.removeprefix(BUDGET)} | {statics:.0f} | {h:.2f} | {best:.2f} |")
    print(f"\n{benchmark}: rows of the study, mean of rotations\n")
    print("| row | H | gain over zero-shot [95 %] | behind the selected row [95 %] |\n|---|--:|---|---|")
    for row in read_leaderboard(folder).to_dict("records"):
        gain, behind = ([row[f"{name}{end}"] for end in ("", "_lo", "_hi")] for name in ("h_gain", "h_behind"))
        print(f"| {row['method']} | {100 * row['test_h_mean']:.2f} | {_interval(gain)} | {_interval(behind)} |")
    return found


def _interval(values: Sequence[float | None]) -> str:
    if any(value is None or value != value for value in values):
        return ""
    middle, low, high = (100 * (value or 0.0) for value in values)
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"


def of_rotation(folder: Path, data: TrialData, labels_T: Tensor) -> dict[str, dict[str, float]]:
    """Return rho, H of the best and mean H of the five best of every criterion in one rotation."""
    complete = [c for c in read_ledger(folder).finished() if c.state == "complete"]
    votes = VoteFolder(storage=locate(folder)).load([c.index for c in complete])
    complete = [c for c in complete if c.index in votes]
    agreed = find_consensus(list(votes.values()), data.seen_C)
    assert agreed is not None
    predicted, density = predictions([SPACE.config(**c.params) for c in complete], data)
    true_h = {head: 100 * seen_unseen(rows_NT, labels_T, data.seen_C)[2] for head, rows_NT in predicted.items()}

    def of_folds(labels: Tensor) -> list[float]:
        rows = [torch.from_numpy(votes[c.index].classes["none"].astype("int64")) for c in complete]
        return [float(agreement(rows_FT, labels, data.seen_C).mean()) for rows_FT in rows]

    metric = {name: torch.tensor([c.metrics[name] for c in complete]) for name in ("val_h_mean", "target_mi")}
    h, information = metric["val_h_mean"], metric["target_mi"]
    both = (h * information).clamp_min(0).sqrt()
    with_all = torch.tensor([agreed.score(votes[c.index])["none"] for c in complete])
    scores = {
        "H of the folds": h,
        "mutual information": information,
        "sqrt(H x MI)": both,
        "H + 0.15 MI": h + 0.15 * information,
        "agreement with training-free methods": torch.tensor(of_folds(training_free_labels(data))),
        **{f"agreement with {head}": torch.tensor(of_folds(labels)) for head, labels in training_free(data).items()},
        "agreement of the folds": torch.tensor([_fold_agreement(c, votes, data.seen_C) for c in complete]),
        "soft neighbourhood density": density,
        "consensus": with_all,
        "consensus x sqrt(H x MI)": with_all * both,
    }
    found: dict[str, dict[str, float]] = {
        "best trained (by the labels)": {"h": float(true_h["none"].max())},
        "median": {"h": float(true_h["none"].median())},
    }
    for name, score_N in scores.items():
        order = score_N.argsort(descending=True, stable=True)
        found[name] = {
            "rho": float(spearmanr(score_N, true_h["none"]).statistic),
            "h": float(true_h["none"][order[0]]),
            "five": float(true_h["none"][order[:5]].mean()),
        }
    for head in HEADS[1:]:
        score_N = torch.tensor([agreed.score(votes[c.index])[head] for c in complete])
        order = score_N.argsort(descending=True, stable=True)
        found[f"consensus, under {head}"] = {
            "rho": float(spearmanr(score_N, true_h[head]).statistic),
            "h": float(true_h[head][order[0]]),
            "five": float(true_h[head][order[:5]].mean()),
        }
    for n in sorted({n for n in (8, 16, 32) if n < len(complete)} | {len(complete)}):
        first = sorted(complete, key=lambda c: c.index)[:n]
        of_first = find_consensus([votes[c.index] for c in first], data.seen_C)
        assert of_first is not None
        score_N = torch.tensor([of_first.score(votes[c.index])["none"] for c in first])
        h_N = torch.stack([true_h["none"][complete.index(c)] for c in first])
        found[f"{BUDGET}{n}"] = {
            "statics": float(len({json.dumps(SPACE.static(c.params)) for c in first})),
            "h": float(h_N[score_N.argmax()]),
            "best": float(h_N.max()),
        }
    found["the consensus itself"] = {
        "h": 100 * float(seen_unseen(agreed.labels_T[None], labels_T, data.seen_C)[2]),
    }
    return found


def training_free(data: TrialData) -> dict[str, Tensor]:
    """Return each training-free method's predictions for the target."""
    heads = fitted_heads(unit_features(data.target_features_TD), data.name_features_CD, data.logit_scale)
    return {name: head.target_logits().argmax(-1) for name, head in heads.items() if name != "vote"}


def _fold_agreement(c: Configuration, votes: Mapping[int, object], seen_C: Tensor) -> float:
    rows_FT = torch.from_numpy(votes[c.index].classes["none"].astype("int64"))  # type: ignore[attr-defined]
    others = [torch.cat([rows_FT[:i], rows_FT[i + 1 :]]) for i in range(len(rows_FT))]
    return float(
        torch.stack([agreement(rest, own, seen_C).mean() for own, rest in zip(rows_FT, others, strict=True)]).mean()
    )


def predictions(configs: Sequence[MethodConfig], data: TrialData) -> tuple[dict[str, Tensor], Tensor]:
    """Train configurations on all seen classes; return target predictions (N, T) by head, and each one's density.

    The density of softmax outputs p: entropy of softmax(p_i p_j / temperature) over the other images j, mean over i.
    """
    predicted: dict[str, list[Tensor]] = {head: [torch.empty(0)] * len(configs) for head in HEADS}
    density = torch.zeros(len(configs))
    for pack in packs_of(configs):
        for start in range(0, len(pack), LANES):
            some = pack[start : start + LANES]
            lanes = Pack(
                [configs[i] for i in some],
                seeds=some,
                seen_KC=seen_classes(data, None).expand(len(some), -1),
                trainable_KI=trainable_images(data, None).expand(len(some), -1),
                data=data,
                epochs=20,
            )
            for _ in range(20):
                lanes.train_epoch()
            embedded = lanes.module.embed(data.target_features_TD)
            assert embedded is not None
            for i, features_TD, prototypes_CD in zip(some, *embedded, strict=True):
                own_TC = data.logit_scale * features_TD @ prototypes_CD.T
                predicted["none"][i] = own_TC.argmax(-1)
                for name, head in fitted_heads(features_TD, prototypes_CD, data.logit_scale).items():
                    predicted[name][i] = head.target_logits().argmax(-1)
                p_TC = torch.nn.functional.normalize(own_TC.softmax(-1), dim=-1)
                near_TT = (p_TC @ p_TC.T / DENSITY_TEMPERATURE).fill_diagonal_(-torch.inf)
                log_q_TT = near_TT.log_softmax(-1)
                density[i] = -torch.nan_to_num(log_q_TT.exp() * log_q_TT).sum(-1).mean()
    return {head: torch.stack(rows) for head, rows in predicted.items()}, density


if __name__ == "__main__":
    main()
