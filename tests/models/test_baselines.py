"""Baselines: untrained they are zero-shot CLIP, their formulas are the published ones, and lanes are independent."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.baselines import (
    CalibratedStacking,
    CalibratedStackingConfig,
    CLIPAdapter,
    CLIPAdapterConfig,
    CoOp,
    CoOpConfig,
    LinearProbe,
    LinearProbeConfig,
    TipAdapter,
    TipAdapterConfig,
    nearest_prototype,
    zero_shot_prototypes,
)
from models.prompts import ClassTexts, FrozenTextEncoder, PromptLearner

NAMES = ("cat", "dog", "fountain pen", "ox", "alarm clock")
BASE_C = torch.tensor([True, True, True, False, False])


@pytest.fixture(scope="module")
def world() -> tuple[ClassTexts, Tensor, Tensor]:
    """The embedded checkpoint's text features of five classes, and 100 noisy images of them."""
    encoder = FrozenTextEncoder.load(Path(__file__).parents[2] / "data_prep/assets/icons2emoji/clip")
    nothing = ClassTexts(features_CD=torch.zeros(5, 192), logit_scale=20.0, names=NAMES, encoder=encoder)
    features = PromptLearner(nothing, generators=[torch.Generator()])().detach()[0]
    g = torch.Generator().manual_seed(0)
    labels_I = torch.randint(0, 5, (100,), generator=g)
    images_ID = F.normalize(features[labels_I] + 0.1 * torch.randn(100, 192, generator=g), dim=-1)
    return ClassTexts(features_CD=features, logit_scale=20.0, names=NAMES, encoder=encoder), images_ID, labels_I


def build(kind: str, world: tuple[ClassTexts, Tensor, Tensor], seeds: list[int], **knobs: Any) -> Any:
    texts, images_ID, labels_I = world
    module, config, data = {
        "CLIP-Adapter": (CLIPAdapter, CLIPAdapterConfig, {"ratio": 0.0}),
        "Tip-Adapter": (TipAdapter, TipAdapterConfig, {"alpha": 0.0}),
        "Tip-Adapter-F": (TipAdapter, TipAdapterConfig, {"alpha": 0.0, "variant": "F"}),
        "CoOp": (CoOp, CoOpConfig, {"template": "a photo of a {}"}),
        "linear probe": (LinearProbe, LinearProbeConfig, {}),
        "calibrated stacking": (CalibratedStacking, CalibratedStackingConfig, {}),
    }[kind]
    cache = {}
    if module is TipAdapter:
        cache_KI = (torch.arange(100) < 60).expand(len(seeds), -1)
        cache = {"cache_features_ID": images_ID, "cache_labels_I": labels_I, "cache_KI": cache_KI}
    configs = [config(**(data | knobs))] * len(seeds)
    return module(configs, seeds=seeds, base_KC=BASE_C.expand(len(seeds), -1), texts=texts, **cache)


TRAINED = ["CLIP-Adapter", "Tip-Adapter-F", "CoOp", "linear probe"]


