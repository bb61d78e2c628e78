"""Configurations per minute of the embedded SRE study: Ray Tune as its documentation shows it, and packs.

The same configurations, epochs and folds three ways, no pruning, one thread per CPU, features in the object store:
(a) one function trial per configuration (`plain_sre.py`: eager PyTorch, one model per fold, a report per epoch),
(b) the same function inside a Trainable class with `reuse_actors=True`,
(c) this project's packs.
By the clock: only a machine that does nothing else gives a ratio that means anything.
`python tests/bench/study_throughput.py` prints one ratio per line and writes study_throughput.json; selection metrics
of every configuration must agree in all three.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])

import common  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from plain_sre import train_plain  # noqa: E402
from ray import tune  # noqa: E402

from data_prep import FeatureOptions, prepare  # noqa: E402
from data_prep.feature_store import load  # noqa: E402
from search_spaces.sre import SPACE  # noqa: E402
from study.cluster.jobs import Search  # noqa: E402
from study.cluster.search_run import TUNE_ENVIRONMENT, run_searches  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.protocol.trial_data import TrialData, trial_data  # noqa: E402
from study.search.ledger import open_ledger  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.training.loop import TrainingOptions  # noqa: E402


def epochs_of(trial: dict[str, Any], data: TrialData) -> Iterator[dict[str, float]]:
    """Selection metrics of a configuration after every epoch."""
    return train_plain(SPACE.config(**trial["params"]), seed=trial["seed"], data=data, epochs=trial["epochs"])


def train_function(config: dict[str, Any], data: dict[str, Any]) -> None:
    """(a): a Tune function trial."""
    torch.set_num_threads(1)
    for metrics in epochs_of(config["trial"], TrialData.from_arrays(data)):
        tune.report(metrics)


class TrainClass(tune.Trainable):
    """(b): an epoch per step; Tune gives the actor a new configuration when it is done."""

    def setup(self, config: dict[str, Any], data: dict[str, Any]) -> None:  # type: ignore[override]
        torch.set_num_threads(1)
        self.data = TrialData.from_arrays(data)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.epochs = epochs_of(new_config["trial"], self.data)
        return True

    def step(self) -> dict[str, Any]:
        return {**next(self.epochs), "done": self.iteration + 1 == self.config["trial"]["epochs"]}


def tuned(trainable: Any, trials: list[dict[str, Any]], arrays: dict[str, Any], **options: Any) -> dict[int, float]:
    """Selection score of every configuration."""
    with tempfile.TemporaryDirectory() as folder:
        grid = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, data=arrays), {"cpu": 1}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(**options),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        ).fit()
    return {result.config["trial"]["index"]: result.metrics["score"] for result in grid}


def packs(configs: int, epochs: int, pack: int, arrays: dict[str, Any]) -> list[Any]:
    """(c): the configurations, as the ledger has them."""
    with tempfile.TemporaryDirectory() as folder:
        with open_ledger(Path(folder) / "study", space=SPACE, identity=common.IDENTITY) as ledger:
            queue = PackQueue(ledger, SPACE, configs=configs, pack=pack, sampler="random")
            search = Search(queue=queue, training=TrainingOptions(epochs=epochs))
            run_searches([search], arrays, resources=ResourceOptions())
            return ledger.finished()


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, round(time.perf_counter() - started, 1)


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--configs", type=int, default=64)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--pack", type=int, default=8)
    options.add_argument("--cache", type=Path, default=Path(".cache"))
    args = options.parse_args()
    os.environ.update(TUNE_ENVIRONMENT)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    features = load(prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=args.cache)))
    arrays = trial_data(features, rotation=0, folds=3, seed=0).to_arrays()
    packs(2, 1, 1, arrays)  # workers, imports and page cache are warm

    finished, used = measured(lambda: packs(args.configs, args.epochs, args.pack, arrays))
    seconds, scores = {"packs": used}, {"packs": {c.index: c.score for c in finished}}
    trials = [{"index": c.index, "params": c.params, "seed": c.seed, "epochs": args.epochs} for c in finished]
    scores["actors"], seconds["actors"] = measured(
        lambda: tuned(TrainClass, trials, arrays, reuse_actors=True, max_concurrent_trials=2)
    )
    scores["functions"], seconds["functions"] = measured(
        lambda: tuned(train_function, trials, arrays, max_concurrent_trials=2)
    )
    worst = max(abs(scores[n][i] - scores["packs"][i]) for n in ("functions", "actors") for i in scores["packs"])
    ratios = {}
    for name in ("functions", "actors"):
        ratios[name] = round(seconds[name] / seconds["packs"], 2)
        print(f"study_throughput packs / {name}: ratio {ratios[name]}")
    per_minute = {name: round(60 * args.configs / s, 1) for name, s in seconds.items()}
    print(f"configurations per minute {per_minute}, seconds {seconds}, largest difference of a score {worst:.1e}")
    about = {"configs": args.configs, "epochs": args.epochs, "pack": args.pack, "largest_difference": worst}
    common.write(args.out, ratios, per_minute=per_minute, seconds=seconds, **about)


if __name__ == "__main__":
    main()
