"""Ledger and searcher, without Ray: what is asked, what is told, and what a dead driver or pack leaves behind."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import toy
from optuna.trial import TrialState
from ray.tune.search import Searcher

import search_spaces
from data_prep.errors import UserError
from search_spaces import Space
from study.search.ledger import Ledger, open_ledger, read_ledger
from study.search.pack_queue import PackSearcher, derive_seed

IDENTITY = {"benchmark": "toy", "clip": "toy", "fingerprint": "abc", "select": "pseudo-unseen", "folds": 3}


def ledger(folder: Path, **options: Any) -> Ledger:
    return open_ledger(folder, **{"space": toy.SPACE, "identity": IDENTITY, **options})


def searcher(ledger: Ledger, **options: Any) -> PackSearcher:
    return PackSearcher(ledger, toy.SPACE, **{"configs": 24, "pack": 4, "sampler": "random", "seed": 7, **options})


def results(pack: Any) -> dict[str, Any]:
    """What the actor returns for a pack; lanes with x > 0.6 were pruned at epoch 2."""
    lanes = []
    for lane in pack["lanes"]:
        pruned = lane["params"]["x"] > 0.6
        result = toy.lane_result(lane["params"], lane["seed"], epoch=2 if pruned else toy.EPOCHS)
        if pruned and result.state == "complete":
            result.state = "pruned"
        lanes.append({"number": lane["number"], **asdict(result)})
    return {"lanes": lanes, "done": True}


def run(search: PackSearcher, packs: int = 1000) -> list[Any]:
    """Ask and tell pack after pack, as one worker does."""
    asked = []
    for i in range(packs):
        pack = search.suggest(f"pack{i}")
        if pack == Searcher.FINISHED:
            break
        asked.append(pack)
        search.on_trial_complete(f"pack{i}", results(pack))
    return asked


def params(asked: list[Any]) -> list[dict[str, Any]]:
    return [lane["params"] for pack in asked for lane in pack["lanes"]]


# --- packs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
@pytest.mark.parametrize("objective", ["h", "seen,unseen"])
def test_every_pack_shares_static_knobs_and_is_full(tmp_path: Path, sampler: str, objective: Any) -> None:
    with ledger(tmp_path, objective=objective) as book:
        search = searcher(book, sampler=sampler, configs=42)
        asked = run(search)
        assert [len(pack["lanes"]) for pack in asked] == [4] * 10 + [2]
        for pack in asked:
            assert len({json.dumps(toy.SPACE.static(lane["params"])) for lane in pack["lanes"]}) == 1
            for lane in pack["lanes"]:
                assert ("width" in lane["params"]) == (lane["params"]["layers"] != 0)  # conditional knob
        assert len({json.dumps(toy.SPACE.static(p)) for p in params(asked)}) > 3
        assert len({json.dumps(p) for p in params(asked)}) >= 40  # NSGA-II's crossover may make a twin
        assert asked[0]["lanes"][0]["params"] == {"layers": 1, "width": 8, "lr": 0.01, "x": 0.5}  # the defaults
        assert search.counts.finished == 42 and search.counts.empty_lanes == 2
        assert [c.index for c in book.finished()] == list(range(42))


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_same_seed_same_configurations(tmp_path: Path, sampler: str) -> None:
    def asked(name: str, seed: int) -> list[Any]:
        with ledger(tmp_path / name) as book:
            return run(searcher(book, sampler=sampler, seed=seed, configs=40))

    assert asked("a", 3) == asked("b", 3)
    assert params(asked("c", 3))[1:] != params(asked("d", 4))[1:]


def test_seeds_are_what_they_always_were() -> None:
    assert [derive_seed(0, i, "train") for i in (0, 1)] == [3649673588, 1701870698]


def test_waits_for_running_packs_before_it_says_finished(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=6)
        first, second = search.suggest("a"), search.suggest("b")
        assert isinstance(first, dict) and isinstance(second, dict)
        assert search.suggest("c") is None and search.running == 6
        search.on_trial_complete("a", results(first))
        search.on_trial_complete("b", results(second))
        assert search.suggest("c") == Searcher.FINISHED


SPACES = [space for name in search_spaces.names() if isinstance(space := search_spaces.load(name), Space)]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_shipped_space_can_be_asked(tmp_path: Path, space: Space) -> None:
    with ledger(tmp_path, space=space) as book:
        search = PackSearcher(book, space, configs=12, pack=3, seed=1)
        for i in range(4):
            pack = search.suggest(str(i))
            assert isinstance(pack, dict)
            for lane in pack["lanes"]:
                space.config(**lane["params"])
        assert len(book.trials()) == 12


# --- telling ------------------------------------------------------------------------------------------------------


def test_pruned_is_pruned_with_its_curve_and_failed_has_its_reason(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=4)
        pack: Any = search.suggest("a")
        told = results(pack)
        told["lanes"][0] |= asdict(toy.lane_result({"x": 0.5, "lr": 0.1}, 0))
        told["lanes"][3] |= asdict(toy.lane_result({"x": 0.4, "lr": 0.1}, 0))
        told["lanes"][1] |= {"curve": [(1, 0.25), (2, 0.5)], "score": 0.5, "state": "pruned", "error": ""}
        told["lanes"][2] |= asdict(toy.lane_result({"x": 0.99}, 0))
        search.on_trial_complete("a", told)
        complete, pruned, failed, _ = book.trials()
        assert complete.state == TrialState.COMPLETE and complete.value == told["lanes"][0]["score"]
        assert complete.intermediate_values == dict(told["lanes"][0]["curve"])
        assert pruned.state == TrialState.PRUNED and pruned.intermediate_values == {1: 0.25, 2: 0.5}
        assert failed.state == TrialState.FAIL
        assert failed.user_attrs["reason"] == "loss was not finite by epoch 1"
        assert search.counts.complete == 2 and search.counts.pruned == search.counts.failed == 1
        done = book.finished()[1]
        assert (done.state, done.score, done.curve, done.config_id) == (
            "pruned",
            0.5,
            [(1, 0.25), (2, 0.5)],
            "toy-0001",
        )


def test_two_objectives_keep_the_curve_and_know_the_pareto_front(tmp_path: Path) -> None:
    with ledger(tmp_path, objective="seen,unseen") as book:
        search = searcher(book, configs=4)
        pack: Any = search.suggest("a")
        told = results(pack)
        for lane, (seen, unseen) in zip(told["lanes"], [(0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.2, 0.2)], strict=True):
            lane |= {"state": "complete", "score": seen, "curve": [(1, 0.1), (4, seen)], "error": ""}
            lane["metrics"] = {"val_seen": seen, "val_unseen": unseen}
        told["lanes"][3]["state"] = "pruned"
        search.on_trial_complete("a", told)
        assert [t.values for t in book.trials()] == [[0.5, 0.5], [0.4, 0.4], [0.9, 0.1], None]
        assert book.trials()[3].state == TrialState.PRUNED and book.finished()[3].curve == [(1, 0.1), (4, 0.2)]
        assert [(c.index, c.pareto) for c in book.best(3)] == [(2, True), (0, True), (1, False)]


def test_telling_is_idempotent(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=4)
        pack: Any = search.suggest("a")
        told = results(pack)
        search.on_trial_result("a", told)
        before = [t.value for t in book.trials()]
        changed = {"lanes": [{**lane, "score": 0.123} for lane in told["lanes"]]}
        search.on_trial_complete("a", changed)
        search.on_trial_complete("a", changed)
        lane = search.ledger.recover()
        assert [t.value for t in book.trials()] == before and not lane and search.counts.finished == 4


def test_an_objective_that_is_not_finite_fails(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=4)
        told = results(search.suggest("a"))
        told["lanes"][0] |= {"state": "complete", "score": float("nan")}
        search.on_trial_complete("a", told)
        assert book.trials()[0].state == TrialState.FAIL
        assert book.finished()[0].reason == "objective was not finite: [nan]"


# --- refilling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_freed_room_is_refilled_with_configurations_that_share_the_static_knobs(tmp_path: Path, sampler: str) -> None:
    def study(folder: Path) -> list[Any]:
        given: list[Any] = []
        with ledger(folder) as book:
            search = searcher(book, sampler=sampler, configs=26)
            search.give = lambda pack, lanes: given.append((pack, lanes))
            asked = []
            for i in range(100):
                pack: Any = search.suggest(str(i))
                if pack == Searcher.FINISHED:
                    break
                lanes = list(pack["lanes"])
                asked.append([lane["index"] for lane in lanes])
                while lanes:  # two lanes end at a time
                    search.on_trial_result(str(i), {"lanes": results({"lanes": lanes[:2]})["lanes"]})
                    assert given[-1][0] == str(i)
                    lanes = lanes[2:] + given[-1][1]
                    asked[-1] += [lane["index"] for lane in given[-1][1]]
                    assert len({json.dumps(toy.SPACE.static(lane["params"])) for lane in lanes}) <= 1
                search.on_trial_complete(str(i), {"lanes": []})
            assert [c.index for c in book.finished()] == list(range(26)) and search.counts.deaths == 0
            assert [len(pack) for pack in asked] == [8, 8, 8, 2]  # as many again in the room of the first four
            assert sorted(i for pack in asked for i in pack) == list(range(26))
            return [given, [c.params for c in book.finished()]]

    assert study(tmp_path / "a") == study(tmp_path / "b")


def test_refilled_lanes_of_a_dead_pack_are_trained_again(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=6)
        given: list[Any] = []
        search.give = lambda pack, lanes: given.extend(lanes)
        pack: Any = search.suggest("a")
        search.on_trial_result("a", {"lanes": results(pack)["lanes"][:2]})
        assert [lane["index"] for lane in given] == [4, 5]
        search.on_trial_complete("a", None, error=True)
        again: Any = search.suggest("b")
        assert [lane["index"] for lane in again["lanes"]] == [2, 3, 4, 5]
        search.on_trial_complete("b", results(again))
        assert [c.index for c in book.finished()] == list(range(6))


# --- death --------------------------------------------------------------------------------------------------------


def test_lanes_of_a_dead_pack_are_trained_again_with_their_seeds_then_given_up(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=4)
        first: Any = search.suggest("a")
        search.on_trial_complete("a", None, error=True)
        second: Any = search.suggest("b")
        assert [(x["params"], x["seed"]) for x in first["lanes"]] == [(x["params"], x["seed"]) for x in second["lanes"]]
        assert [t.user_attrs["retry_of"] for t in book.trials()[4:]] == [0, 1, 2, 3]
        search.on_trial_complete("b", {"lanes": [], "crash": "RuntimeError: out of luck"})
        assert isinstance(search.suggest("c"), dict)
        search.on_trial_complete("c", None, error=True)
        assert search.suggest("d") == Searcher.FINISHED
        assert search.counts.failed == 4 and search.counts.deaths == 3
        assert book.trials()[4].user_attrs["reason"] == "its pack died: RuntimeError: out of luck"
        assert [(c.index, c.state) for c in book.finished()] == [(i, "failed") for i in range(4)]


def test_a_pack_that_moves_is_asked_for_again_and_has_not_died(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=8)
        first, second = search.suggest("a"), search.suggest("b")
        assert isinstance(first, dict) and isinstance(second, dict)
        for name in ("b", "a"):
            search.on_trial_result(name, {"lanes": [], "moved": True})
            search.on_trial_complete(name, None, error=True)  # its actor is given up
        assert search.counts.deaths == search.counts.finished == 0
        again = [[(x["index"], x["seed"]) for x in pack["lanes"]] for pack in run(search)]  # each group as it was
        assert again == [[(x["index"], x["seed"]) for x in pack["lanes"]] for pack in (second, first)]
        void = [t for t in book.trials() if "requeued" in t.user_attrs]
        assert {t.user_attrs["reason"] for t in void} == {"its node was drained"} and len(void) == 8
        assert not any(t.user_attrs.get("deaths") for t in book.trials())


def test_lost_lanes_are_packed_with_their_like(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=24)
        packs: list[Any] = [search.suggest(str(i)) for i in range(3)]
        for i, pack in enumerate(packs):  # only the first two lanes of every pack report
            search.on_trial_complete(str(i), {"lanes": results(pack)["lanes"][:2]})
        asked = run(search)
        for pack in asked:
            assert len({json.dumps(toy.SPACE.static(lane["params"])) for lane in pack["lanes"]}) == 1
        assert sorted(c.index for c in book.finished()) == list(range(24))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(tmp_path: Path, sampler: str) -> None:
    def outcome(book: Ledger) -> list[Any]:
        return [replace(c, number=0) for c in book.finished()]

    with ledger(tmp_path / "undisturbed") as book:
        run(searcher(book, sampler=sampler))
        expected = outcome(book)
    for i in range(6):
        with ledger(tmp_path / "disturbed", resume=i > 0) as book:
            search = searcher(book, sampler=sampler)
            run(search, packs=1)
            search.suggest("running when the driver dies")
    with ledger(tmp_path / "disturbed", resume=True) as book:
        run(searcher(book, sampler=sampler))
        assert outcome(book) == expected
        assert {t.user_attrs["reason"] for t in book.trials() if "requeued" in t.user_attrs} == {"its driver died"}


def test_every_moment_of_death_is_survived(tmp_path: Path) -> None:
    """Cut the journal after every single line, torn lines too: each time the study ends with all configurations."""
    with ledger(tmp_path / "whole") as book:
        search = searcher(book, configs=4, pack=2)
        first: Any = search.suggest("a")
        search.on_trial_complete("a", None, error=True)
        search.on_trial_complete("b", results(search.suggest("b")))
        run(search)
        expected = [(c.index, c.params, c.seed, c.score) for c in book.finished()]
    lines = (tmp_path / "whole/study.journal").read_bytes().splitlines(keepends=True)
    assert len(first["lanes"]) == 2 and len(lines) > 40
    for cut in range(len(lines) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        torn = lines[cut][:10] if cut < len(lines) else b""
        (folder / "study.journal").write_bytes(b"".join(lines[:cut]) + torn)
        (folder / "study.journal.lock").symlink_to("stale")
        with ledger(folder, resume=True) as book:
            run(searcher(book, configs=4, pack=2))
            assert [(c.index, c.params, c.seed, c.score) for c in book.finished()] == expected, cut


def test_interrupted_lanes_are_trained_on_resume(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book, configs=8)
        search.suggest("a")
        search.interrupt("the study was interrupted")
        assert {t.state for t in book.trials()} == {TrialState.FAIL} and not book.finished()
    with ledger(tmp_path, resume=True) as book:
        run(searcher(book, configs=8))
        assert len(book.finished()) == 8 and len(book.trials()) == 12


def test_more_configurations_can_be_asked_of_a_finished_study(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        run(searcher(book, configs=6))
    with ledger(tmp_path, resume=True) as book:
        search = searcher(book, configs=10)
        assert search.counts.finished == 6
        assert len(params(run(search))) == 4 and len(book.finished()) == 10


# --- the ledger's door --------------------------------------------------------------------------------------------


def test_one_clear_line_for_another_studys_ledger(tmp_path: Path) -> None:
    ledger(tmp_path).close()
    with pytest.raises(UserError, match="already holds a study"):
        ledger(tmp_path)
    with pytest.raises(UserError, match="select was 'pseudo-unseen', now 'oracle'"):
        ledger(tmp_path, resume=True, identity={**IDENTITY, "select": "oracle"})
    with pytest.raises(UserError, match="objective was 'h', now 'seen,unseen'"):
        ledger(tmp_path, resume=True, objective="seen,unseen")
    narrower = replace(toy.SPACE, knobs=toy.SPACE.knobs[:-1])
    with pytest.raises(UserError, match="needs the knobs of space toy as they were"):
        ledger(tmp_path, resume=True, space=narrower)
    with ledger(tmp_path, resume=True), pytest.raises(UserError, match="another process holds"):
        ledger(tmp_path, resume=True)


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="--storage must be a writable folder"):
        ledger(tmp_path / "file" / "study")


def test_searchers_can_be_pickled_as_tune_does(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search = searcher(book)
        pack: Any = search.suggest("a")
        copy = pickle.loads(pickle.dumps(search))
        assert copy.running == 4
        copy.on_trial_complete("a", results(pack))
        search.on_trial_complete("a", results(pack))  # told before, by the copy
        assert len(read_ledger(tmp_path).finished()) == 4
