import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from models.sre_clip import SREConfig
from study.protocol.consensus import training_free_labels
from study.protocol.scores import mutual_information
from study.protocol.trial_data import TrialData, oracle_data, trainable_images, trial_data
from study.training.loop import Training, TrainingOptions, train_pack
from study.training.optimiser import StackedAdamW
from study.training.pack import Pack, pack_on_folds
from study.training.refit import refit_pack
from study.training.scoring import LaneResult

SMALL = SREConfig(
    heads=2,
    slots=4,
    attention_width=8,
    gcn_width=8,
    batch_size=16,
    lr=3e-3,
    rho=0.5,
    residual_scale=0.8,
    w_ent=4.0,
    w_div=8.0,
    w_bal=1.5,
)
KNOBS = [
    dict(),
    dict(lr=1e-3),
    dict(weight_decay=0.1),
    dict(w_ent=0.2, w_div=1.0),
    dict(relation_temperature=0.3, w_srs=1.0),
    dict(rho=0.3, residual_scale=2.0),
    dict(pseudo_label_threshold=0.9, target_temperature=2.0, unseen_prior=0.8),
]


def comparable(result: object) -> dict:
    return {k: v for k, v in asdict(result).items() if k != "train_seconds"}  # type: ignore[call-overload]


def close(a: dict, b: dict) -> None:
    assert (a["state"], a["epochs"], a["error"]) == (b["state"], b["epochs"], b["error"])
    assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-5)
    assert [s for _, s in a["curve"]] == pytest.approx([s for _, s in b["curve"]], abs=1e-5)


@pytest.mark.parametrize("at_once", [False, True])
def test_stacked_adamw_is_torch_adamw_in_every_lane(at_once: bool) -> None:
    g = torch.Generator().manual_seed(0)
    lr, decay = [1e-2, 1e-3], [0.1, 0.0]
    stacked = [torch.randn(2, 3, 4, generator=g), torch.randn(2, 5, generator=g)]
    lanes = [[t[k].clone().requires_grad_() for t in stacked] for k in (0, 1)]
    ours = StackedAdamW(stacked, lr, decay, at_once=at_once)
    theirs = [torch.optim.AdamW(lanes[k], lr=lr[k], weight_decay=decay[k], betas=(0.9, 0.99)) for k in (0, 1)]
    for _ in range(5):
        grads = [torch.randn(t.shape, generator=g) for t in stacked]
        ours.step(stacked, grads, ours.rates([[1.0, 1.0]])[0])
        for k in (0, 1):
            for p, grad in zip(lanes[k], grads, strict=True):
                p.grad = grad[k].clone()
            theirs[k].step()
    for k in (0, 1):
        for t, p in zip(stacked, lanes[k], strict=True):
            torch.testing.assert_close(t[k], p.detach())


@pytest.mark.parametrize("static", [dict(), dict(adapter="tokens", token_dim=8, gcn_layers=2)], ids=str)
def test_a_configuration_alone_and_in_a_pack_gives_the_same_result(data: TrialData, static: dict) -> None:
    configs = [replace(SMALL, **static, **knobs) for knobs in KNOBS]
    seeds = [11 * i for i in range(len(configs))]
    together = train_pack(configs, seeds=seeds, data=data, options=TrainingOptions(epochs=4, rungs=(2,)))
    for config, seed, result in zip(configs, seeds, together, strict=True):
        (alone,) = train_pack([config], seeds=[seed], data=data, options=TrainingOptions(epochs=4, rungs=(2,)))
        close(comparable(alone), comparable(result))
        assert [e for e, _ in alone.curve] == [2, 4]


def test_the_same_pack_twice_is_bit_identical(data: TrialData) -> None:
    first, second = (train_pack([SMALL], seeds=[3], data=data, options=TrainingOptions(epochs=3)) for _ in range(2))
    assert comparable(first[0]) == comparable(second[0])


def test_an_epoch_shows_each_image_once_in_a_search_as_in_a_refit(data: TrialData) -> None:
    search = pack_on_folds([SMALL], seeds=[0], data=data, epochs=2)
    refit = Pack(
        [SMALL],
        seeds=[0],
        seen_KC=data.seen_C[None],
        trainable_KI=trainable_images(data, None)[None],
        data=data,
        epochs=2,
    )
    for pack in (search, refit):
        largest = max(len(indices) for indices in pack.source_indices)
        assert pack.steps_per_epoch == math.ceil(largest / SMALL.batch_size)
        assert pack.module.run_steps == 2 * pack.steps_per_epoch
        shown = torch.cat([source_KB for source_KB, _ in pack._draw_epoch()], dim=1)
        for own_I, shown_I in zip(pack.source_indices, shown, strict=True):
            times = shown_I.bincount(minlength=len(data.source_labels_I))[own_I]
            assert times.min() == 1 and times.float().mean() < 1 + SMALL.batch_size / len(own_I)


