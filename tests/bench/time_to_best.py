"""Time until a search first holds a configuration that is truly good: ours, and Tune as its documentation shows it.

The baseline: function trials (`plain_sre.py`), OptunaSearch over the same ranges, ASHAScheduler, 128 configurations on
two CPUs. Ours: the study's search with as many. Both maximise what the study's search maximises (agreement with
training-free methods on unlabelled target images). Then every configuration that either held at some time is trained
on all seen classes, and scored on the test images: its true H, in points. A side has arrived when it first holds a
configuration within 0.2 of the best that it ever held; and, so that nobody gains by never getting far, within 0.2 of
the lower of both sides' bests.
When a search draws its best is chance, so each side searches with several seeds, and medians are printed.
By the clock: only on a machine that does nothing else.
`python tests/bench/time_to_best.py` prints one ratio per line and writes time_to_best.json; ten minutes a seed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])

import common  # noqa: E402
import optuna  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from plain_sre import train_plain  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402
from torch import Tensor  # noqa: E402

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load, load_target_labels  # noqa: E402
from search_spaces import Value  # noqa: E402
from search_spaces.sre import SPACE  # noqa: E402
from study.cluster.jobs import Search  # noqa: E402
from study.cluster.search_run import TUNE_ENVIRONMENT, run_searches  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.protocol.consensus import training_free_labels  # noqa: E402
from study.protocol.scores import seen_unseen  # noqa: E402
from study.protocol.trial_data import TrialData, seen_classes, trainable_images, trial_data  # noqa: E402
from study.search.halving import rung_epochs  # noqa: E402
from study.search.ledger import open_ledger, suggest_params  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import PackReport  # noqa: E402
from study.training.loop import TrainingOptions  # noqa: E402
from study.training.pack import Pack  # noqa: E402

KNOBS = {knob.name for knob in SPACE.knobs}


def trial(config: dict[str, Any], data: dict[str, Any], epochs: int) -> None:
    """A Tune function trial."""
    torch.set_num_threads(1)
    params = {k: v for k, v in config.items() if k in KNOBS}
    for metrics in train_plain(SPACE.config(**params), seed=0, data=TrialData.from_arrays(data), epochs=epochs):
        tune.report(metrics)


def space(trial: optuna.Trial) -> None:
    """The search space, defined by run."""
    suggest_params(trial, SPACE)


NEAR = 0.2
"""Points of H within which a configuration is as good as the best."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A configuration that a search held as its best."""

    seconds: float
    """Since when."""
    score: float
    """What it was chosen by."""
    params: dict[str, Value]
    """Its knobs."""


class Best(tune.Callback):
    """What the baseline held, since when."""

    def __init__(self, epochs: set[int]) -> None:
        self.epochs = epochs
        self.started, self.held = time.perf_counter(), list[Held]()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if result["training_iteration"] in self.epochs and (not self.held or result["score"] > self.held[-1].score):
            params = {k: v for k, v in trial.config.items() if k in KNOBS}
            seconds = time.perf_counter() - self.started
            self.held.append(Held(seconds=seconds, score=result["score"], params=params))


class Watched(PackQueue):
    """The study's queue, noting what it held, since when."""

    def watch(self) -> None:
        self.started, self.held = time.perf_counter(), list[Held]()

    def _write(self, pack_id: str, report: PackReport) -> None:
        params = {lane.number: dict(lane.params) for lane in self._running.get(pack_id, [])}
        super()._write(pack_id, report)
        for number, outcome in report.ended.items():
            best = max((score for _, score in outcome.curve), default=0.0)
            if number in params and (not self.held or best > self.held[-1].score):
                seconds = time.perf_counter() - self.started
                self.held.append(Held(seconds=seconds, score=best, params=params[number]))


def true_h(params: dict[str, Value], data: TrialData, labels_T: Tensor, epochs: int) -> float:
    """Return H on the test images of a configuration that is trained on all seen classes, in per cent."""
    pack = Pack(
        [SPACE.config(**params)],
        seeds=[0],
        seen_KC=seen_classes(data, None)[None],
        trainable_KI=trainable_images(data, None)[None],
        data=data,
        epochs=epochs,
    )
    for _ in range(epochs):
        pack.train_epoch()
    return 100 * float(seen_unseen(pack.classify(data.target_features_TD), labels_T, data.seen_C)[2])


