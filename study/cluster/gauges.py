"""What Prometheus sees of a study, as `ray_zerosweep_*` at every node's metrics endpoint; `grafana.json` draws it."""

from collections.abc import Mapping

import torch
from ray.util.metrics import Counter, Gauge

from study.cluster.coordinator import PackProgress
from study.search.pack_queue import PackQueue

TAGS = ("study", "space")


def _tags(study: str, space: str) -> dict[str, str]:
    """Return the tags of a gauge. Ray takes ASCII only; a study's folder may be called anything."""
    return {"study": study.encode("ascii", "backslashreplace").decode(), "space": space}


class PackGauges:
    """A pack actor's numbers; Ray tags them with its `WorkerId`."""

    def __init__(self, study: str, space: str) -> None:
        self._images = Gauge("zerosweep_images_per_second", description="Images trained on, all lanes", tag_keys=TAGS)
        self._memory = Gauge("zerosweep_gpu_bytes", description="GPU memory of a pack's actor at most", tag_keys=TAGS)
        self._alive = Gauge("zerosweep_pack_lanes_alive", description="Lanes alive in an actor's pack", tag_keys=TAGS)
        self._best_h = Gauge("zerosweep_pack_best_h", description="Best H of an actor's last pack", tag_keys=TAGS)
        for gauge in (self._images, self._memory, self._alive, self._best_h):
            gauge.set_default_tags(_tags(study, space))

    def update(self, images: int, seconds: float, alive: int) -> None:
        """Publish how fast the pack trains and how many lanes it has left.

        `images`: trained on in these seconds, times the lanes that saw them.
        """
        self._images.set(images / max(seconds, 1e-9))
        self._alive.set(alive)
        if torch.cuda.is_available():
            self._memory.set(torch.cuda.max_memory_allocated())

    def end(self, best_h: float | None) -> None:
        """Publish that the pack trains no more, and its best H, if any lane has one."""
        self._images.set(0)
        self._alive.set(0)
        if best_h is not None:
            self._best_h.set(best_h)


class SearchGauges:
    """The driver's numbers of one search; an observer of the `Monitor`."""

    every_s = 0.0

    def __init__(self, queue: PackQueue, study: str) -> None:
        self._counts, self._space = queue.counts, queue.space.name
        tags = _tags(study, self._space)

        def gauge(name: str, description: str, *more: str) -> Gauge:
            made = Gauge(f"zerosweep_{name}", description=description, tag_keys=(*TAGS, *more))
            made.set_default_tags(tags)
            return made

        self._configs = gauge("configs", "Configurations of the study by state", "state")
        self._best_score = gauge("best_score", "Highest selection score so far")
        self._best_h = gauge("best_h", "H on the selection folds of the configuration with the highest score")
        self._packs = gauge("packs", "Packs in training")
        self._lanes = gauge("lanes_alive", "Configurations in training that are not pruned")
        self._died = Counter("zerosweep_packs_died", description="Packs that died", tag_keys=TAGS)
        self._died.set_default_tags(tags)
        self._deaths = 0

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        """Publish how the search stands."""
        counts = self._counts
        for state, count in (("complete", counts.complete), ("pruned", counts.pruned), ("failed", counts.failed)):
            self._configs.set(count, tags={"state": state})
        for gauge, value in ((self._best_score, counts.best), (self._best_h, counts.best_h)):
            if value is not None:
                gauge.set(value)
        alive = [pack.alive for pack in packs.values() if pack.space == self._space]
        self._packs.set(len(alive))
        self._lanes.set(sum(alive))
        if counts.deaths > self._deaths:
            self._died.inc(counts.deaths - self._deaths)
            self._deaths = counts.deaths
        return True

    def end(self) -> None:
        """Publish the end of the search."""
        self.look({})
