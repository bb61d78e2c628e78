"""How many packs the cluster holds, and the nodes that its autoscaler is asked for.

Ray's autoscaler starts nodes for placement groups that wait. Tune makes one for every pack, but only once the pack's
configurations are drawn, and what is drawn for a node that comes in minutes cannot learn from the results of these
minutes. So a pack is drawn when a node has room for it, and nodes for more packs are asked for by placement groups in
which nothing will run. They go with the driver: no machine stays up for a study that was killed.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from rich.console import Console

from data_prep.errors import UserError
from data_prep.ray_session import own_ray
from study.cluster.session import autoscaler_verdict, concurrent_packs
from study.options import ResourceOptions

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the cluster's nodes."""

MOST_ON_A_GPU = 8
"""Packs that share a GPU at most under `--gpus-per-pack auto`."""

SAY_AFTER_S = 5.0
"""Seconds of waiting before it is said."""

SAY_EVERY_S = 15.0
"""Seconds between two lines that say it."""

VERDICT_WITHIN_S = 15.0
"""Seconds within which an autoscaler says whether it can start more nodes; it looks every five seconds."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How many packs a cluster holds."""

    now: int
    """Packs that its nodes hold at once, 1 at least."""
    most: int
    """Packs that the study will run at once: those, or more where an autoscaler can start nodes."""
    memory: float = math.inf
    """Bytes that its nodes have for tasks and actors, all together."""


def needs(resources: ResourceOptions) -> str:
    """Return what a pack needs, in words."""

    def count(number: float, unit: str) -> str:
        return f"{number:g} {unit}{'' if number == 1 else 's'}"

    gpus = f" and {count(resources.gpus, 'GPU')}" if resources.gpus else ""
    each = f" for each of {resources.workers_per_pack} workers" if resources.workers_per_pack > 1 else ""
    return f"{count(resources.cpus_per_pack, 'CPU')}{gpus}{each}"


def of_worker(resources: ResourceOptions) -> dict[str, float]:
    """Return the resources of one worker of a pack, as Ray's placement groups name them."""
    gpus = {"GPU": resources.gpus} if resources.gpus else {}
    return {"CPU": resources.cpus_per_pack, **gpus}


def find_capacity(resources: ResourceOptions, useful: int, console: Console) -> Capacity:
    """Return how many packs the cluster holds now, and how many once its autoscaler has done what it can.

    `useful`: packs that the study can use at once. Where no node holds a pack yet, waits for one and says so on the
    console. Raises `UserError` where none can come.
    """
    limit = resources.max_packs if resources.max_packs != "auto" else math.inf
    now, grows = concurrent_packs(resources), False
    if not now:
        if own_ray():
            raise _does_not_fit(resources)
        _wait_for_room(resources, console)
        now, grows = max(1, concurrent_packs(resources)), True
    elif not own_ray() and useful > now:
        verdict = _can_grow(resources, now + 1)
        grows = resources.max_packs != "auto" if verdict is None else verdict
    memory = ray.cluster_resources().get("memory", math.inf)
    return Capacity(now=now, most=int(max(useful, min(now, limit)) if grows else min(now, limit)), memory=memory)


