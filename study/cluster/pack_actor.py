"""The actor that trains packs."""

import hashlib
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray import tune

from study.cluster.coordinator import PackProgress
from study.cluster.gauges import PackMetrics
from study.cluster.jobs import PackJob
from study.cluster.tasks import on_worker
from study.cluster.worker_group import Workers
from study.training.lane_result import LaneResult
from study.training.loop import Training
from study.training.pack_checkpoint import Checkpoints, Moving

REPORT_EVERY_S = 0.2
"""Seconds between a pack's reports of its progress: an epoch of a small benchmark takes milliseconds."""


class PackTrainable(tune.Trainable):
    """Trains one pack per Tune trial and is used again for the next one, whichever search that is of."""

    def setup(self, config: dict[str, Any], jobs: Mapping[str, PackJob]) -> None:  # type: ignore[override]
        """`jobs`: of each search, by the name of its space; all of them train on the same data."""
        self.jobs = jobs
        self.reset_config(config)
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        self.data = on_worker(ray.get(self.job.arrays), cpus=self.job.cpus, gpus=self.job.gpus)
        self.workers: Workers | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.job = self.jobs[new_config["space"]]
        self.metrics = PackMetrics(self.job.study, self.job.space)
        self.lanes: list[Mapping[str, Any]] = list(new_config.get("lanes", []))
        self.training: Training | None = None
        self.told = 0
        self.moved = False
        self.checkpoints = None
        if self.job.keeper:
            work = [self.job.space, *((lane["index"], lane["seed"]) for lane in self.lanes)]
            name = hashlib.sha256(repr(work).encode()).hexdigest()[:12]
            self.checkpoints = Checkpoints(self.job.keeper, f"{name}.safetensors", every=self.job.checkpoint_every)
        return True

    def step(self) -> dict[str, Any]:
        """Train the pack to its end, or, where it is refilled, until some lanes have ended.

        An exception is a result too: the searcher decides what becomes of the lanes. A pack whose node is being
        drained says that it has moved, and with the next call its actor is over, which Tune would use again there.
        """
        if self.moved:
            raise Moving
        ended: dict[int, LaneResult] = {}
        done = False
        try:
            while not done and not (ended and self.job.refill):
                try:
                    ended |= self._train_on()
                except StopIteration:
                    done = True
        except Moving:
            self.moved = True
            self._over()
            return {"lanes": [], "moved": True, "done": False}
        except Exception as error:
            traceback.print_exc()  # the whole story, for the actor's log
            if self.checkpoints:  # it may be the one that did not fit: the next try does without
                self.checkpoints.remove()
            if self.workers:  # they may be anywhere in the pack
                self.workers.close()
                self.workers = None
            self._over()
            return {"lanes": [], "crash": f"{type(error).__name__}: {error}", "done": True}
        self.told += len(ended)
        if done:
            if self.checkpoints:
                self.checkpoints.remove()
            self._over(max((r.metrics["val_h_mean"] for r in ended.values() if r.metrics), default=None))
        told = [{"number": self.lanes[i]["number"], **asdict(result)} for i, result in sorted(ended.items())]
        return {"lanes": told, "done": done}

    def _over(self, best_h: float | None = None) -> None:
        """Nothing is in training any more."""
        self.job.board.report.remote(self.trial_id, None)
        self.metrics.end(best_h)

    def _train_on(self) -> dict[int, LaneResult]:
        """Results of the next lanes that end; `StopIteration` when there is none any more."""
        if self.training is None:
            self.training = self._begin()
            return next(self.training)
        new = ray.get(self.job.board.take.remote(self.trial_id)) if self.job.refill else []
        self.lanes += new
        return self.training.send([(self.job.config(**lane["params"]), lane["seed"]) for lane in new])

    def _begin(self) -> Training:
        job, board, lanes, last_report, lane_epochs = self.job, self.job.board, self.lanes, 0.0, 0
        node, checkpoints = ray.get_runtime_context().get_node_id(), self.checkpoints
        answer: ray.ObjectRef | None = None
        images = len(self.data.source_labels_I) * (1 if self.data.oracle_labels_T is not None else self.data.folds)

        def judge(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
            return ray.get(board.judge.remote(job.space, epoch, {lanes[i]["index"]: score for i, score in scores}))

        def on_epoch(epoch: int, alive: int) -> None:
            nonlocal last_report, lane_epochs, answer
            lane_epochs += alive
            now = time.monotonic()
            if now - last_report >= REPORT_EVERY_S:
                if epoch:
                    self.metrics.update(images * lane_epochs, now - last_report, alive)
                last_report, lane_epochs = now, 0
                if checkpoints and answer:  # to the report before: it is there
                    checkpoints.moving = ray.get(answer)
                left = len(lanes) - self.told
                progress = PackProgress(space=job.space, lanes=left, alive=alive, epoch=epoch, node=node)
                answer = board.report.remote(self.trial_id, progress)

        on_epoch(0, len(lanes))
        if job.workers > 1:
            self.workers = self.workers or Workers(job)
            self.workers.train(job, lanes)
        return job.training(lanes, self.data, judge, on_epoch=on_epoch, checkpoints=checkpoints)

    def __repr__(self) -> str:
        """What the dashboard shows; Ray asks when the actor starts and never again: what changes is in its gauges."""
        return f"packs(study={self.job.study}, spaces={','.join(self.jobs)}, cpus={self.job.cpus:g})"
