"""Ledger and queue: what is drawn, what is written, and what a dead driver or pack leaves behind."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from optuna.trial import TrialState

import search_spaces
from data_prep.errors import UserError
from search_spaces import Space
from study.search.ledger import Ledger, open_ledger, read_ledger
from study.search.pack_queue import PackQueue, derive_seed
from study.search.records import Lane, PackReport
from study.training.scoring import LaneResult


def ledger(folder: Path, **options: Any) -> Ledger:
    return open_ledger(folder, **{"space": toy.SPACE, "identity": toy.IDENTITY, **options})


def queue_of(ledger: Ledger, **options: Any) -> PackQueue:
    return PackQueue(ledger, toy.SPACE, **{"configs": 24, "pack": 4, "sampler": "random", "seed": 7, **options})


def results(lanes: Sequence[Lane]) -> list[LaneResult]:
    """What training makes of lanes; those with x > 0.6 were pruned at epoch 2."""
    made = []
    for lane in lanes:
        pruned = float(lane.params["x"]) > 0.6
        result = toy.lane_result(lane.params, lane.seed, epoch=2 if pruned else toy.EPOCHS)
        if pruned and result.state == "complete":
            result.state = "pruned"
        made.append(result)
    return made


def report(lanes: Sequence[Lane], outcomes: Sequence[LaneResult] | None = None) -> PackReport:
    """What a pack says of these lanes at its end."""
    outcomes = results(lanes) if outcomes is None else outcomes
    return PackReport(ended={lane.number: outcome for lane, outcome in zip(lanes, outcomes, strict=True)})


def run(queue: PackQueue, packs: int = 1000) -> list[list[Lane]]:
    """Train pack after pack, as one worker does."""
    trained = []
    for i in range(packs):
        lanes = queue.next_pack(f"pack{i}")
        if not lanes:
            assert queue.over
            break
        trained.append(lanes)
        queue.end(f"pack{i}", report(lanes))
    return trained


def params(packs: list[list[Lane]]) -> list[dict[str, Any]]:
    return [lane.params for lanes in packs for lane in lanes]


# --- packs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
@pytest.mark.parametrize("objective", ["h", "seen,unseen"])
def test_every_pack_shares_static_knobs_and_is_full(tmp_path: Path, sampler: str, objective: Any) -> None:
    with ledger(tmp_path, identity=replace(toy.IDENTITY, objective=objective)) as book:
        queue = queue_of(book, sampler=sampler, configs=42)
        packs = run(queue)
        assert [len(lanes) for lanes in packs] == [4] * 10 + [2]
        for lanes in packs:
            assert len({json.dumps(toy.SPACE.static(lane.params)) for lane in lanes}) == 1
            for lane in lanes:
                assert ("width" in lane.params) == (lane.params["layers"] != 0)  # conditional knob
        assert len({json.dumps(toy.SPACE.static(p)) for p in params(packs)}) > 3
        assert len({json.dumps(p) for p in params(packs)}) >= 40  # NSGA-II's crossover may make a twin
        assert packs[0][0].params == {"layers": 1, "width": 8, "lr": 0.01, "x": 0.5}  # the defaults
        assert queue.counts.finished == 42 and queue.counts.empty_lanes == 2
        assert [c.index for c in book.finished()] == list(range(42))


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_same_seed_same_configurations(tmp_path: Path, sampler: str) -> None:
    def drawn(name: str, seed: int) -> list[list[Lane]]:
        with ledger(tmp_path / name) as book:
            return run(queue_of(book, sampler=sampler, seed=seed, configs=40))

    assert drawn("a", 3) == drawn("b", 3)
    assert params(drawn("c", 3))[1:] != params(drawn("d", 4))[1:]


def test_seeds_are_what_they_always_were() -> None:
    assert [derive_seed(0, i, "train") for i in (0, 1)] == [3649673588, 1701870698]


def test_the_queue_is_over_when_running_packs_have_ended(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=6)
        first, second = queue.next_pack("a"), queue.next_pack("b")
        assert (len(first), len(second), queue.next_pack("c"), queue.running) == (4, 2, [], 6)
        queue.end("a", report(first))
        assert not queue.over
        queue.end("b", report(second))
        assert queue.next_pack("c") == [] and queue.over


SPACES = [space for name in search_spaces.names() if isinstance(space := search_spaces.load(name), Space)]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_shipped_space_can_be_drawn_from(tmp_path: Path, space: Space) -> None:
    with ledger(tmp_path, space=space) as book:
        queue = PackQueue(book, space, configs=12, pack=3, seed=1)
        for i in range(4):
            for lane in queue.next_pack(str(i)):
                space.config(**lane.params)
        assert len(book.trials()) == 12


# --- outcomes -----------------------------------------------------------------------------------------------------


def test_pruned_is_pruned_with_its_curve_and_failed_has_its_reason(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=4)
        outcomes = [
            toy.lane_result({"x": 0.5, "lr": 0.1}, 0),
            LaneResult(state="pruned", score=0.5, curve=[(1, 0.25), (2, 0.5)], epochs=2),
            toy.lane_result({"x": 0.99}, 0),
            toy.lane_result({"x": 0.4, "lr": 0.1}, 0),
        ]
        queue.end("a", report(queue.next_pack("a"), outcomes))
        complete, pruned, failed, _ = book.trials()
        assert complete.state == TrialState.COMPLETE and complete.value == outcomes[0].score
        assert complete.intermediate_values == dict(outcomes[0].curve)
        assert pruned.state == TrialState.PRUNED and pruned.intermediate_values == {1: 0.25, 2: 0.5}
        assert failed.state == TrialState.FAIL
        assert failed.user_attrs["reason"] == "loss was not finite by epoch 1"
        assert queue.counts.complete == 2 and queue.counts.pruned == queue.counts.failed == 1
        done = book.finished()[1]
        assert (done.state, done.score, done.curve, done.config_id) == (
            "pruned",
            0.5,
            [(1, 0.25), (2, 0.5)],
            "toy-0001",
        )


def test_two_objectives_keep_the_curve_and_know_the_pareto_front(tmp_path: Path) -> None:
    with ledger(tmp_path, identity=replace(toy.IDENTITY, objective="seen,unseen")) as book:
        queue = queue_of(book, configs=4)
        outcomes = [
            LaneResult(score=seen, curve=[(1, 0.1), (4, seen)], metrics={"val_seen": seen, "val_unseen": unseen})
            for seen, unseen in [(0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.2, 0.2)]
        ]
        outcomes[3].state = "pruned"
        queue.end("a", report(queue.next_pack("a"), outcomes))
        assert [t.values for t in book.trials()] == [[0.5, 0.5], [0.4, 0.4], [0.9, 0.1], None]
        assert book.trials()[3].state == TrialState.PRUNED and book.finished()[3].curve == [(1, 0.1), (4, 0.2)]
        assert [(c.index, c.pareto) for c in book.best(3)] == [(2, True), (0, True), (1, False)]


def test_an_outcome_that_was_written_stays(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=4)
        lanes = queue.next_pack("a")
        queue.report("a", report(lanes))
        before = [t.value for t in book.trials()]
        other = report(lanes, [replace(result, score=0.123) for result in results(lanes)])
        queue.end("a", other)
        queue.end("a", other)
        assert [t.value for t in book.trials()] == before and not book.recover() and queue.counts.finished == 4


def test_an_objective_that_is_not_finite_fails(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=4)
        lanes = queue.next_pack("a")
        first, *others = results(lanes)
        queue.end("a", report(lanes, [replace(first, state="complete", score=float("nan")), *others]))
        assert book.trials()[0].state == TrialState.FAIL
        assert book.finished()[0].reason == "objective was not finite: [nan]"


# --- refilling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_freed_room_is_refilled_with_configurations_that_share_the_static_knobs(tmp_path: Path, sampler: str) -> None:
    def study(folder: Path) -> list[Any]:
        with ledger(folder) as book:
            queue = queue_of(book, sampler=sampler, configs=26, refill=True)
            packs = []
            while lanes := queue.next_pack("pack"):
                packs.append([lane.index for lane in lanes])
                while lanes:  # two lanes end at a time
                    new = queue.report("pack", report(lanes[:2]))
                    lanes = lanes[2:] + new
                    packs[-1] += [lane.index for lane in new]
                    assert len({json.dumps(toy.SPACE.static(lane.params)) for lane in lanes}) <= 1
                queue.end("pack", PackReport())
            assert [c.index for c in book.finished()] == list(range(26)) and queue.counts.deaths == 0
            assert [len(pack) for pack in packs] == [8, 8, 8, 2]  # as many again in the room of the first four
            assert sorted(i for pack in packs for i in pack) == list(range(26))
            return [packs, [c.params for c in book.finished()]]

    assert study(tmp_path / "a") == study(tmp_path / "b")


def test_refilled_lanes_of_a_dead_pack_are_trained_again(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=6, refill=True)
        new = queue.report("a", report(queue.next_pack("a")[:2]))
        assert [lane.index for lane in new] == [4, 5]
        queue.end("a", None)
        again = queue.next_pack("b")
        assert [lane.index for lane in again] == [2, 3, 4, 5]
        queue.end("b", report(again))
        assert [c.index for c in book.finished()] == list(range(6))


# --- death --------------------------------------------------------------------------------------------------------


def test_lanes_of_a_dead_pack_are_trained_again_with_their_seeds_then_given_up(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=4)
        first = queue.next_pack("a")
        queue.end("a", None)
        second = queue.next_pack("b")
        assert [(x.params, x.seed) for x in first] == [(x.params, x.seed) for x in second]
        assert [t.user_attrs["retry_of"] for t in book.trials()[4:]] == [0, 1, 2, 3]
        queue.end("b", PackReport(crash="RuntimeError: out of luck"))
        assert queue.next_pack("c")
        queue.end("c", None)
        assert not queue.next_pack("d") and queue.over
        assert queue.counts.failed == 4 and queue.counts.deaths == 3
        assert book.trials()[4].user_attrs["reason"] == "its pack died: RuntimeError: out of luck"
        assert [(c.index, c.state) for c in book.finished()] == [(i, "failed") for i in range(4)]


def test_a_pack_that_moves_is_trained_elsewhere_and_has_not_died(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=8)
        first, second = queue.next_pack("a"), queue.next_pack("b")
        for name in ("b", "a"):
            assert queue.report(name, PackReport(moved=True)) == []
            queue.end(name, None)  # its actor is given up
        assert queue.counts.deaths == queue.counts.finished == 0
        again = [[(x.index, x.seed) for x in lanes] for lanes in run(queue)]  # each group as it was
        assert again == [[(x.index, x.seed) for x in lanes] for lanes in (second, first)]
        void = [t for t in book.trials() if "requeued" in t.user_attrs]
        assert {t.user_attrs["reason"] for t in void} == {"its node was drained"} and len(void) == 8
        assert not any(t.user_attrs.get("deaths") for t in book.trials())


def test_lost_lanes_are_packed_with_their_like(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=24)
        packs = [queue.next_pack(str(i)) for i in range(3)]
        for i, lanes in enumerate(packs):  # only the first two lanes of every pack report
            queue.end(str(i), report(lanes[:2]))
        for lanes in run(queue):
            assert len({json.dumps(toy.SPACE.static(lane.params)) for lane in lanes}) == 1
        assert sorted(c.index for c in book.finished()) == list(range(24))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(tmp_path: Path, sampler: str) -> None:
    def outcome(book: Ledger) -> list[Any]:
        return [replace(c, number=0) for c in book.finished()]

    with ledger(tmp_path / "undisturbed") as book:
        run(queue_of(book, sampler=sampler))
        expected = outcome(book)
    for i in range(6):
        with ledger(tmp_path / "disturbed", resume=i > 0) as book:
            queue = queue_of(book, sampler=sampler)
            run(queue, packs=1)
            queue.next_pack("running when the driver dies")
    with ledger(tmp_path / "disturbed", resume=True) as book:
        run(queue_of(book, sampler=sampler))
        assert outcome(book) == expected
        assert {t.user_attrs["reason"] for t in book.trials() if "requeued" in t.user_attrs} == {"its driver died"}


def test_every_moment_of_death_is_survived(tmp_path: Path) -> None:
    """Cut the journal after every single line, torn lines too: each time the study ends with all configurations."""
    with ledger(tmp_path / "whole") as book:
        queue = queue_of(book, configs=4, pack=2)
        assert len(queue.next_pack("a")) == 2
        queue.end("a", None)
        queue.end("b", report(queue.next_pack("b")))
        run(queue)
        expected = [(c.index, c.params, c.seed, c.score) for c in book.finished()]
    lines = (tmp_path / "whole/study.journal").read_bytes().splitlines(keepends=True)
    assert len(lines) > 40
    for cut in range(len(lines) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        torn = lines[cut][:10] if cut < len(lines) else b""
        (folder / "study.journal").write_bytes(b"".join(lines[:cut]) + torn)
        (folder / "study.journal.lock").symlink_to("stale")
        with ledger(folder, resume=True) as book:
            run(queue_of(book, configs=4, pack=2))
            assert [(c.index, c.params, c.seed, c.score) for c in book.finished()] == expected, cut


def test_interrupted_lanes_are_trained_on_resume(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=8)
        queue.next_pack("a")
        queue.interrupt("the study was interrupted")
        assert {t.state for t in book.trials()} == {TrialState.FAIL} and not book.finished()
    with ledger(tmp_path, resume=True) as book:
        run(queue_of(book, configs=8))
        assert len(book.finished()) == 8 and len(book.trials()) == 12


def test_lanes_are_voided_also_where_the_interrupt_broke_a_write_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with ledger(tmp_path) as book:
        queue = queue_of(book, configs=8)
        queue.next_pack("a")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.fsync", interrupted)
            queue.next_pack("b")
        queue.interrupt("the study was interrupted")
        assert {t.state for t in read_ledger(tmp_path).trials()} == {TrialState.FAIL}
    with ledger(tmp_path, resume=True) as book:
        run(queue_of(book, configs=8))
        assert len(book.finished()) == 8


def test_a_finished_study_goes_on_to_more_configurations(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        run(queue_of(book, configs=6))
    with ledger(tmp_path, resume=True) as book:
        queue = queue_of(book, configs=10)
        assert queue.counts.finished == 6
        assert len(params(run(queue))) == 4 and len(book.finished()) == 10


# --- the ledger's door --------------------------------------------------------------------------------------------


def test_one_clear_line_for_another_studys_ledger(tmp_path: Path) -> None:
    ledger(tmp_path).close()
    with pytest.raises(UserError, match="already holds a study"):
        ledger(tmp_path)
    with pytest.raises(UserError, match="select was 'pseudo-unseen', now 'oracle'"):
        ledger(tmp_path, resume=True, identity=replace(toy.IDENTITY, select="oracle"))
    with pytest.raises(UserError, match="objective was 'h', now 'seen,unseen'"):
        ledger(tmp_path, resume=True, identity=replace(toy.IDENTITY, objective="seen,unseen"))
    narrower = replace(toy.SPACE, knobs=toy.SPACE.knobs[:-1])
    with pytest.raises(UserError, match="needs the knobs of space toy as they were"):
        ledger(tmp_path, resume=True, space=narrower)
    with ledger(tmp_path, resume=True), pytest.raises(UserError, match="another process holds"):
        ledger(tmp_path, resume=True)


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="storage must be a writable folder"):
        ledger(tmp_path / "file" / "study")


def test_queues_can_be_pickled_as_tune_does(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        queue = queue_of(book)
        lanes = queue.next_pack("a")
        copy = pickle.loads(pickle.dumps(queue))
        assert copy.running == 4
        copy.end("a", report(lanes))
        queue.end("a", report(lanes))  # written before, by the copy
        assert len(read_ledger(tmp_path).finished()) == 4


def test_enqueued_knobs_come_after_the_defaults_each_at_the_begin_of_a_pack(tmp_path: Path) -> None:
    tried = [{"layers": 0, "lr": 0.5, "x": 0.25}, {"layers": 2, "width": 16, "lr": 0.1, "x": 0.5}]
    with ledger(tmp_path) as book:
        plain = run(queue_of(book, configs=16))
    with ledger(tmp_path / "enqueued") as book:
        packs = run(queue_of(book, configs=16, enqueued=tried), packs=2)
    with ledger(tmp_path / "enqueued", resume=True) as book:  # a driver that died between
        packs += run(queue_of(book, configs=16, enqueued=tried))
    assert [lane.params for lane in packs[0]] == [lane.params for lane in plain[0]]
    for params, pack in zip(tried, packs[1:3], strict=True):
        assert pack[0].params == params
        assert {lane.params["layers"] for lane in pack} == {params["layers"]}
    assert [lane.params for lane in packs[3]] == [lane.params for lane in plain[3]]


def test_a_search_whose_time_is_over_begins_nothing_more_and_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("study.search.pack_queue.time.monotonic", lambda: now[0])
    with ledger(tmp_path) as book:
        queue = queue_of(book, limit_s=10.0)
        first, second = queue.next_pack("first"), queue.next_pack("second")
        now[0] += 60  # actors start
        outcomes = [replace(result, train_seconds=1.0) for result in results(first)]
        queue.end("first", report(first, outcomes))  # four seconds of training
        now[0] += 6
        third = queue.next_pack("third")
        assert len(first) == len(second) == len(third) == 4
        now[0] += 1
        assert queue.next_pack("fourth") == [] and queue.left == 0 and not queue.over
        queue.end("third", report(third))
        queue.end("second", report(second))
        assert queue.over and queue.counts.finished == 12
    with ledger(tmp_path, resume=True) as book:
        assert len(run(queue_of(book, configs=16))) == 1  # without a limit it goes on to its end


def test_what_was_decided_when_a_search_began_stands_when_it_is_resumed(tmp_path: Path) -> None:
    with open_ledger(tmp_path, space=toy.SPACE, identity=toy.IDENTITY) as book:
        assert book.decided("precision", lambda: "bfloat16") == "bfloat16"
    with open_ledger(tmp_path, space=toy.SPACE, identity=toy.IDENTITY, resume=True) as book:
        assert book.decided("precision", lambda: "float32") == "bfloat16"