@pytest.mark.parametrize("kind", [*TRAINED, "Tip-Adapter", "calibrated stacking"])
def test_untrained_is_zero_shot_clip(kind: str, world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    texts, images_ID, _ = world
    logits_KIC = build(kind, world, [0, 1]).logits(images_ID)
    predicted_I = nearest_prototype(images_ID, texts.features_CD)
    assert logits_KIC.shape == (2, 100, 5)
    assert torch.equal(logits_KIC[1].argmax(-1), predicted_I)


@pytest.mark.parametrize("kind", TRAINED)
def test_lanes_learn_from_base_classes_and_not_from_each_other(
    kind: str, world: tuple[ClassTexts, Tensor, Tensor]
) -> None:
    _, images_ID, labels_I = world
    base_I = BASE_C[labels_I].nonzero().flatten()
    knobs = {"ratio": 0.2} if kind == "CLIP-Adapter" else {}
    after = []
    for seeds in ([4], [3, 4, 5]):
        module = build(kind, world, seeds, **knobs)
        first = None
        for _ in range(8):
            x_KBD, y_KB = images_ID[base_I].expand(len(seeds), -1, -1), labels_I[base_I].expand(len(seeds), -1)
            total_K = module.total(module.losses(x_KBD, y_KB))
            first = total_K if first is None else first
            grads = torch.autograd.grad(total_K.sum(), list(module.parameters()))
            with torch.no_grad():
                for p, g in zip(module.parameters(), grads, strict=True):
                    p.sub_(0.003 * g)
        assert first is not None and (total_K < first).all()
        after.append(module)
    after[1].keep(torch.tensor([1]))
    torch.testing.assert_close(after[0].logits(images_ID), after[1].logits(images_ID), atol=2e-4, rtol=1e-4)


def test_a_linear_probe_leaves_novel_classes_alone(world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    _, images_ID, labels_I = world
    module = build("linear probe", world, [0])
    base_I = BASE_C[labels_I]
    loss = module.total(module.losses(images_ID[None, base_I], labels_I[None, base_I]))
    (gradient,) = torch.autograd.grad(loss.sum(), [module.delta_KCD])
    assert gradient[0, BASE_C].abs().amax(1).min() > 0
    assert gradient[0, ~BASE_C].abs().max() == 0


def test_clip_adapter_is_its_formula_and_both_layers_learn(world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    texts, images_ID, labels_I = world
    module = build("CLIP-Adapter", world, [0, 1], ratio=0.3)
    hidden_IH = F.relu(images_ID @ module.down_KDH[1])
    adapted_ID = 0.7 * images_ID + 0.3 * F.relu(hidden_IH @ module.up_KHD[1])
    expected = 20 * F.normalize(adapted_ID, dim=-1) @ texts.features_CD.T
    torch.testing.assert_close(module.logits(images_ID)[1], expected)
    base_I = BASE_C[labels_I]
    loss = module.total(module.losses(images_ID[base_I].expand(2, -1, -1), labels_I[base_I].expand(2, -1)))
    for gradient in torch.autograd.grad(loss.sum(), [module.down_KDH, module.up_KHD]):
        assert (gradient.abs().amax((1, 2)) > 0).all()


def test_tip_adapter_f_trains_with_fixed_alpha_and_beta(world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    """Swept values are for inference: those in the loss would make scoring change what is trained."""
    _, images_ID, labels_I = world
    base_I = BASE_C[labels_I]
    losses = []
    for knobs in ({"alpha": 1.0, "beta": 5.5}, {"alpha": 9.0, "beta": 0.5}):
        module = build("Tip-Adapter-F", world, [0], **knobs)
        losses.append(module.total(module.losses(images_ID[None, base_I], labels_I[None, base_I])))
    assert torch.equal(*losses)
    logits_IC = build("Tip-Adapter-F", world, [0], alpha=1.0, beta=5.5).logits(images_ID[base_I])[0]
    expected = F.cross_entropy(logits_IC[:, BASE_C], labels_I[base_I])  # base classes are the first ones
    torch.testing.assert_close(losses[0][0], expected)


@pytest.mark.parametrize("apart", [False, True])
def test_alpha_and_beta_are_one_point_of_the_grid_with_the_best_mean_over_folds(
    apart: bool, world: tuple[ClassTexts, Tensor, Tensor]
) -> None:
    _, images_ID, labels_I = world
    alphas, betas = [0.0, 0.5, 2.0, 8.0, 20.0], [0.5, 2.0, 5.5, 20.0]
    module = build("Tip-Adapter", world, [0, 1, 2], shots=1)
    allowed_KI = torch.rand(3, 100, generator=torch.Generator().manual_seed(1)) < 0.5
    others_IC = (BASE_C != BASE_C[labels_I][:, None]) & apart  # they do not compete for the image
    of_folds: Any = {"allowed_KI": allowed_KI, "groups": [[0, 1, 2]], "apart": apart}
    (swept,) = module.sweep(images_ID, labels_I, alphas=alphas, betas=betas, **of_folds)
    own = [(float(a), float(b)) for a, b in zip(module.alpha, module.beta, strict=True)]
    mean_h = {}
    for alpha in alphas:
        for beta in betas:
            module.alpha.fill_(alpha)
            module.beta.fill_(beta)
            logits_KIC = module.logits(images_ID).masked_fill(others_IC, -math.inf)
            correct_KI = (logits_KIC.argmax(-1) == labels_I).double()
            h = []
            for correct_I, allowed_I in zip(correct_KI, allowed_KI, strict=True):
                per_class = [correct_I[allowed_I & (labels_I == c)].mean().item() for c in range(5)]
                s, u = sum(per_class[:3]) / 3, sum(per_class[3:]) / 2
                h.append(2 * s * u / (s + u))
            mean_h[alpha, beta] = h
    best = max(sum(h) / 3 for h in mean_h.values())
    assert sum(mean_h[swept.knobs["alpha"], swept.knobs["beta"]]) / 3 == pytest.approx(best)
    assert swept.h == pytest.approx([max(h[k] for h in mean_h.values()) for k in range(3)])
    assert swept.h == pytest.approx([mean_h[round(a, 6), round(b, 6)][k] for k, (a, b) in enumerate(own)])


def test_tip_adapter_is_its_formula_over_its_shots(world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    texts, images_ID, labels_I = world
    module = build("Tip-Adapter", world, [0, 1], shots=3, alpha=2.0, beta=4.0)
    assert list(module.parameters()) == []
    keys_ND, cache_labels_N = module.keys_KND[1], module.cache_labels_KN[1]
    assert cache_labels_N.bincount().tolist() == [3, 3, 3]  # base classes only
    for key_D, label in zip(keys_ND, cache_labels_N, strict=True):
        at = (images_ID == key_D).all(1).nonzero().item()
        assert at < 60 and labels_I[at] == label
    assert not torch.equal(module.keys_KND[0], keys_ND)
    expected = 20 * images_ID @ texts.features_CD.T
    expected += 2 * torch.exp(-4 * (1 - images_ID @ keys_ND.T)) @ F.one_hot(cache_labels_N, 5).float()
    torch.testing.assert_close(module.logits(images_ID)[1], expected)


def test_sweeps_find_what_predictions_then_score(world: tuple[ClassTexts, Tensor, Tensor]) -> None:
    _, images_ID, labels_I = world
    for kind in ("Tip-Adapter", "calibrated stacking"):
        module = build(kind, world, [0, 1])

        def h(module: Any = module) -> list[float]:
            values = []
            for logits in module.logits(images_ID):
                correct_I = (logits.argmax(-1) == labels_I).double()
                per_class = torch.stack([correct_I[labels_I == c].mean() for c in range(5)])
                s, u = per_class[BASE_C].mean().item(), per_class[~BASE_C].mean().item()
                values.append(2 * s * u / (s + u))
            return values

        zero_shot = h()
        best = [swept.h[0] for swept in module.sweep(images_ID, labels_I)]
        assert h() == pytest.approx(best, abs=1e-9)
        assert all(b >= z - 1e-9 for b, z in zip(best, zero_shot, strict=True))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CLIPAdapterConfig, {"ratio": -0.1}, "ratio must be finite and not negative, got -0.1"),
        (CLIPAdapterConfig, {"width": 0}, "width must be at least 1, got 0"),
        (TipAdapterConfig, {"alpha": float("inf")}, "alpha must be finite and not negative, got inf"),
        (CoOpConfig, {"n_ctx": 0}, "n_ctx must be at least 1, got 0"),
        (CalibratedStackingConfig, {"constant": float("nan")}, "constant must be a number, got nan"),
    ],
)
def test_bad_configurations(config: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_zero_shot_prototypes_by_text() -> None:
    names_CPD = F.normalize(torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]), dim=-1)
    prototypes = zero_shot_prototypes(names_CPD, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    torch.testing.assert_close(prototypes["single template"], torch.eye(2))
    torch.testing.assert_close(prototypes["WordNet lemmas"], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert nearest_prototype(torch.tensor([[0.1, 0.9]]), prototypes["ensemble"]).item() == 1
