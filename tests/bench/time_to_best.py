"""Time until the selection H first reaches the best value that Tune with OptunaSearch and ASHA reaches.

The baseline: function trials (`plain_sre.py`), OptunaSearch over the same space, ASHAScheduler, 128 configurations on
two CPUs. Ours: the study's search with as many. Both maximise H of the folds, and both are looked at where ours scores:
at the rungs and at the end (untrained adapters are zero-shot CLIP, so first epochs would be its H).
By the clock: only on a machine that does nothing else.
`python tests/bench/time_to_best.py` prints one ratio per line and writes time_to_best.json; the baseline takes long.
"""

import os
import sys
import tempfile
import time
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

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load  # noqa: E402
from search_spaces.sre import SPACE  # noqa: E402
from study.cluster.jobs import Search  # noqa: E402
from study.cluster.search_run import TUNE_ENVIRONMENT, run_searches  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.protocol.trial_data import TrialData, trial_data  # noqa: E402
from study.search.halving import rung_epochs  # noqa: E402
from study.search.ledger import open_ledger, suggest_params  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import PackReport  # noqa: E402
from study.training.loop import TrainingOptions  # noqa: E402


def trial(config: dict[str, Any], data: dict[str, Any], epochs: int) -> None:
    """A Tune function trial."""
    torch.set_num_threads(1)
    params = {k: v for k, v in config.items() if k in {knob.name for knob in SPACE.knobs}}
    for metrics in train_plain(SPACE.config(**params), seed=0, data=TrialData.from_arrays(data), epochs=epochs):
        tune.report(metrics)


def space(trial: optuna.Trial) -> None:
    """The search space, defined by run."""
    suggest_params(trial, SPACE)


class Best(tune.Callback):
    """When the best value so far was reported: [(seconds, H)]."""

    def __init__(self, epochs: set[int]) -> None:
        self.epochs = epochs
        self.started, self.steps = time.perf_counter(), list[tuple[float, float]]()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if result["training_iteration"] not in self.epochs:
            return
        if not self.steps or result["val_h_mean"] > self.steps[-1][1]:
            self.steps.append((time.perf_counter() - self.started, result["val_h_mean"]))


class Watched(PackQueue):
    """The study's queue, noting when packs end with what H."""

    def watch(self) -> None:
        self.started, self.steps = time.perf_counter(), list[tuple[float, float]]()

    def end(self, pack_id: str, report: PackReport | None) -> None:
        super().end(pack_id, report)
        outcomes = report.ended.values() if report else ()  # their scores are H
        best = max((score for outcome in outcomes for _, score in outcome.curve), default=0.0)
        self.steps.append((time.perf_counter() - self.started, best))


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--configs", type=int, default=128)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--pack", type=int, default=16)
    options.add_argument("--refill", action="store_true", help="refill freed room of our packs")
    options.add_argument("--cache", type=Path, default=Path(".cache"))
    args = options.parse_args()
    os.environ.update(TUNE_ENVIRONMENT)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    features = load(prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=args.cache)))
    arrays = trial_data(features, rotation=0, folds=3, seed=0).to_arrays()
    rungs = tuple(rung_epochs(args.epochs))

    with tempfile.TemporaryDirectory() as folder:
        with open_ledger(Path(folder) / "study", space=SPACE, identity=common.IDENTITY) as ledger:
            ours = Watched(ledger, SPACE, configs=args.configs, pack=args.pack, refill=args.refill)
            ours.watch()
            training = TrainingOptions(epochs=args.epochs, rungs=rungs, criterion="h")
            run_searches([Search(queue=ours, training=training)], arrays, resources=ResourceOptions())
        baseline = Best({*rungs, args.epochs})
        tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, data=arrays, epochs=args.epochs), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="val_h_mean",
                mode="max",
                num_samples=args.configs,
                max_concurrent_trials=2,
                search_alg=OptunaSearch(space, metric="val_h_mean", mode="max", seed=0),
                scheduler=ASHAScheduler(max_t=args.epochs, grace_period=rungs[0], reduction_factor=2),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[baseline]),
        ).fit()
    target = baseline.steps[-1]
    reached = next((step for step in ours.steps if step[1] >= target[1]), None)
    if reached is None:
        print(f"time_to_best: not reached; H {target[1]:.4f} against {max(s[1] for s in ours.steps):.4f}")
        results: dict[str, Any] = {"reached": False}
    else:
        ratio = round(target[0] / reached[0], 1)
        print(f"time_to_best H {target[1]:.4f}: ratio {ratio}")
        results = {"reached": True, "ratio": ratio}
    common.write(args.out, results, baseline=baseline.steps, ours=ours.steps, configs=args.configs, refill=args.refill)


if __name__ == "__main__":
    main()
