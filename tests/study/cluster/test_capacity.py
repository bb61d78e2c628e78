"""How many packs run at once while nodes come and go, and what an autoscaler is asked for."""

import io
from typing import Any

import pytest
from rich.console import Console

from study.cluster import capacity
from study.cluster.capacity import Room
from study.options import ResourceOptions


class Nodes:
    """A cluster that holds as many packs as it is told, and no placement group unless it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hold, self.waiting, self.placed, self.now = 1, list[object](), list[object](), 0.0
        monkeypatch.setattr(capacity, "concurrent_packs", lambda resources: self.hold)
        monkeypatch.setattr(capacity, "_ask_for", self.ask)
        monkeypatch.setattr(capacity, "_placed", lambda groups: [g for g in groups if g in self.placed])
        monkeypatch.setattr(capacity, "remove_placement_group", self.waiting.remove)
        monkeypatch.setattr(capacity.time, "monotonic", lambda: self.now)

    def ask(self, resources: ResourceOptions, packs: int = 1) -> object:
        self.waiting.append(object())
        return self.waiting[-1]

    def later(self) -> None:
        self.now += capacity.LOOK_EVERY_S


def test_packs_follow_the_nodes_and_missing_ones_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch)
    room = Room(ResourceOptions(), requested=4)
    assert room.packs(begun=0, left=9) == 1 and not nodes.waiting  # the first pack takes the room that is there
    assert room.short_since == 0.0
    nodes.later()
    assert room.packs(begun=1, left=8) == 1 and len(nodes.waiting) == 3
    nodes.hold = 2
    assert room.packs(begun=1, left=8) == 1  # it does not look all the time
    nodes.later()
    nodes.placed = nodes.waiting[:1]  # on the node that has joined, where a pack could be
    assert room.packs(begun=1, left=8) == 2 and not nodes.waiting
    nodes.later()
    assert room.packs(begun=2, left=7) == 2 and len(nodes.waiting) == 2
    nodes.later()
    assert room.packs(begun=2, left=1) == 2 and len(nodes.waiting) == 1  # at the end nodes may go
    nodes.hold = 0
    nodes.later()
    assert room.packs(begun=2, left=1) == 1 and room.most == 2  # a pack waits for the next node
    room.close()
    assert not nodes.waiting


def test_a_fixed_cluster_is_asked_for_nothing_and_a_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch)
    nodes.hold = 2
    room = Room(ResourceOptions(), requested=2)
    assert [room.packs(begun, 9) for begun in (0, 1, 2)] == [2, 2, 2] and not nodes.waiting
    assert room.short_since is None
    nodes.hold = 8
    assert Room(ResourceOptions(max_packs=3), requested=2).packs(0, 9) == 3


def capacity_of(
    now: int, *, own: bool, can_grow: bool | None, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[int]:
    monkeypatch.setattr(capacity, "concurrent_packs", lambda resources: now)
    monkeypatch.setattr(capacity, "own_ray", lambda: own)
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"memory": 1e9})
    monkeypatch.setattr(capacity, "_can_grow", lambda resources, packs: can_grow)
    monkeypatch.setattr(capacity, "_wait_for_room", lambda resources, console: None)
    found = capacity.find_capacity(ResourceOptions(**options), options.get("max_packs", 8), console=None)  # type: ignore[arg-type]
    return [found.now, found.most]


def test_the_plan_counts_nodes_that_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    assert capacity_of(2, own=True, can_grow=True, monkeypatch=monkeypatch) == [2, 2]
    assert capacity_of(2, own=False, can_grow=False, monkeypatch=monkeypatch) == [2, 2]
    assert capacity_of(2, own=False, can_grow=True, monkeypatch=monkeypatch) == [2, 8]
    assert capacity_of(2, own=False, can_grow=None, monkeypatch=monkeypatch) == [2, 2]
    assert capacity_of(2, own=False, can_grow=None, monkeypatch=monkeypatch, max_packs=3) == [2, 3]
    assert capacity_of(0, own=False, can_grow=False, monkeypatch=monkeypatch) == [1, 8]
    assert capacity_of(9, own=False, can_grow=True, monkeypatch=monkeypatch) == [9, 9]
    assert capacity_of(9, own=True, can_grow=False, monkeypatch=monkeypatch, max_packs=3) == [9, 3]
    assert capacity_of(2, own=False, can_grow=True, monkeypatch=monkeypatch, max_packs=3) == [2, 3]


def test_waiting_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = io.StringIO(), 0.0
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now)
    needs = capacity.needs(ResourceOptions(cpus_per_pack=4, gpus_per_pack=1, workers_per_pack=2))
    waiting = capacity.WaitingLine(Console(file=said, width=200), f"a node with {needs}")
    for now in (1.0, 6.0, 7.0, 20.0, 80.0):  # noqa: B007  # the clock
        waiting.say()
    assert said.getvalue().splitlines() == [
        f"waiting for a node with 4 CPUs and 1 GPU for each of 2 workers for {since}" for since in ("0:06", "1:20")
    ]


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 0.125),  # eight at most
        ({"packs": 6}, 0.3333),  # three for each of two GPUs
        ({"pack_bytes": 20 * 2**30}, 0.3333),  # 0.8 x 80 GiB hold three of them
        ({"pack_bytes": 100 * 2**30}, 1.0),  # actors halve what does not fit
        ({"cpus": 8}, 0.25),  # four processors feed each GPU
        ({"cpus": 8, "cpus_per_pack": 8.0}, 1.0),
    ],
)
def test_the_share_of_a_gpu_follows_memory_packs_and_processors(given: dict[str, Any], share: float) -> None:
    cluster = {"gpus": 2, "cpus": 64.0, "memory": 80 * 2**30, "pack_bytes": 2**30, "packs": 1000, "cpus_per_pack": 1.0}
    assert capacity.gpu_share(**cluster | given) == share  # type: ignore[arg-type]
