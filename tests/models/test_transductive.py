"""The transductive baselines against their formulas, written as plain loops over images, classes and dimensions."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import transductive
from models.prompts import ClassTexts
from models.transductive import (
    InMaP,
    InMaPConfig,
    NearestImages,
    OnNeighbours,
    TransCLIP,
    TransCLIPConfig,
    ZLaP,
    ZLaPConfig,
    intra_modal_proxies,
    label_propagation,
    sinkhorn,
    target_rows,
    transclip,
)

IMAGES, CLASSES, DIM, SCALE = 30, 5, 8, 20.0
METHODS: dict[str, tuple[Any, Any]] = {
    "zlap": (ZLaP, ZLaPConfig()),
    "transclip": (TransCLIP, TransCLIPConfig()),
    "inmap": (InMaP, InMaPConfig()),
}


def world(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Target images, class texts, and images that are not of the target."""
    g = torch.Generator().manual_seed(seed)
    texts_CD = F.normalize(torch.randn(CLASSES, DIM, generator=g), dim=-1)
    shifted_CD = texts_CD + 0.4 * torch.randn(CLASSES, DIM, generator=g)
    images = [shifted_CD[torch.arange(n) % CLASSES] + 0.3 * torch.randn(n, DIM, generator=g) for n in (IMAGES, 7)]
    return F.normalize(images[0], dim=-1), texts_CD, F.normalize(images[1], dim=-1)


def ranked(query_D: Tensor, keys_ND: Tensor, without: int | None = None) -> list[int]:
    """Rows of the keys, nearest first."""
    cosines = [float(query_D @ key_D) for key_D in keys_ND]
    return sorted((j for j in range(len(keys_ND)) if j != without), key=lambda j: -cosines[j])


@pytest.mark.parametrize("block", [1, 40, 2**24])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("asked_before", [0, 20])
def test_nearest_images_in_blocks_are_the_nearest(
    block: int, apart: bool, asked_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transductive, "BLOCK", block)
    images_TD, _, _ = world()
    near_images = NearestImages(images_TD)
    if asked_before:
        assert near_images.of_each(asked_before)[1].shape == (IMAGES, asked_before)
    cosines_QN, places_QN = near_images.of_each(3, apart=apart)
    for i in range(IMAGES):
        expected = ranked(images_TD[i], images_TD, i if apart else None)[:3]
        assert places_QN[i].tolist() == expected
        assert cosines_QN[i].tolist() == pytest.approx([float(images_TD[i] @ images_TD[j]) for j in expected], abs=1e-6)
    assert NearestImages(images_TD[:2]).of_each(5, apart=apart)[1].shape == (2, 1 if apart else 2)


def test_an_image_is_not_its_own_neighbour_among_many_equal_ones() -> None:
    images_TD = F.normalize(torch.cat([torch.ones(20, 4), torch.eye(4)]), dim=-1)
    _, places_TN = NearestImages(images_TD).of_each(3, apart=True)
    assert places_TN.shape == (24, 3) and bool((places_TN != torch.arange(24)[:, None]).all())


def naive_graph(images_TD: Tensor, texts_CD: Tensor, k: int, gamma: float) -> Tensor:
    """ZLaP's W, dense, an edge at a time."""
    weights_NN = torch.zeros(CLASSES + IMAGES, CLASSES + IMAGES, dtype=torch.float64)
    for i, x_D in enumerate(images_TD):
        for j in ranked(x_D, images_TD)[:k]:
            if j != i:
                weights_NN[CLASSES + i, CLASSES + j] += max(0.0, float(x_D @ images_TD[j]))
        for c in ranked(x_D, texts_CD)[:k]:
            weights_NN[CLASSES + i, c] += max(0.0, float(x_D @ texts_CD[c])) ** gamma
    return weights_NN + weights_NN.T


