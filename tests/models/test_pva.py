"""PVA: untrained it is CLIP, lanes are independent, its closed forms are right, and it learns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from models.gaussian import kl_to_prior, pairwise_kl, symmetric_kl, wasserstein
from models.prompts import ClassTexts, FrozenTextEncoder
from models.pva import PVA, PVAConfig

CLASSES, BASE, DIM = 8, 5, 16
BASE_C = torch.arange(CLASSES) < BASE
SMALL = PVAConfig(latent_dim=DIM, hidden=12, batch_size=20, sigma_init=0.5)


def world(seed: int = 0, images: int = 400) -> tuple[ClassTexts, Tensor, Tensor]:
    """Class texts, and images that lie around shifted versions of them: CLIP is right about half the time."""
    g = torch.Generator().manual_seed(seed)
    texts_CD = F.normalize(torch.randn(CLASSES, DIM, generator=g), dim=-1)
    labels_I = torch.randint(0, CLASSES, (images,), generator=g)
    shift_CD = 0.25 * torch.randn(CLASSES, DIM, generator=g)
    images_ID = (texts_CD + shift_CD)[labels_I] + 0.2 * torch.randn(images, DIM, generator=g)
    return ClassTexts(features_CD=texts_CD, logit_scale=20.0), F.normalize(images_ID, dim=-1), labels_I


def build(configs: list[PVAConfig], seeds: list[int], texts: ClassTexts | None = None) -> PVA:
    return PVA(configs, seeds=seeds, base_KC=BASE_C.expand(len(configs), -1), texts=texts or world()[0])


def train(module: PVA, images_ID: Tensor, labels_I: Tensor, steps: int, lr: float = 0.02) -> list[dict[str, Tensor]]:
    """Plain SGD on the same batches for every lane."""
    base_I = BASE_C[labels_I].nonzero().flatten()
    history = []
    for step in range(steps):
        batch = base_I[torch.arange(20 * step, 20 * step + 20) % len(base_I)]
        lanes = len(module.tau)
        losses = module.losses(images_ID[batch].expand(lanes, -1, -1), labels_I[batch].expand(lanes, -1))
        params = list(module.parameters())
        grads = torch.autograd.grad(module.total(losses).sum(), params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(lr * g)
        history.append({k: v.detach() for k, v in losses.items()})
    return history


@pytest.mark.parametrize("latent_dim", [DIM, 40])
@pytest.mark.parametrize("skip", [True, False])
def test_untrained_without_separation_and_lambda_infinite_is_clip(latent_dim: int, skip: bool) -> None:
    texts, images_ID, _ = world()
    config = replace(SMALL, separation=False, residual_lambda=math.inf, skip=skip, latent_dim=latent_dim)
    clip_IC = texts.logit_scale * images_ID @ texts.features_CD.T
    logits = build([config], [0]).logits(images_ID)[0]
    torch.testing.assert_close(logits, clip_IC, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.argmax(-1), clip_IC.argmax(-1))


@pytest.mark.parametrize("strength", [0.0, 1.0, math.inf])
def test_untrained_with_the_relative_score_is_clip_too(strength: float) -> None:
    texts, images_ID, _ = world()
    config = replace(SMALL, score="relative", tau=0.0, residual_lambda=strength)
    predicted_I = build([config], [0]).logits(images_ID)[0].argmax(-1)
    assert torch.equal(predicted_I, (images_ID @ texts.features_CD.T).argmax(-1))


def test_the_novel_branch_is_clip_when_lambda_is_infinite_even_after_training() -> None:
    texts, images_ID, labels_I = world()
    module = build([replace(SMALL, tau=math.inf, residual_lambda=math.inf)], [0])
    train(module, images_ID, labels_I, 20)
    novel_IC = (images_ID @ texts.features_CD.T).masked_fill(BASE_C, -math.inf)
    assert torch.equal(module.logits(images_ID)[0].argmax(-1), novel_IC.argmax(-1))


@pytest.mark.parametrize("score", ["cosine", "kl", "relative"])
def test_divide_and_conquer_by_hand(score: Any) -> None:
    _, images_ID, labels_I = world()
    module = build([replace(SMALL, score=score, tau=0.0, residual_lambda=0.7)], [0])
    train(module, images_ID, labels_I, 5)
    scores = module.scores(images_ID)
    assert scores.separation_KI is not None
    tau = float(scores.separation_KI.median())
    module.tau.fill_(tau)
    novel_I = scores.cosine.at(0.7)[0].masked_fill(BASE_C, -math.inf).argmax(-1)
    expected_I = torch.where(scores.separation_KI[0] >= tau, scores.latent_KIC[0].argmax(-1), novel_I)
    logits = module.logits(images_ID)[0]
    assert torch.equal(logits.argmax(-1), expected_I)
    assert logits.isfinite().all()


@pytest.mark.parametrize("tau", [-math.inf, 0.3, math.inf])
def test_among_classes_of_one_kind_the_branch_of_that_kind_decides(tau: float) -> None:
    """Whatever tau says: base-to-novel and cross-dataset tests leave only one kind to choose from."""
    texts, images_ID, labels_I = world()
    module = build([replace(SMALL, tau=tau)], [0])
    train(module, images_ID, labels_I, 10)
    logits_IC = module.logits(images_ID)[0]
    _, base_KI, novel_KI = module.divide(images_ID, BASE_C[None])
    assert torch.equal(logits_IC[:, :BASE].argmax(-1), base_KI[0])
    assert torch.equal(BASE + logits_IC[:, BASE:].argmax(-1), novel_KI[0])
    assert logits_IC[:, ~BASE_C].isfinite().all() and logits_IC[:, BASE_C].isfinite().all()


@pytest.mark.parametrize("score", ["cosine", "relative"])
def test_without_novel_classes_every_image_is_base_like(score: Any) -> None:
    texts, images_ID, _ = world()
    every_C = torch.ones(CLASSES, dtype=torch.bool)
    module = PVA([replace(SMALL, score=score, tau=0.9)], seeds=[0], base_KC=every_C[None], texts=texts)
    assert torch.equal(module.logits(images_ID)[0].argmax(-1), (images_ID @ texts.features_CD.T).argmax(-1))


def test_the_sweep_chooses_what_predictions_then_score() -> None:
    _, images_ID, labels_I = world()
    module = build([replace(SMALL, score="relative")] * 2, [0, 1])
    train(module, images_ID, labels_I, 20)
    for k, swept in enumerate(module.sweep(images_ID, labels_I)):
        (best,) = swept.h
        correct_I = (module.logits(images_ID)[k].argmax(-1) == labels_I).double()
        per_class = [correct_I[labels_I == c].mean().item() for c in range(CLASSES)]
        seen, unseen = sum(per_class[:BASE]) / BASE, sum(per_class[BASE:]) / (CLASSES - BASE)
        choice = module.curves(images_ID, labels_I)[k].best()
        assert (choice.seen, choice.unseen) == pytest.approx((seen, unseen), abs=1e-9)
        assert best == pytest.approx(choice.h, abs=1e-9) == pytest.approx(2 * seen * unseen / (seen + unseen))


@pytest.mark.parametrize("separation", [True, False])
def test_where_classes_compete_apart_lambda_is_the_best_within_halves(separation: bool) -> None:
    _, images_ID, labels_I = world()
    module = build([replace(SMALL, separation=separation)] * 2, [0, 1])
    train(module, images_ID, labels_I, 20)
    lambdas, others_IC = (0.0, 0.5, 2.0, math.inf), BASE_C != BASE_C[labels_I][:, None]
    found = module.sweep(images_ID, labels_I, apart=True, lambdas=lambdas)
    chosen_K, taus_K = module.residual_lambda.tolist(), module.tau.clone()
    h_LK = []
    for strength in lambdas:
        module.residual_lambda.fill_(strength)
        correct_KI = (module.logits(images_ID).masked_fill(others_IC, -math.inf).argmax(-1) == labels_I).double()
        mean_KC = torch.stack([correct_KI[:, labels_I == c].mean(1) for c in range(CLASSES)], dim=1)
        seen_K, unseen_K = mean_KC[:, BASE_C].mean(1), mean_KC[:, ~BASE_C].mean(1)
        h_LK.append((2 * seen_K * unseen_K / (seen_K + unseen_K)).tolist())
    for k, swept in enumerate(found):
        best = max(of_strength[k] for of_strength in h_LK)
        assert swept.h == pytest.approx((best,)) and h_LK[lambdas.index(chosen_K[k])][k] == pytest.approx(best)
        if separation:  # tau decides where all classes compete, as in predict.py
            module.residual_lambda[k] = chosen_K[k]
            assert module.curves(images_ID, labels_I)[k].best().tau == pytest.approx(float(taus_K[k]))


def test_training_improves_base_classes_of_other_images() -> None:
    texts, images_ID, labels_I = world(images=1200)
    module = build([replace(SMALL, score="relative")], [0])
    history = train(module, images_ID[:600], labels_I[:600], 150, lr=0.05)
    assert history[-1]["cls"] < history[0]["cls"]
    test_ID, test_I = images_ID[600:], labels_I[600:]
    of_base = BASE_C[test_I]
    latent = module.scores(test_ID).latent_KIC[0].argmax(-1)
    clip = (test_ID @ texts.features_CD.T).masked_fill(~BASE_C, -math.inf).argmax(-1)
    assert (latent == test_I)[of_base].float().mean() > (clip == test_I)[of_base].float().mean()


def test_one_lane_and_the_same_lane_in_a_pack_agree() -> None:
    _, images_ID, labels_I = world()
    other = replace(SMALL, w_kl=0.5, noise=2.0, free_bits=0.1, sigma_init=1.0)
    alone, pack = build([other], [7]), build([SMALL, other, SMALL], [3, 7, 5])
    one, several = train(alone, images_ID, labels_I, 10), train(pack, images_ID, labels_I, 6)
    pack.keep(torch.tensor([1, 2]))
    several += train(pack, images_ID, labels_I, 0)
    for a, b in zip(one[:6], several, strict=True):
        for name in a:
            torch.testing.assert_close(a[name][0], b[name][1], atol=1e-5, rtol=1e-4)


def test_a_pruned_pack_goes_on_with_each_survivors_own_noise() -> None:
    _, images_ID, labels_I = world()
    alone, pack = build([SMALL], [7]), build([SMALL] * 3, [3, 7, 5])
    train(alone, images_ID, labels_I, 4)
    train(pack, images_ID, labels_I, 4)
    pack.keep(torch.tensor([1, 2]))
    a, b = train(alone, images_ID, labels_I, 2)[-1], train(pack, images_ID, labels_I, 2)[-1]
    torch.testing.assert_close(a["cls"][0], b["cls"][0], atol=1e-5, rtol=1e-4)


def test_kl_warms_up_and_free_bits_are_free() -> None:
    _, images_ID, labels_I = world()
    warm = build([replace(SMALL, kl_warm_up=w) for w in (0.0, 4.0)], [0, 0])
    history = train(warm, images_ID, labels_I, 5, lr=0.0)
    ratios = [(h["kl"][1] / h["kl"][0]).item() for h in history]
    assert ratios == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    share = build([replace(SMALL, kl_warm_up=w) for w in (0.0, 0.5)], [0, 0])
    share.run_steps = 8  # half of them are four
    history = train(share, images_ID, labels_I, 5, lr=0.0)
    assert [(h["kl"][1] / h["kl"][0]).item() for h in history] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    free = build([replace(SMALL, free_bits=50.0, kl_warm_up=0.0)], [0])
    assert train(free, images_ID, labels_I, 1, lr=0.0)[0]["kl"].item() == pytest.approx(100.0)  # two modalities' bits


def test_deterministic_is_without_noise_or_prior() -> None:
    _, images_ID, labels_I = world()
    module = build([replace(SMALL, variational=False)], [0])
    assert not any("log_var" in name for name, _ in module.named_parameters())
    (first,), (again,) = (train(module, images_ID, labels_I, 1, lr=0.0) for _ in range(2))
    assert "kl" not in first and torch.equal(first["cls"], again["cls"])


def test_no_residual_leaves_the_adapters_features_alone() -> None:
    _, images_ID, labels_I = world()
    module = build([replace(SMALL, residual=False, tau=math.inf)], [0])
    module.sweep(images_ID, labels_I)
    assert module.residual_lambda.tolist() == [0.0]


def test_text_residuals_leave_novel_classes_alone() -> None:
    texts, images_ID, labels_I = world()
    module = build([replace(SMALL, prompts="residual")], [0])
    train(module, images_ID, labels_I, 5)
    moved_C = (module.text_features()[0] - texts.features_CD).abs().amax(1) > 1e-5
    assert torch.equal(moved_C, BASE_C)


def test_novel_columns_and_labels_do_not_enter_the_losses() -> None:
    texts, images_ID, labels_I = world()
    moved = replace(texts, features_CD=torch.where(BASE_C[:, None], texts.features_CD, -texts.features_CD))
    losses = [train(build([SMALL], [0], t), images_ID, labels_I, 2)[-1] for t in (texts, moved)]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_closed_forms_are_those_of_torch() -> None:
    g = torch.Generator().manual_seed(0)
    mean0, log_var0, mean1, log_var1 = torch.randn(4, 2, 3, 6, generator=g)

    def gaussian(mean: Tensor, log_var: Tensor) -> Independent:
        return Independent(Normal(mean, (log_var / 2).exp()), 1)

    p, q = gaussian(mean0, log_var0), gaussian(mean1, log_var1)
    both_ways = (kl_divergence(p, q) + kl_divergence(q, p)) / 2 / 6
    torch.testing.assert_close(symmetric_kl(mean0, log_var0, mean1, log_var1), both_ways)
    pairs = kl_divergence(
        gaussian(mean0[:, :, None], log_var0[:, :, None]), gaussian(mean1[:, None], log_var1[:, None])
    )
    torch.testing.assert_close(pairwise_kl(mean0, log_var0, mean1, log_var1), pairs / 6)
    prior = gaussian(torch.zeros_like(mean0), torch.zeros_like(mean0))
    torch.testing.assert_close(kl_to_prior(mean0, log_var0), kl_divergence(p, prior) / 6)
    one = torch.ones(1)
    assert wasserstein(2 * one, one.log() * 2, 5 * one, (3 * one).log() * 2).item() == pytest.approx(9 + 4)


@pytest.mark.parametrize("prompts", ["shared", "per_class"])
def test_prompts_train_with_the_adapters(prompts: Any) -> None:
    encoder = FrozenTextEncoder.load(Path(__file__).parents[2] / "data_prep/assets/icons2emoji/clip")
    names = ("cat", "dog", "pen", "ox")
    features = F.normalize(torch.randn(4, 192, generator=torch.Generator().manual_seed(0)), dim=-1)
    texts = ClassTexts(features_CD=features, logit_scale=20.0, names=names, encoder=encoder)
    base_KC = torch.tensor([[True, True, False, False], [True, False, True, False]])
    module = PVA([replace(SMALL, prompts=prompts)] * 2, seeds=[0, 1], base_KC=base_KC, texts=texts)
    images = features[:3].expand(2, -1, -1)
    total = module.total(module.losses(images, torch.tensor([[0, 1, 1], [2, 0, 2]])))
    assert module.prompts is not None
    (gradient,) = torch.autograd.grad(total.sum(), [module.prompts.context])
    if prompts == "per_class":  # a class without images in any lane is not even encoded
        assert gradient[:, 3].abs().max() == 0
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert module.scores(features).latent_KIC.shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"separation": False, "tau": 0.3}, "tau must be None when separation is False: .* got 0.3"),
        ({"score": "kl", "variational": False}, "score must be cosine or relative when variational is False, got kl"),
        ({"lr": 0.0}, "lr must be finite and positive, got 0.0"),
        ({"w_kl": -1.0}, "w_kl must be finite and not negative, got -1.0"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"residual_lambda": math.nan}, "residual_lambda must not be negative, got nan"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PVAConfig(**change)


def test_bad_splits_and_missing_tau() -> None:
    texts, images_ID, _ = world()
    with pytest.raises(ValueError, match="at least two base classes, got"):
        PVA([SMALL], seeds=[0], base_KC=(torch.arange(CLASSES) < 1)[None], texts=texts)
    with pytest.raises(ValueError, match="tau must be chosen before"):
        build([SMALL], [0]).logits(images_ID)
    with pytest.raises(ValueError, match="tau needs separation"):
        build([replace(SMALL, separation=False)], [0]).curves(images_ID, torch.zeros(len(images_ID), dtype=torch.int64))
    with pytest.raises(ValueError, match="latent_dim is static"):
        build([SMALL, replace(SMALL, latent_dim=8)], [0, 1])