def test_another_seed_is_another_run(data: TrialData) -> None:
    first, second = train_pack([SMALL, SMALL], seeds=[3, 4], data=data, options=TrainingOptions(epochs=3))
    assert first.score != second.score


def test_pruned_lanes_stop_and_survivors_do_not_notice(data: TrialData) -> None:
    configs = [replace(SMALL, lr=lr) for lr in (1e-3, 3e-3, 1e-4)]
    alone = train_pack(configs, seeds=[0, 1, 2], data=data, options=TrainingOptions(epochs=4, rungs=(2,)))

    def judge(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
        heard.append((epoch, [i for i, _ in scores]))
        return [i != 1 for i, _ in scores]

    heard: list[tuple[int, list[int]]] = []
    alive: list[tuple[int, int]] = []
    results = train_pack(
        configs,
        seeds=[0, 1, 2],
        data=data,
        judge=judge,
        on_epoch=lambda e, n: alive.append((e, n)),
        options=TrainingOptions(epochs=4, rungs=(2,)),
    )
    assert heard == [(2, [0, 1, 2])]
    assert alive == [(1, 3), (2, 2), (3, 2), (4, 2)]
    assert [(r.state, r.epochs) for r in results] == [("complete", 4), ("pruned", 2), ("complete", 4)]
    assert results[1].score == results[1].curve[-1][1] == pytest.approx(alone[1].curve[0][1], abs=1e-6)
    for i in (0, 2):
        close(comparable(results[i]), comparable(alone[i]))


def test_a_lane_that_joins_a_running_pack_is_the_lane_alone(data: TrialData) -> None:
    """Its own steps and schedule; those it joins do not notice."""
    first = [replace(SMALL, lr=lr) for lr in (1e-3, 3e-3, 2e-3)]
    later = [replace(SMALL, lr=4e-3, **knobs) for knobs in (dict(rho=0.3), dict(w_ent=0.2))]
    options = TrainingOptions(epochs=6, rungs=(1, 3))
    training = Training(first, seeds=[0, 1, 2], data=data, options=options, judge=lambda e, s: [i != 1 for i, _ in s])
    results = until_some_end(training)
    assert [(i, r.state, r.epochs) for i, r in results.items()] == [(1, "pruned", 1)]
    training.add([later[0]], [7])  # joins after the first epoch
    results |= until_some_end(training)
    assert {i: r.epochs for i, r in results.items()} == {1: 1, 0: 6, 2: 6}
    training.add([later[1]], [8])  # beside one that stands at its fifth
    while not training.done:
        results |= until_some_end(training)
    for i, config, seed in ((0, first[0], 0), (2, first[2], 2), (3, later[0], 7), (4, later[1], 8)):
        (alone,) = train_pack([config], seeds=[seed], data=data, options=options)
        close(comparable(results[i]), comparable(alone))


def until_some_end(training: Training) -> dict[int, LaneResult]:
    """Train until configurations end; return their results."""
    while not (ended := training.advance()):
        pass
    return ended


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("not enough memory: you tried")]
)
def test_out_of_memory_halves_the_pack_and_goes_on(
    data: TrialData, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    configs, packs = [replace(SMALL, lr=lr) for lr in (1e-3, 3e-3, 2e-3, 4e-3, 5e-3)], []
    expected = train_pack(configs, seeds=range(5), data=data, options=TrainingOptions(epochs=2, rungs=(1,)))

    class Small(Pack):
        def train_epoch(self) -> None:
            packs.append(len(self.generators) // 3)
            if packs[-1] > 2:
                raise error
            super().train_epoch()

    monkeypatch.setattr("study.training.pack.Pack", Small)
    results = train_pack(configs, seeds=range(5), data=data, options=TrainingOptions(epochs=2, rungs=(1,)))
    assert packs == [5, 3, 2, 2, 1, 1, 2, 2]
    for result, alone in zip(results, expected, strict=True):
        close(comparable(result), comparable(alone))
    with pytest.raises(RuntimeError, match="another"):
        monkeypatch.setattr(Small, "train_epoch", lambda self: (_ for _ in ()).throw(RuntimeError("another")))
        train_pack(configs, seeds=range(5), data=data, options=TrainingOptions(epochs=2))


def test_memory_of_a_pack_grows_with_its_lanes(data: TrialData) -> None:
    one, four = (pack_on_folds([SMALL] * n, seeds=range(n), data=data, epochs=1) for n in (1, 4))
    weights = 4 * 4 * sum(p.numel() for p in one.module.parameters())
    assert weights < one.bytes() < 100 * weights
    assert four.bytes() == pytest.approx(4 * one.bytes(), rel=0.1)


def test_bfloat16_trains_to_nearly_the_same_scores(data: TrialData) -> None:
    configs = [replace(SMALL, lr=lr) for lr in (1e-3, 3e-3, 1e-2)]
    exact, coarse = (
        train_pack(configs, seeds=[0, 1, 2], data=data, options=TrainingOptions(epochs=4, criterion="mi", precision=p))
        for p in ("float32", "bfloat16")
    )
    for a, b in zip(exact, coarse, strict=True):
        assert a.score != b.score and a.score == pytest.approx(b.score, abs=0.05)


def test_a_diverging_lane_fails_and_poisons_nothing(data: TrialData) -> None:
    configs = [SMALL, replace(SMALL, lr=1e38), replace(SMALL, w_ent=0.1)]
    results = train_pack(configs, seeds=[0, 1, 2], data=data, options=TrainingOptions(epochs=3))
    assert [r.state for r in results] == ["complete", "failed", "complete"]
    assert results[1].score is None and results[1].error == "loss was not finite by epoch 3"
    for i in (0, 2):
        (alone,) = train_pack([configs[i]], seeds=[i], data=data, options=TrainingOptions(epochs=3))
        close(comparable(results[i]), comparable(alone))


def test_when_every_lane_is_pruned_the_pack_ends(data: TrialData) -> None:
    results = train_pack(
        [SMALL], seeds=[0], data=data, judge=lambda e, s: [False], options=TrainingOptions(epochs=4, rungs=(1,))
    )
    assert (results[0].state, results[0].epochs) == ("pruned", 1)


def test_trials_do_not_change_when_labels_they_must_not_see_become_noise(features: SimpleNamespace) -> None:
    clean = train_pack(
        [SMALL], seeds=[0], data=trial_data(features, rotation=0, folds=3, seed=0), options=TrainingOptions(epochs=3)
    )
    g = torch.Generator().manual_seed(1)
    unseen = torch.isin(features.source_labels_I, torch.tensor([2, 7, 11]))
    shuffled = torch.tensor([2, 7, 11])[torch.randint(3, (int(unseen.sum()),), generator=g)]
    features.source_labels_I = features.source_labels_I.masked_scatter(unseen, shuffled)
    features.target_labels = torch.randint(12, (120,), generator=g)
    noisy = train_pack(
        [SMALL], seeds=[0], data=trial_data(features, rotation=0, folds=3, seed=0), options=TrainingOptions(epochs=3)
    )
    assert comparable(clean[0]) == comparable(noisy[0])


def test_the_oracle_scores_on_target_labels_and_nothing_else_does(features: SimpleNamespace, data: TrialData) -> None:
    honest = train_pack([SMALL], seeds=[0], data=data, options=TrainingOptions(epochs=2))[0]
    oracle = train_pack(
        [SMALL], seeds=[0], data=oracle_data(data, features.target_labels), options=TrainingOptions(epochs=2)
    )[0]
    wrong = train_pack(
        [SMALL], seeds=[0], data=oracle_data(data, (features.target_labels + 1) % 12), options=TrainingOptions(epochs=2)
    )[0]
    assert oracle.score == oracle.metrics["val_h_mean"] > 0.5 > 0.2 > wrong.metrics["val_h_mean"]
    assert honest.metrics["val_h_mean"] != oracle.metrics["val_h_mean"]


def test_lanes_of_a_fold_train_on_neither_held_out_nor_pseudo_unseen_images(data: TrialData) -> None:
    for fold in range(3):
        trained = trainable_images(data, fold)
        assert not (trained & data.held_out_I).any()
        assert not (trained & (data.fold_C == fold)[data.source_labels_I]).any()
    assert trainable_images(data, None).all()


def test_mutual_information_of_sure_and_even_and_of_constant_predictions() -> None:
    sure = torch.full((4, 4), -100.0).fill_diagonal_(100.0)
    constant = torch.tensor([100.0, -100, -100, -100]).repeat(4, 1)
    logits = torch.stack([sure, constant, torch.zeros(4, 4)])
    assert mutual_information([logits]).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert mutual_information(logits.split(3, dim=1)).tolist() == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("transposed", ["neither", "gradient", "parameter", "both"])
def test_the_stacked_optimiser_is_torchs_own_lane_by_lane(transposed: str, at_once: bool) -> None:
    """Whatever the order of axes in memory: a gradient of `x @ w.mT` comes transposed."""
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(3, 4, 5, generator=g), torch.randn(6, 3, 4, 5, generator=g)
    lr, weight_decay, schedule = [1e-2, 3e-2, 1e-1], [0.0, 0.1, 1.0], [0.3, 1.0, 0.5]
    swap = lambda t: t.mT.contiguous().mT  # noqa: E731  # the same numbers, axes swapped in memory
    w = torch.nn.Parameter(swap(start) if transposed in ("parameter", "both") else start.clone())
    optimiser = StackedAdamW([w], lr, weight_decay, at_once=at_once)
    for gradient in gradients:
        given = swap(gradient) if transposed in ("gradient", "both") else gradient
        optimiser.step([w], [given], optimiser.rates([schedule])[0])
    for k in range(3):
        alone = torch.nn.Parameter(start[k].clone())
        plain = torch.optim.AdamW([alone], lr[k] * schedule[k], betas=(0.9, 0.99), weight_decay=weight_decay[k])
        for gradient in gradients:
            alone.grad = gradient[k].clone()
            plain.step()
        torch.testing.assert_close(w[k], alone, atol=1e-6, rtol=1e-6)


def test_training_learns_the_toy_task(features: SimpleNamespace, data: TrialData) -> None:
    """Against zero-shot on the target, with labels the training never saw."""
    (refit,) = refit_pack([SMALL], seeds=[0, 1], data=data, epochs=15)
    zero_shot = (data.target_features_TD @ data.name_features_CD.T).argmax(-1)
    accuracy = (refit.predictions_ST == features.target_labels).float().mean()
    assert accuracy > (zero_shot == features.target_labels).float().mean() + 0.02
    assert refit.predictions_ST.shape == (2, 120) and not refit.diverged


def test_the_last_batches_of_an_epoch_are_full_and_every_image_comes_once(data: TrialData) -> None:
    pack = Pack(
        [SMALL],
        seeds=[0],
        seen_KC=data.seen_C[None],
        trainable_KI=trainable_images(data, None)[None],
        data=data,
        epochs=1,
    )
    source, target = (torch.stack(steps) for steps in zip(*pack._draw_epoch(), strict=True))
    assert source.shape == target.shape == (math.ceil(90 / 16), 1, 16)
    assert sorted(source.flatten()[:90].tolist()) == list(range(90))


def test_complete_configurations_vote_under_every_head_and_others_do_not(data: TrialData) -> None:
    data = replace(data, reference_T=training_free_labels(data))
    options = TrainingOptions(epochs=4, rungs=(2,), criterion="consensus")
    configs = [SMALL, replace(SMALL, lr=1e-3)]
    pruned, complete = train_pack(
        configs, seeds=[0, 1], data=data, options=options, judge=lambda _, scores: [i == 1 for i, _ in scores]
    )
    assert pruned.state == "pruned" and pruned.votes is None and pruned.score == pruned.metrics["target_agreement"]
    assert complete.votes is not None and list(complete.votes.classes) == ["none", "inmap", "transclip", "zlap", "vote"]
    assert {rows.shape for rows in complete.votes.classes.values()} == {(3, len(data.target_features_TD))}
    # the head changes nothing that is trained: alone and without rungs, the same votes
    (alone,) = train_pack([configs[1]], seeds=[1], data=data, options=replace(options, rungs=()))
    for head, rows in alone.votes.classes.items():  # type: ignore[union-attr]
        assert (rows == complete.votes.classes[head]).mean() > 0.995, head


def test_votes_cannot_depend_on_target_labels(data: TrialData, features: SimpleNamespace) -> None:
    assert "target_labels" not in vars(data) and data.oracle_labels_T is None
    reference_T = training_free_labels(data)
    right = (reference_T == features.target_labels).float().mean()
    assert right > 0.8 and right < 1  # good, and not the labels themselves