@pytest.mark.parametrize(("alpha", "gamma", "at_once"), [(0.3, 5.0, 512), (0.9, 1.0, 2)])
def test_label_propagation_solves_its_equation(
    alpha: float, gamma: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transductive, "CLASSES_AT_ONCE", at_once)
    images_TD, texts_CD, others_BD = world()
    weights_NN = naive_graph(images_TD, texts_CD, 3, gamma)
    scale_N = [1 / math.sqrt(d) if d > 0 else 0.0 for d in weights_NN.sum(1).tolist()]
    system_NN = torch.eye(CLASSES + IMAGES, dtype=torch.float64)
    for a in range(CLASSES + IMAGES):
        for b in range(CLASSES + IMAGES):
            system_NN[a, b] -= alpha * scale_N[a] * float(weights_NN[a, b]) * scale_N[b]
    expected_NC = torch.linalg.solve(system_NN, torch.eye(CLASSES + IMAGES, CLASSES, dtype=torch.float64)).float()
    propagated_NC = label_propagation(NearestImages(images_TD), texts_CD, neighbours=3, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(propagated_NC, expected_NC, atol=1e-5, rtol=1e-4)

    config = ZLaPConfig(neighbours=3, gamma=gamma, alpha=alpha)
    module = ZLaP([config], texts=ClassTexts(features_CD=texts_CD, logit_scale=SCALE), target_features_TD=images_TD)
    torch.testing.assert_close(module.logits(images_TD)[0].exp(), expected_NC[CLASSES:], atol=1e-5, rtol=1e-4)
    for x_D, logits_C in zip(others_BD, module.logits(others_BD)[0], strict=True):
        reached_C = torch.zeros(CLASSES)
        for j in ranked(x_D, images_TD)[:3]:
            reached_C += max(0.0, float(x_D @ images_TD[j])) * expected_NC[CLASSES + j]
        for c in ranked(x_D, texts_CD)[:3]:
            reached_C += max(0.0, float(x_D @ texts_CD[c])) ** gamma * expected_NC[c]
        torch.testing.assert_close(logits_C.exp(), reached_C, atol=1e-5, rtol=1e-4)


def test_transclip_is_its_block_updates_written_as_loops() -> None:
    images_TD, texts_CD, _ = (t.double() for t in world())
    k, tau = 2, 5.0
    y_TC = (SCALE * images_TD @ texts_CD.T).softmax(-1)
    z_TC = y_TC.clone()
    weights_TT = torch.zeros(IMAGES, IMAGES, dtype=torch.float64)
    for i in range(IMAGES):
        for j in ranked(images_TD[i], images_TD, i)[:k]:
            weights_TT[i, j] = images_TD[i] @ images_TD[j]
    means = []
    for c in range(CLASSES):
        confident = sorted(range(IMAGES), key=lambda i: -float(y_TC[i, c]))[:8]
        means.append(F.normalize(sum(y_TC[i, c] * images_TD[i] for i in confident), dim=-1))
    variance_D = torch.full((DIM,), 1 / DIM, dtype=torch.float64)
    for last in (False, False, True):
        for _ in range(5):
            new_TC = torch.zeros_like(z_TC)
            for i in range(IMAGES):
                for c in range(CLASSES):
                    density = -sum((images_TD[i, d] - means[c][d]) ** 2 / variance_D[d] for d in range(DIM)) / 2
                    near = sum((weights_TT[i, j] + weights_TT[j, i]) * z_TC[j, c] for j in range(IMAGES)) / (2 * k)
                    new_TC[i, c] = y_TC[i, c] * torch.exp(density / tau + near)
            z_TC = new_TC / new_TC.sum(1, keepdim=True)
        if not last:
            means = [F.normalize(z_TC[:, c] @ images_TD, dim=-1) for c in range(CLASSES)]
            variance_D = torch.stack(
                [
                    sum(
                        z_TC[i, c] * (images_TD[i, d] - means[c][d]) ** 2 for i in range(IMAGES) for c in range(CLASSES)
                    )
                    / IMAGES
                    for d in range(DIM)
                ]
            )
    fit = transclip(
        NearestImages(images_TD.float()), texts_CD.float(), SCALE, neighbours=k, rounds=2, temperature=tau / SCALE
    )
    torch.testing.assert_close(fit.logits_TC.softmax(-1), z_TC.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(fit.mean_CD, torch.stack(means).float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(fit.variance_D, variance_D.float(), atol=1e-5, rtol=1e-3)


def test_transclip_classifies_other_images_by_the_same_formula() -> None:
    images_TD, texts_CD, others_BD = world()
    module = TransCLIP(
        [TransCLIPConfig()],
        texts=ClassTexts(features_CD=texts_CD, logit_scale=SCALE),
        target_features_TD=images_TD,
    )
    logits_BC, fit = module.logits(others_BD)[0], module.mixture
    assert fit is not None
    for x_D, logits_C in zip(others_BD, logits_BC, strict=True):
        expected_C = (SCALE * texts_CD @ x_D).log_softmax(-1)
        for c in range(CLASSES):
            expected_C[c] -= float(((x_D - fit.mean_CD[c]) ** 2 / fit.variance_D).sum()) / 2 / (SCALE / 2)
        for j in ranked(x_D, images_TD)[:3]:
            expected_C += float(x_D @ images_TD[j]) * fit.assignment_TC[j] / 6
        torch.testing.assert_close(logits_C.softmax(-1), expected_C.softmax(-1), atol=1e-5, rtol=1e-4)


def test_sinkhorn_balances_classes_and_keeps_images() -> None:
    images_TD, texts_CD, _ = world(seed=3)
    p_TC = (SCALE * images_TD @ texts_CD.T).softmax(-1)
    balanced_TC = sinkhorn(p_TC, rounds=200)
    torch.testing.assert_close(balanced_TC.sum(1), torch.ones(IMAGES))
    torch.testing.assert_close(balanced_TC.sum(0), torch.full((CLASSES,), IMAGES / CLASSES), atol=1e-2, rtol=0)
    rows, columns = p_TC.tolist(), range(CLASSES)
    for _ in range(3):
        for c in columns:
            total = sum(row[c] for row in rows)
            rows = [[v / total if j == c else v for j, v in enumerate(row)] for row in rows]
        rows = [[v / sum(row) for v in row] for row in rows]
    torch.testing.assert_close(sinkhorn(p_TC, rounds=3), torch.tensor(rows), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("balance", [True, False])
def test_proxies_are_gradient_descent_on_their_loss(balance: bool) -> None:
    """The gradient by autograd, the step size halved whenever it has grown."""
    images_TD, texts_CD, _ = world()
    labels_TC = (SCALE * images_TD @ texts_CD.T).softmax(-1)
    labels_TC = sinkhorn(labels_TC) if balance else labels_TC
    hard = 0
    for i in range(IMAGES):
        if labels_TC[i].max() > 0.6:
            labels_TC[i] = F.one_hot(labels_TC[i].argmax(), CLASSES)
            hard += 1
    assert 0 < hard < IMAGES
    proxies_CD, rate, before = texts_CD.clone(), 10.0, math.inf
    for _ in range(30):
        w_CD = proxies_CD.requires_grad_()
        loss = F.cross_entropy(SCALE / 4 * images_TD @ w_CD.T, labels_TC)
        (gradient_CD,) = torch.autograd.grad(loss, w_CD)
        norm = float(gradient_CD.norm())
        rate, before = rate / 2 if norm > before else rate, norm
        proxies_CD = F.normalize(w_CD.detach() - rate * gradient_CD, dim=-1)
    learned_CD = intra_modal_proxies(images_TD, texts_CD, SCALE, balance=balance, steps=30)
    torch.testing.assert_close(learned_CD, proxies_CD, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_as_a_method_all_lanes_are_one_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, config = METHODS[name]
    images_TD, texts_CD, others_BD = world()
    texts = ClassTexts(features_CD=texts_CD, logit_scale=SCALE)
    module = kind([config] * 3, texts=texts, target_features_TD=images_TD)
    assert list(module.parameters()) == []
    whole_KTC = module.logits(torch.cat([others_BD, images_TD]))
    assert whole_KTC.shape == (3, 7 + IMAGES, CLASSES) and whole_KTC.isfinite().all()
    assert torch.equal(whole_KTC[0], whole_KTC[2])
    # an image's logits do not depend on those beside it
    torch.testing.assert_close(module.logits(images_TD[4:6]), whole_KTC[:, 11:13], atol=1e-5, rtol=1e-5)
    # of half-precision features, as large caches hold them, rows are still known as the target's
    half = kind([config], texts=texts, target_features_TD=images_TD.half())
    of_half = half.logits(F.normalize(images_TD.half().float(), dim=-1))[0]
    torch.testing.assert_close(of_half, whole_KTC[0, 7:], atol=0.05, rtol=0.05)
    # lanes that leave and join, and a lane that is exported and read again
    module.keep(torch.tensor([1]))
    module.join(kind([config] * 2, texts=texts, target_features_TD=images_TD))
    assert module.logits(images_TD).shape[0] == 3
    again = kind(
        [config],
        texts=texts,
        target_features_TD=images_TD if isinstance(module, OnNeighbours) else images_TD[:0],
    )
    again.set_lanes({lane: t[:1] for lane, t in module.lanes().items()})
    torch.testing.assert_close(again.logits(images_TD)[0], whole_KTC[0, 7:], atol=1e-5, rtol=1e-5)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="alpha must be below 1, got 1.0"):
        ZLaPConfig(alpha=1.0)
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        TransCLIPConfig(neighbours=0)
    with pytest.raises(ValueError, match="hard_from must be finite and not negative, got -0.1"):
        InMaPConfig(hard_from=-0.1)


def test_images_of_the_target_are_found_without_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images_TD, _, others_ND = world()
    images_TD[7, 0] = images_TD[3, 0]  # equal in the first number only
    again_TD = images_TD * (1 + 1e-7)  # encoded once more, in another batch
    again_TD[0, 1] += 1e-7
    rows_B, known_B = target_rows(torch.cat([again_TD[:2], others_ND, images_TD[5:9]]), images_TD)
    assert known_B.tolist() == [True, True] + [False] * len(others_ND) + [True] * 4
    assert rows_B[known_B].tolist() == [0, 1, 5, 6, 7, 8]
    monkeypatch.setattr(transductive, "nearest", lambda *_: pytest.fail("all were compared"))
    shuffled_T = torch.randperm(IMAGES)
    without_7 = shuffled_T[shuffled_T != 7]
    rows_B, known_B = target_rows(images_TD[without_7], images_TD)
    assert bool(known_B.all()) and torch.equal(rows_B, without_7)
