"""The actor that trains packs."""

import hashlib
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from study.cluster.coordinator import Handed, PackProgress
from study.cluster.gauges import PackGauges
from study.cluster.jobs import PackJob, PackTraining
from study.cluster.tasks import data_on_worker
from study.cluster.worker_group import WorkerGroup, verdicts_of_first
from study.search.records import PackReport
from study.training.pack_checkpoint import Moving, PackCheckpoint
from study.training.scoring import LaneResult

PATIENCE_S = 60.0
"""A pack waits so long at a rung for those drawn before it, or as long as it has trained: an actor may hang, or have
no room yet."""

ASK_EVERY_S = 0.5
"""Seconds at most between a waiting pack's questions."""

REPORT_EVERY_S = 0.2
"""Seconds between a pack's reports of its progress: an epoch of a small benchmark takes milliseconds."""


class PackTrainable(tune.Trainable):
    """Trains pack after pack, whichever search they are of: the first one Tune gives it, the others its searcher.

    Tune's dicts are unpacked and packed here: the first pack is `{"pack": Handed}`, a result
    `{"report": PackReport, "done": bool}`.
    """

    def setup(self, config: dict[str, Any], jobs: Mapping[str, PackJob]) -> None:  # type: ignore[override]
        """Get the data, once. `jobs`: of each search, by the name of its space; all train on the same data."""
        self.jobs = jobs
        self.reset_config(config)
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        resources = self.job.resources
        self.data = data_on_worker(ray.get(self.job.arrays), resources.cpus_per_pack, resources.gpus)
        self.group: WorkerGroup | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Be used again, after a time without a pack."""
        self._take(new_config["pack"])
        return True

    def _take(self, pack: Handed) -> None:
        self.job = self.jobs[pack.space]
        self.gauges = PackGauges(self.job.study, self.job.space)
        self.lanes = list(pack.lanes)
        self.training: PackTraining | None = None
        self.reported = 0  # lanes
        self.moved = self.over = False
        self.checkpoint: PackCheckpoint | None = None
        if self.job.store:
            work = [self.job.space, *((lane.index, lane.seed) for lane in self.lanes)]
            name = f"{hashlib.sha256(repr(work).encode()).hexdigest()[:12]}.safetensors"
            self.checkpoint = PackCheckpoint(self.job.store, name, every=self.job.resources.checkpoint_every)

    def step(self) -> dict[str, Any]:
        """Train the pack to its end, or, where it is refilled, until some lanes have ended; take the next one before.

        Done is an actor for which there is none. An exception is a result too: the queue decides what becomes of the
        lanes. A pack whose node is being drained says that it has moved; with the next call its actor, which Tune would
        use again on that node, is over.
        """
        if self.moved:
            raise Moving
        if self.over:
            pack = self._handed()
            if pack is None:
                return {"report": PackReport(), "done": True}
            self._take(pack)
        try:
            ended = self._train()
        except Moving:
            self.moved = True
            self._stop()
            return {"report": PackReport(moved=True), "done": False}
        except Exception as error:
            traceback.print_exc()  # the whole story, for the actor's log
            if self.checkpoint:  # it may be the one that did not fit: the next try does without
                self.checkpoint.remove()
            if self.group:  # its workers may be anywhere in the pack
                self.group.close()
                self.group = None
            self._stop()
            self.over = True
            return {"report": PackReport(crash=f"{type(error).__name__}: {error}", over=True), "done": False}
        self.reported += len(ended)
        # a pack that is refilled hears first whether other lanes take the room of those that ended
        self.over = not (ended and self.job.refill)
        if self.over:
            if self.checkpoint:
                self.checkpoint.remove()
            self._stop(max((r.metrics["val_h_mean"] for r in ended.values() if r.metrics), default=None))
        outcomes = {self.lanes[i].number: result for i, result in sorted(ended.items())}
        return {"report": PackReport(ended=outcomes, over=self.over), "done": False}

    def _handed(self) -> Handed | None:
        """Return what is laid out for this actor, if anything is."""
        handed: Any = ray.get(self.job.coordinator.handed_to.remote(self.trial_id))
        return handed

    def _stop(self, best_h: float | None = None) -> None:
        """Say that nothing is in training any more."""
        self.job.coordinator.leave.remote(self.trial_id, self.job.space, self.lanes[0].index)
        self.gauges.end(best_h)

    def _train(self) -> dict[int, LaneResult]:
        """Return the results of all lanes, or, where the pack is refilled, of the next lanes that end, by position."""
        refill = self.job.refill
        if self.training is None:
            self.training = self._begin()
        elif refill and (more := self._handed()):
            self.lanes += more.lanes
            self.training.add(self.job.configs(more.lanes), [lane.seed for lane in more.lanes])
        ended: dict[int, LaneResult] = {}
        while not self.training.done and not (ended and refill):
            ended |= self.training.advance()
        return ended

    def _begin(self) -> PackTraining:
        job, coordinator, lanes, last_report, lane_epochs = self.job, self.job.coordinator, self.lanes, 0.0, 0
        node, checkpoint = ray.get_runtime_context().get_node_id(), self.checkpoint
        must_move: ray.ObjectRef | None = None
        began = time.monotonic()
        images = len(self.data.source_labels_I) * (1 if self.data.oracle_labels_T is not None else self.data.folds)

        def judge(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
            question = (job.space, lanes[0].index, epoch, {lanes[i].index: score for i, score in scores})
            asked, pause = time.monotonic(), ASK_EVERY_S / 100
            gives_up = asked + max(PATIENCE_S, asked - began)
            while True:
                verdicts: list[bool] | None = ray.get(
                    coordinator.judge.remote(*question, waits=time.monotonic() < gives_up)
                )
                if verdicts is not None:
                    return verdicts
                time.sleep(pause)
                pause = min(2 * pause, ASK_EVERY_S)

        def on_epoch(epoch: int, alive: int) -> None:
            nonlocal last_report, lane_epochs, must_move
            lane_epochs += alive
            now = time.monotonic()
            if now - last_report >= REPORT_EVERY_S:
                if epoch:
                    self.gauges.update(images * lane_epochs, now - last_report, alive)
                last_report, lane_epochs = now, 0
                if checkpoint and must_move:  # the answer to the report before: it is there
                    checkpoint.moving = ray.get(must_move)
                left = len(lanes) - self.reported
                progress = PackProgress(space=job.space, lanes=left, alive=alive, epoch=epoch, node=node)
                must_move = coordinator.report.remote(self.trial_id, progress)

        on_epoch(0, len(lanes))
        if job.resources.workers_per_pack > 1:
            self.group = self.group or WorkerGroup(job)
            self.group.train(job, lanes)
            return job.begin(lanes, self.data, verdicts_of_first(judge, self.data.source_labels_I.device), on_epoch)
        return job.begin(lanes, self.data, judge, on_epoch, checkpoint)

    def __repr__(self) -> str:
        """What the dashboard shows; Ray asks when the actor starts and never again: what changes is in its gauges."""
        cpus = self.job.resources.cpus_per_pack
        return f"packs(study={self.job.study}, spaces={','.join(self.jobs)}, cpus={cpus:g})"