def arrival(held: list[Held], h: list[float], goal: float) -> float:
    """Return the seconds after which a side first held a configuration with at least this true H."""
    return next(one.seconds for one, value in zip(held, h, strict=True) if value >= goal)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Both searches with one seed."""

    held: dict[str, list[Held]]
    """What each side held."""
    seconds: dict[str, float]
    """How long each side's whole search took."""


def search_both(args: argparse.Namespace, data: TrialData, seed: int) -> Run:
    """Search with ours, then with the baseline."""
    arrays, rungs = data.to_arrays(), tuple(rung_epochs(args.epochs))
    with tempfile.TemporaryDirectory() as folder:
        with open_ledger(Path(folder) / "study", space=SPACE, identity=common.IDENTITY) as ledger:
            options: dict[str, Any] = {"configs": args.configs, "pack": args.pack, "refill": args.refill}
            ours = Watched(ledger, SPACE, **options, sampler="random", seed=seed)
            ours.watch()
            training = TrainingOptions(epochs=args.epochs, rungs=rungs, criterion="agreement")
            run_searches([Search(queue=ours, training=training)], arrays, resources=ResourceOptions())
        baseline = Best({*rungs, args.epochs})
        tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, data=arrays, epochs=args.epochs), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=args.configs,
                max_concurrent_trials=2,
                search_alg=OptunaSearch(space, metric="score", mode="max", seed=seed),
                scheduler=ASHAScheduler(max_t=args.epochs, grace_period=rungs[0], reduction_factor=2),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[baseline]),
        ).fit()
        whole = time.perf_counter() - baseline.started
    return Run(held={"ours": ours.held, "baseline": baseline.held}, seconds={"ours": ours.seconds, "baseline": whole})


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--configs", type=int, default=128)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--pack", type=int, default=1)
    options.add_argument("--refill", action="store_true", help="refill freed room of our packs")
    options.add_argument("--seeds", type=int, default=3, help="searches of each side; the median is printed")
    options.add_argument("--benchmark", default="icons2emoji")
    options.add_argument("--cache", type=Path, default=Path(".cache"))
    args = options.parse_args()
    os.environ.update(TUNE_ENVIRONMENT)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    cache = prepare(FeatureOptions(benchmark=args.benchmark, cache_dir=args.cache))
    data = trial_data(load(cache), rotation=0, folds=3, seed=0)
    data = replace(data, reference_T=training_free_labels(data))
    runs = [search_both(args, data, seed) for seed in range(args.seeds)]
    ray.shutdown()
    torch.set_num_threads(2)
    labels_T = load_target_labels(cache)
    ratios: dict[str, list[float]] = {}
    steps = []
    for seed, run in enumerate(runs):
        h = {name: [true_h(one.params, data, labels_T, args.epochs) for one in held] for name, held in run.held.items()}
        own = {name: arrival(held, h[name], max(h[name]) - NEAR) for name, held in run.held.items()}
        common_goal = min(map(max, h.values())) - NEAR
        both = {name: arrival(held, h[name], common_goal) for name, held in run.held.items()}
        best = {name: round(max(values), 2) for name, values in h.items()}
        for name, seconds in {"own best": own, "lower of both bests": both, "whole search": run.seconds}.items():
            ratios.setdefault(name, []).append(seconds["baseline"] / seconds["ours"])
            print(f"seed {seed}, {name} {best}: {seconds['baseline']:.0f} s, ours {seconds['ours']:.0f} s")
        steps.append(
            {
                name: [
                    (round(one.seconds, 1), round(one.score, 4), round(value, 2))
                    for one, value in zip(held, h[name], strict=True)
                ]
                for name, held in run.held.items()
            }
        )
    for name, values in ratios.items():
        print(f"time_to_best, {name}: ratio {statistics.median(values):.1f}, median of {len(values)} seeds", end=" ")
        print(f"({', '.join(f'{value:.1f}' for value in values)})")
    common.write(args.out, ratios, steps=steps, configs=args.configs)


if __name__ == "__main__":
    main()