def local_capacity(resources: ResourceOptions) -> Capacity:
    """Return how many packs a Ray on this machine will hold, without starting one. Raises `UserError` where none."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    packs = int(cpus / resources.cpus_per_pack) // resources.workers_per_pack
    if packs < 1:
        text = f"must fit this machine, got {resources.cpus_per_pack:g} for {cpus} CPUs"
        raise UserError(text, option="cpus_per_pack")
    now = packs if resources.max_packs == "auto" else min(packs, resources.max_packs)
    return Capacity(now=now, most=now)


def gpu_share(*, gpus: int, cpus: float, memory: int, pack_bytes: int, packs: int, cpus_per_pack: float) -> float:
    """Return the share of a GPU that each pack gets, so that several hide each other's waiting for the processor.

    gpus, cpus: of the cluster; memory: bytes of a GPU; pack_bytes: of a pack in training; packs: that are to be
    trained. A fifth of the memory is left to CUDA and to what the estimate misses.
    """
    fitting = int(0.8 * memory // max(pack_bytes, 1))
    fed = int(cpus // (gpus * cpus_per_pack))
    side_by_side = max(1, min(MOST_ON_A_GPU, fitting, fed, math.ceil(packs / gpus)))
    return math.floor(1e4 / side_by_side) / 1e4  # Ray counts in ten thousandths


def _does_not_fit(resources: ResourceOptions) -> UserError:
    have, workers = ray.cluster_resources(), resources.workers_per_pack
    each = f"for each of {workers} workers " if workers > 1 else ""
    return UserError(
        f"and the GPUs of a pack must fit the cluster, got {resources.cpus_per_pack:g} and "
        f"{resources.gpus:g} {each}for {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs",
        option="cpus_per_pack",
    )


def _wait_for_room(resources: ResourceOptions, console: Console) -> None:
    """Ask the autoscaler for a node that holds a pack; return when it is there. Raises `UserError` if none can come."""
    waiting, group = WaitingLine(console, f"a node with {needs(resources)}"), _ask_for(resources)
    since: int | None = None
    try:
        while not _placed([group]):
            can_come, since = autoscaler_verdict(group, since)
            if can_come is False:
                raise _does_not_fit(resources)
            waiting.say()
            time.sleep(LOOK_EVERY_S)
    finally:
        remove_placement_group(group)


def _can_grow(resources: ResourceOptions, packs: int) -> bool | None:
    """Return whether the autoscaler can start nodes until these packs run at once; None: it says nothing."""
    group, began = _ask_for(resources, packs), time.monotonic()
    since: int | None = None
    try:
        while time.monotonic() - began < VERDICT_WITHIN_S:
            can_come, since = autoscaler_verdict(group, since)
            if can_come is not None:
                return can_come
            time.sleep(LOOK_EVERY_S)
    finally:
        remove_placement_group(group)
    return None


def _ask_for(resources: ResourceOptions, packs: int = 1) -> PlacementGroup:
    return placement_group([of_worker(resources)] * (resources.workers_per_pack * packs), strategy="PACK")


def _placed(groups: Sequence[PlacementGroup]) -> list[PlacementGroup]:
    """Return those of the placement groups that nodes hold."""
    states = {name: group["state"] for name, group in placement_group_table().items()} if groups else {}
    return [group for group in groups if states.get(group.id.hex()) == "CREATED"]


class WaitingLine:
    """Says now and then how long the study has been waiting, and for what."""

    def __init__(self, console: Console, what: str) -> None:
        """`what`: is waited for."""
        self._console, self._what = console, what
        self._began, self._next = time.monotonic(), SAY_AFTER_S

    def say(self) -> None:
        """Print a line if one is due."""
        seconds = time.monotonic() - self._began
        if seconds >= self._next:
            self._next = seconds + SAY_EVERY_S
            self._console.print(f"waiting for {self._what} for {minutes(seconds)}", soft_wrap=True, highlight=False)


def minutes(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Room:
    """Follows how many packs the cluster holds while searches run, and asks its autoscaler for nodes for more."""

    def __init__(self, resources: ResourceOptions, requested: int) -> None:
        """`requested`: packs for which nodes are asked for where those that are there do not hold as many."""
        self.resources, self._requested = resources, requested
        self._limit = resources.max_packs if resources.max_packs != "auto" else math.inf
        self._groups: list[PlacementGroup] = []
        self._looked = -math.inf
        self._packs = 0
        self.most = 0
        """Packs that the cluster held at once at most."""
        self.short_since: float | None = None
        """Since when the cluster holds fewer packs than the searches could use; `time.monotonic()`."""

    def packs(self, begun: int, left: int) -> int:
        """Return how many packs may run at once, 1 at least; look at the nodes again if it is time.

        `begun`: packs that run or wait for an actor; `left`: packs that are still to begin.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            # without any node one pack waits: the packs' own request for a node, and what is said then
            self._packs = int(max(1, min(concurrent_packs(self.resources), self._limit)))
            self.most = max(self.most, self._packs)
            missing = max(0, min(self._requested, begun + left) - self._packs)
            self.short_since = (self.short_since or now) if missing else None
            self._request(missing, room_is_full=begun >= self._packs)
        return self._packs

    def _request(self, missing: int, *, room_is_full: bool) -> None:
        """Let as many placement groups wait as there are packs without a node.

        One that a node holds is in a pack's way. All are then taken back until the packs have asked for their own: the
        next in the queue would take the room again.
        """
        extra = self._groups if _placed(self._groups) else self._groups[missing:]
        self._groups = [group for group in self._groups if group not in extra]
        for group in extra:
            remove_placement_group(group)
        if room_is_full and not extra:
            self._groups += [_ask_for(self.resources) for _ in range(missing - len(self._groups))]

    def close(self) -> None:
        """Ask for nothing any more."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []
