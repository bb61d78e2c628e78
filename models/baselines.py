"""Baselines on the same cached features.

Zero-shot CLIP, and the field's simple adapters as stacked lanes: CLIP-Adapter, Tip-Adapter (training-free or
fine-tuned), CoOp (learned prompts only), a linear probe, and calibrated stacking. Each learns from base-class images
alone and classifies among all classes; untrained, each *is* zero-shot CLIP (Tip-Adapter: at alpha 0, CLIP-Adapter: at
ratio 0).

With an image feature x (D,), class texts T (C, D), both L2-normalised, and s, CLIP's logit scale, the logits (C,) are:

    zero-shot CLIP       s x T^T                                                           Radford et al., 2021
    CLIP-Adapter         s normalise((1 - ratio) x + ratio relu(relu(x W_1) W_2)) T^T      Gao et al., 2021
    Tip-Adapter          s x T^T + alpha sum_n exp(-beta (1 - x k_n)) onehot(y_n)          Zhang et al., 2022
    CoOp                 s x T(v)^T, v the learned context: see prompts.py                 Zhou et al., 2022
    linear probe         s x (T + delta)^T
    calibrated stacking  s x T^T - constant on base classes                                Chao et al., 2016

k_n, y_n: cached image features and their labels; Tip-Adapter-F trains the k_n. Trained baselines minimise the
cross-entropy over base classes. alpha, beta and the constant are found exactly (sweeps.py), never trained; what is
trained does not depend on what was found.

Suffixes: K lanes, B batch, I images, N cached images, C classes, P prompt templates, D CLIP dimension, H hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompts import BaseClasses, ClassTexts, PromptLearner, base_cross_entropy
from models.stacked import (
    StackedModule,
    check_fields,
    check_static,
    chunks,
    in_chunks,
    lane_field,
    lane_uniform,
    normalise,
    unit_features,
)
from models.sweeps import (
    Swept,
    allowed_images,
    best_of_mean,
    class_places,
    each_lane,
    lead_of_seen,
    seen_unseen_curve,
    sum_by_class,
    tip_adapter_grid,
)

ALPHAS = tuple(0.1 * i for i in range(201))
"""Tip-Adapter's cache weights swept by default, 0 to 20: 0 is zero-shot CLIP."""
BETAS = tuple(0.5 * 1.25**i for i in range(20))
"""Tip-Adapter's sharpnesses swept by default, 0.5 to 35."""
TRAINING_ALPHA, TRAINING_BETA = 1.0, 5.5
"""Cache weight and sharpness in Tip-Adapter-F's loss, the article's values. They stay fixed: with the swept values in
the loss, scoring an epoch changed the next one, and a refit trained another model than the search had scored (H 33.14
instead of 35.65 on icons2emoji-gzsl)."""


def zero_shot_prototypes(name_features_CPD: Tensor, lemma_features_CD: Tensor) -> dict[str, Tensor]:
    """Return zero-shot CLIP's class prototypes (C, D), L2-normalised, by the text they come from.

    `name_features_CPD`: each class name in each template, the single template first. `lemma_features_CD`: each class
    synset's WordNet lemmas, averaged over lemmas and templates.
    """
    return {
        "single template": F.normalize(name_features_CPD[:, 0], dim=-1),
        "ensemble": F.normalize(name_features_CPD.mean(1), dim=-1),
        "WordNet lemmas": F.normalize(lemma_features_CD, dim=-1),
    }


def nearest_prototype(image_features_ID: Tensor, prototypes_CD: Tensor, among_C: Tensor | None = None) -> Tensor:
    """Return the class (I,) of the prototype nearest to each image feature, of those in the mask `among_C`."""

    def nearest(images_BD: Tensor) -> tuple[Tensor]:
        cosine_BC = images_BD @ prototypes_CD.T
        return ((cosine_BC if among_C is None else cosine_BC.masked_fill(~among_C, -math.inf)).argmax(-1),)

    return in_chunks(nearest, image_features_ID)[0]


# --- adapters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The fields of every baseline."""

    LANE_KNOBS: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})

    batch_size: int = 128
    """Images per step; static."""
    lr: float = 1e-3
    """AdamW's peak learning rate."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        check_fields(
            self,
            at_least_one=[name for name, v in values.items() if isinstance(v, int)],  # no baseline has a switch
            not_negative=[name for name, v in values.items() if isinstance(v, float)],
        )


@dataclass(frozen=True, kw_only=True)
class CLIPAdapterConfig(BaselineConfig):
    """CLIP-Adapter (Gao et al., 2021): a bottleneck on the image feature."""

    LANE_KNOBS = BaselineConfig.LANE_KNOBS | {"ratio"}

    width: int = 64
    """Width of the bottleneck; static."""
    ratio: float = 0.5
    """Share of the adapter's output in the feature."""


@dataclass(frozen=True, kw_only=True)
class TipAdapterConfig(BaselineConfig):
    """Tip-Adapter (Zhang et al., 2022): a cache of labelled features beside CLIP; F trains its keys."""

    LANE_KNOBS = BaselineConfig.LANE_KNOBS | {"alpha", "beta"}

    variant: Literal["free", "F"] = "free"
    """Training-free, or with the cached features as parameters; static."""
    shots: int = 16
    """Cached images per class at most; static."""
    alpha: float = 1.0
    """Weight of the cache; found by `TipAdapter.sweep`."""
    beta: float = 5.5
    """Sharpness of the cache; found by `TipAdapter.sweep`."""


@dataclass(frozen=True, kw_only=True)
class CoOpConfig(BaselineConfig):
    """CoOp (Zhou et al., 2022): learned context, nothing else."""

    prompts: Literal["shared", "per_class"] = "shared"
    """One context for all classes or one each; static."""
    init: Literal["text", "noise"] = "text"
    """Whether the context starts as the template's words; static."""
    template: str = ""
    """Words around the name; empty: the benchmark's own prompt, with a period behind it; static."""
    n_ctx: int = 4
    """Context vectors where they start as noise; static."""


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(BaselineConfig):
    """A linear classifier that starts from CLIP's text features; without images a class keeps its text feature."""


@dataclass(frozen=True, kw_only=True)
class CalibratedStackingConfig(BaselineConfig):
    """Calibrated stacking (Chao et al., 2016): zero-shot CLIP with a constant subtracted from base logits."""

    LANE_KNOBS = BaselineConfig.LANE_KNOBS | {"constant"}

    constant: float = 0.0
    """The constant, in logits; found by `CalibratedStacking.sweep`."""

    def __post_init__(self) -> None:
        if math.isnan(self.constant):
            raise ValueError(f"constant must be a number, got {self.constant}")


class Baseline(StackedModule):
    """K lanes of one baseline.

    `configs`: one per lane, equal in all static fields (`ValueError` otherwise). `base_KC`: bool, the classes each
    lane has images of.
    """

    base_KC: Tensor
    text_features_CD: Tensor

    def __init__(
        self, configs: Sequence[BaselineConfig], *, seeds: Sequence[int], base_KC: Tensor, texts: ClassTexts
    ) -> None:
        super().__init__()
        check_static(configs)
        self.config = configs[0]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # only read while weights are drawn
        self.logit_scale = texts.logit_scale
        self.register_lane("base_KC", base_KC)
        self.register_buffer("text_features_CD", texts.features_CD)
        for name in configs[0].LANE_KNOBS - {"lr", "weight_decay"}:
            self.register_lane(name, lane_field(configs, name))

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the cross-entropy (K,) over base classes; labels are class ids, targets do not enter."""
        return {"cls": base_cross_entropy(self.logits(images_KBD), labels_KB, self.base_KC)}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the loss to minimise (K,)."""
        return losses["cls"]

    def _lanes(self, images: Tensor) -> Tensor:
        return images.expand(len(self.base_KC), -1, -1)


class CLIPAdapter(Baseline):
    """logits = s normalise((1 - ratio) x + ratio relu(relu(x W_1) W_2)) T^T.

    Both layers start as in the authors' code, uniform in +- 1 / sqrt(inputs). A second layer that starts at zero would
    stay there: behind the last ReLU its gradient is zero. So an untrained adapter is CLIP at ratio 0 only.
    """

    ratio: Tensor

    def __init__(
        self, configs: Sequence[CLIPAdapterConfig], *, seeds: Sequence[int], base_KC: Tensor, texts: ClassTexts
    ) -> None:
        super().__init__(configs, seeds=seeds, base_KC=base_KC, texts=texts)
        dim, width = self.text_features_CD.shape[1], configs[0].width
        self.down_KDH = nn.Parameter(lane_uniform(self.generators, dim, width, bound=dim**-0.5))
        self.up_KHD = nn.Parameter(lane_uniform(self.generators, width, dim, bound=width**-0.5))

    def logits(self, images_BD: Tensor) -> Tensor:
        x_KBD, ratio = self._lanes(images_BD), self.ratio[:, None, None]
        bottleneck_KBD = F.relu(F.relu(x_KBD @ self.down_KDH) @ self.up_KHD)
        return self.logit_scale * normalise((1 - ratio) * x_KBD + ratio * bottleneck_KBD) @ self.text_features_CD.T


AFFINITIES = 2**26
"""Affinities of images with cached ones that are formed at once where no gradient is: 256 MB."""


class TipAdapter(Baseline):
    """logits = s x T^T + alpha exp(-beta (1 - x keys^T)) values, the cache being labelled base images.

    `cache_features_ID`, `cache_labels_I`: images to draw from; `cache_KI`: bool, those each lane may use. Every lane
    draws up to `shots` of each of its base classes.
    """

    alpha: Tensor
    beta: Tensor
    cache_labels_KN: Tensor
    cached_KN: Tensor
    places_KCS: Tensor

    def __init__(
        self,
        configs: Sequence[TipAdapterConfig],
        *,
        seeds: Sequence[int],
        base_KC: Tensor,
        texts: ClassTexts,
        cache_features_ID: Tensor,
        cache_labels_I: Tensor,
        cache_KI: Tensor,
    ) -> None:
        super().__init__(configs, seeds=seeds, base_KC=base_KC, texts=texts)
        drawn = [
            _draw_shots(cache_labels_I, allowed_I & base_C[cache_labels_I], configs[0].shots, generator)
            for allowed_I, base_C, generator in zip(cache_KI, self.base_KC, self.generators, strict=True)
        ]
        size = max(len(d) for d in drawn)
        if not all(len(d) for d in drawn):
            raise ValueError(f"every lane must cache at least one image, got {[len(d) for d in drawn]}")
        index_KN = torch.stack([F.pad(d, (0, size - len(d))) for d in drawn])
        cached_KN = torch.stack([torch.arange(size) < len(d) for d in drawn])
        self.register_lane("cached_KN", cached_KN)
        self.register_lane("cache_labels_KN", cache_labels_I[index_KN])
        labels_KN = torch.where(cached_KN, self.cache_labels_KN, -1)
        places = [class_places(labels_N, base_KC.shape[1]) for labels_N in labels_KN]
        most = max(of_lane.shape[1] for of_lane in places)
        places_KCS = torch.stack([F.pad(of_lane, (0, most - of_lane.shape[1])) for of_lane in places])
        self.register_lane("places_KCS", places_KCS)
        keys_KND = unit_features(cache_features_ID[index_KN])
        if configs[0].variant == "F":
            self.keys_KND = nn.Parameter(keys_KND)
        else:
            self.register_lane("keys_KND", keys_KND)

    def logits(self, images_BD: Tensor) -> Tensor:
        parts = images_BD.split(self._rows, dim=-2)
        return torch.cat([self._logits(some, self.alpha[:, None, None], self.beta[:, None, None]) for some in parts], 1)

    @property
    def _rows(self) -> int:
        """Images whose affinities with the cached ones, and their places by class, are formed at once."""
        lanes, classes, shots = self.places_KCS.shape
        return max(1, AFFINITIES // (lanes * max(classes * shots, self.cached_KN.shape[1])))

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the cross-entropy (K,) over base classes at the fixed alpha and beta of training."""
        logits_KBC = self._logits(images_KBD, TRAINING_ALPHA, TRAINING_BETA)
        return {"cls": base_cross_entropy(logits_KBC, labels_KB, self.base_KC)}

    def _logits(self, images_BD: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
        """Compute logits (K, B, C) with one cache weight and sharpness, or one per lane (K, 1, 1)."""
        x_KBD = self._lanes(images_BD)
        affinity_KBN = x_KBD @ self.keys_KND.mT
        cache_KBC = sum_by_class(torch.exp(beta * (affinity_KBN - 1)), self.places_KCS)
        return self.logit_scale * x_KBD @ self.text_features_CD.T + alpha * cache_KBC

    @torch.no_grad()
    def sweep(
        self,
        images_ID: Tensor,
        labels_I: Tensor,
        *,
        allowed_KI: Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        apart: bool = False,
        alphas: Sequence[float] = ALPHAS,
        betas: Sequence[float] = BETAS,
    ) -> list[Swept]:
        """Set alpha and beta of each lane to the grid's best on labelled images; return what was found, by group.

        Arguments as in `StackedModule.sweep`.
        """
        found = []
        for lanes in each_lane(len(self.base_KC), groups):
            grids, best = [], []
            for k in lanes:
                chosen = allowed_images(allowed_KI, k)
                cached_N, keys_ND = self.cached_KN[k], self.keys_KND[k, self.cached_KN[k]]
                grid_BA = tip_adapter_grid(
                    (
                        (self.logit_scale * x_BD @ self.text_features_CD.T, x_BD @ keys_ND.T)
                        for x_BD in chunks(images_ID[chosen], len(self.base_KC) * self._rows)
                    ),
                    cache_labels_N=self.cache_labels_KN[k, cached_N],
                    labels_I=labels_I[chosen],
                    alphas=alphas,
                    betas=betas,
                    base_C=self.base_KC[k],
                    apart=apart,
                )
                b, a = divmod(int(grid_BA.argmax()), len(alphas))
                self.alpha[k], self.beta[k] = alphas[a], betas[b]
                best.append(float(grid_BA[b, a]))
                grids.append(grid_BA)
            b, a = divmod(int(torch.stack(grids).mean(0).argmax()), len(alphas))
            found.append(Swept(h=tuple(best), knobs={"alpha": alphas[a], "beta": betas[b]}))
        return found


class CoOp(Baseline):
    """logits = s x T(context)^T, the context learned through the frozen text encoder."""

    def __init__(
        self, configs: Sequence[CoOpConfig], *, seeds: Sequence[int], base_KC: Tensor, texts: ClassTexts
    ) -> None:
        super().__init__(configs, seeds=seeds, base_KC=base_KC, texts=texts)
        self.prompts = PromptLearner(
            texts,
            generators=self.generators,
            template=texts.starting_template(configs[0].template, period=True),
            init=configs[0].init,
            n_ctx=configs[0].n_ctx,
            per_class=configs[0].prompts == "per_class",
        )
        self.base = BaseClasses(base_KC)

    def logits(self, images_BD: Tensor) -> Tensor:
        return self.logit_scale * self._lanes(images_BD) @ self.prompts().mT

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the cross-entropy (K,) over base classes; only their texts are encoded."""
        logits_KBN = self.logit_scale * images_KBD @ self.prompts(self.base.classes_KN).mT
        return {"cls": base_cross_entropy(logits_KBN, self.base.places(labels_KB), self.base.mask_KN)}


class LinearProbe(Baseline):
    """logits = s x (T + delta)^T, delta learned from zero: weight decay pulls back to CLIP."""

    def __init__(
        self, configs: Sequence[LinearProbeConfig], *, seeds: Sequence[int], base_KC: Tensor, texts: ClassTexts
    ) -> None:
        super().__init__(configs, seeds=seeds, base_KC=base_KC, texts=texts)
        self.delta_KCD = nn.Parameter(torch.zeros(len(configs), *self.text_features_CD.shape))

    def logits(self, images_BD: Tensor) -> Tensor:
        return self.logit_scale * self._lanes(images_BD) @ (self.text_features_CD + self.delta_KCD).mT


class CalibratedStacking(Baseline):
    """logits = s x T^T - constant on base classes; nothing is trained."""

    constant: Tensor

    def logits(self, images_BD: Tensor) -> Tensor:
        logits_KBC = self.logit_scale * self._lanes(images_BD) @ self.text_features_CD.T
        return logits_KBC - self.constant[:, None, None].clamp(-1e4, 1e4) * self.base_KC[:, None].float()

    def sweep(
        self,
        images_ID: Tensor,
        labels_I: Tensor,
        *,
        allowed_KI: Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        apart: bool = False,
    ) -> list[Swept]:
        """Set each lane's constant to the best of all on labelled images; return what was found, by group.

        Arguments as in `StackedModule.sweep`; where base and novel classes compete apart the constant decides nothing.
        """
        scaled_DC = self.logit_scale * self.text_features_CD.T
        # an image goes to the best base class while the constant is at most its lead: it is a threshold on the lead
        lead_KI, base_KI, novel_KI = in_chunks(
            lambda images_BD: lead_of_seen(self._lanes(images_BD @ scaled_DC), self.base_KC), images_ID
        )
        base_right_KI, novel_right_KI = base_KI == labels_I, novel_KI == labels_I
        found = []
        for lanes in each_lane(len(self.base_KC), groups):
            curves, best = [], []
            for k in lanes:
                chosen = allowed_images(allowed_KI, k)
                lead_I, base_right_I, novel_right_I = (t[k, chosen] for t in (lead_KI, base_right_KI, novel_right_KI))
                curves.append(seen_unseen_curve(lead_I, base_right_I, novel_right_I, labels_I[chosen], self.base_KC[k]))
                choice = curves[-1].best()
                self.constant[k] = choice.tau
                best.append(choice.h)
            found.append(Swept(h=tuple(best), knobs={"constant": best_of_mean(curves).tau}))
        return found


def _draw_shots(labels_I: Tensor, allowed_I: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Draw up to `shots` allowed images of every class; return their indices, in order."""
    order = torch.randperm(len(labels_I), generator=generator)
    order = order[allowed_I[order]]
    order = order[labels_I[order].argsort(stable=True)]
    labels = labels_I[order]
    first = torch.searchsorted(labels, labels)  # where the class begins
    return order[torch.arange(len(order)) - first < shots].sort().values
