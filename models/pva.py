"""PVA, prompt-based variational adapter: divide and conquer in a latent space.

Two variational adapters, one per modality, map CLIP's features of base-class images and of class texts into one latent
space. An image near a base class there is classified among base classes by the latent classifier, any other among
novel classes by adapter features with CLIP's own as a residual. Trained: adapters, and prompts if configured, on base
images alone; novel class names enter at inference. Frozen: CLIP.

Source: "Improving Zero-Shot Generalization for CLIP with Variational Adapter", ECCV 2024 (the adapters, the three
losses L_cls, L_kl and L_align, the separation by a threshold, f_out = f_adapter + lambda f_CLIP). Ours: the start as
one isometry for both modalities, so that an untrained latent space *is* CLIP's; L_out; the relative score.

Posterior of a feature x (D,) of an image, or of a class text t_c; an encoder per modality:

    h  = gelu(x W + b),  mu = sqrt(L) x B + h W_mu,  log sigma^2 = h W_sigma + b_sigma     B (D, L): isometry at first
    z  = mu + noise sigma eps,  eps from N(0, I)                 in training; z = mu at inference
    f_adapter = z R / sqrt(L)                                    R (L, D): the transpose of B at first

Losses on images x of base class y (means over the batch; c runs over the base classes; s is CLIP's logit scale):

    L_cls   = CE(s cos(z_x, z_c), y)
    L_kl    = min(1, step / warm-up) (mean over x and mean over c of KL(posterior || N(0, I)))
              per dimension, where a dimension costs at least free_bits
    L_align = distance of the posteriors of x and t_y: symmetric KL, or squared 2-Wasserstein (gaussian.py)
    L_out   = CE(s cos(f_adapter(x) + x, f_adapter(t_c) + t_c), y)
    L       = L_cls + w_kl L_kl + w_align L_align + w_out L_out

Separation score a(x), with the maximum over base classes c:

    cosine    max cos(mu_x, mu_c)
    kl        max -KL(posterior of x || posterior of t_c)
    relative  max cos(mu_x, mu_c) - kappa max over novel classes n of cos(x, t_n)

Prediction: if a(x) >= tau, argmax over base classes of cos(mu_x, mu_c); otherwise argmax over novel classes n of
cos(f_adapter(x) + lambda x, f_adapter(t_n) + lambda t_n). tau and lambda are found exactly (sweeps.py), never trained.

Suffixes: K lanes, B batch, I images, C classes, N base classes of a lane, D CLIP dimension,
L latent dimension, H hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data_parallel import workers
from models.gaussian import kl_to_prior, pairwise_kl, symmetric_kl, wasserstein
from models.noise import normal_rows
from models.prompts import BaseClasses, ClassTexts, PromptLearner, base_cross_entropy
from models.stacked import (
    LaneModule,
    StackedModule,
    check_fields,
    check_static,
    lane_field,
    lane_normal,
    normalise,
    unit_features,
)
from models.sweeps import (
    LAMBDAS,
    Curve,
    ResidualCosine,
    ResidualFold,
    Swept,
    allowed_images,
    each_lane,
    lead_of_seen,
    seen_unseen_curve,
    sweep_residual,
)

FAR = 100.0
"""Cosine distance at which a class is out of question."""


@dataclass(frozen=True, kw_only=True)
class PVAConfig:
    """One configuration of PVA; the first block is static, the second may differ between lanes."""

    LANE_KNOBS: ClassVar[frozenset[str]] = frozenset(
        "lr weight_decay sigma_init noise w_kl kl_warm_up free_bits w_align w_out kappa residual_lambda tau".split()
    )

    latent_dim: int = 256
    """L, width of the latent space; below CLIP's D it starts as a lossy projection, which costs accuracy."""
    hidden: int = 256
    """Hidden width of the encoders."""
    skip: bool = True
    """Linear path beside the hidden layer, at first an isometry; without it the latent space starts random."""
    prompts: Literal["none", "residual", "shared", "per_class"] = "residual"
    """What is learned in a class text: nothing, an offset of its cached feature (task residual, Yu et al., 2023), or
    context through the text encoder, one for all classes or one each, at a hundred times the cost."""
    template: str = ""
    """What learned context starts from; empty: the benchmark's own prompt."""
    variational: bool = True
    """Sampled latents with a prior (ablation: False)."""
    separation: bool = True
    """Base-like and novel-like images go separate ways (ablation: False, all classes compete at once)."""
    residual: bool = True
    """CLIP's features beside the adapter's in the novel branch (ablation: False)."""
    alignment: Literal["kl", "w2"] = "kl"
    """Distance of an image's posterior to that of its class text: symmetric KL or squared 2-Wasserstein."""
    score: Literal["cosine", "kl", "relative"] = "cosine"
    """Separation: best base cosine, its negative KL, or best base cosine minus kappa times CLIP's best novel one."""
    batch_size: int = 128
    """Images per step."""

    lr: float = 1e-3
    """AdamW's peak learning rate."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    sigma_init: float = 0.3
    """Posterior standard deviation at the start; means have about unit variance per dimension, like the prior."""
    noise: float = 0.3
    """Factor on the sampled noise."""
    w_kl: float = 0.1
    """Weight of the KL to the prior, in nats per latent dimension."""
    kl_warm_up: float = 0.25
    """Share of the training's steps over which that weight grows from 0; a value above 1 counts steps.

    100 steps, the default before, are all of a training on the embedded images: the prior never had its full weight.
    """
    free_bits: float = 0.0
    """Nats per dimension that cost nothing."""
    w_align: float = 1.0
    """Weight of the alignment, per latent dimension."""
    w_out: float = 1.0
    """Weight of the cross-entropy of adapter features (with residual 1), which trains the way back to CLIP's space."""
    kappa: float = 1.0
    """Weight of novel names in the relative score."""
    residual_lambda: float = 1.0
    """CLIP's share in the novel branch; found by `PVA.sweep`, never sampled."""
    tau: float | None = None
    """Score from which an image is base-like; found by `PVA.sweep`, never sampled."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            at_least_one=("latent_dim", "hidden", "batch_size"),
            positive=("lr", "sigma_init"),
            not_negative=("weight_decay", "noise", "w_kl", "kl_warm_up", "free_bits", "w_align", "w_out", "kappa"),
        )
        if not self.residual_lambda >= 0:
            raise ValueError(f"residual_lambda must not be negative, got {self.residual_lambda}")
        if self.tau is not None and not self.separation:
            raise ValueError(f"tau must be None when separation is False: there is no threshold, got {self.tau}")
        if self.score == "kl" and not self.variational:
            raise ValueError("score must be cosine or relative when variational is False, got kl")


class GaussianEncoder(LaneModule):
    """The latent posterior of features: (K, B, D) -> mean and log variance (K, B, L).

    `basis_KDL`: isometry the means start from. The hidden layer's output starts at zero beside it.
    """

    def __init__(
        self, config: PVAConfig, basis_KDL: Tensor, sigma_K: Tensor, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        lanes, dim, latent = basis_KDL.shape
        self.skip_KDL = nn.Parameter(basis_KDL.clone()) if config.skip else None
        self.hidden_KDH = nn.Parameter(lane_normal(generators, dim, config.hidden, std=1.0))
        self.hidden_bias_KH = nn.Parameter(torch.zeros(lanes, 1, config.hidden))
        out = lane_normal(generators, config.hidden, latent, std=config.hidden**-0.5)
        self.mean_KHL = nn.Parameter(torch.zeros_like(out) if config.skip else out)
        self.log_var_KHL = self.log_var_bias_KL = None
        if config.variational:
            self.log_var_KHL = nn.Parameter(torch.zeros_like(out))
            self.log_var_bias_KL = nn.Parameter((2 * sigma_K.log())[:, None, None].repeat(1, 1, latent))

    def forward(self, x_KBD: Tensor) -> tuple[Tensor, Tensor]:
        # unit features have components of D^-1/2; means of about unit variance suit the prior
        hidden_KBH = F.gelu(x_KBD @ self.hidden_KDH + self.hidden_bias_KH)
        mean_KBL = hidden_KBH @ self.mean_KHL
        if self.skip_KDL is not None:
            mean_KBL = mean_KBL + x_KBD @ self.skip_KDL * math.sqrt(self.skip_KDL.shape[-1])
        if self.log_var_KHL is None or self.log_var_bias_KL is None:
            return mean_KBL, torch.zeros_like(mean_KBL)
        return mean_KBL, (hidden_KBH @ self.log_var_KHL + self.log_var_bias_KL).clamp(-12, 4)


@dataclass(frozen=True, kw_only=True)
class PVAScores:
    """Scores of images from which every tau and lambda can be judged."""

    separation_KI: Tensor | None
    """Separation score, large for base-like images; None without separation."""
    latent_KIC: Tensor
    """Latent cosines with base classes, -inf for novel ones."""
    cosine: ResidualCosine
    """Cosines (K, I, C) with all classes in the novel branch, as a function of lambda."""


CLASS_ROWS = 2**31
"""Where the rows of noise of class texts begin: behind those of any batch."""


class PVA(StackedModule):
    """K lanes of PVA.

    `configs`: one per lane, equal in all static fields (`ValueError` otherwise). `seeds`: each lane's own.
    `base_KC`: bool, the classes each lane has images of, at least two (else `ValueError`); all others are novel to it.
    """

    base_KC: Tensor
    text_features_CD: Tensor
    steps: Tensor
    noise_seeds: Tensor
    sigma_init: Tensor
    noise: Tensor
    kl_warm_up: Tensor
    free_bits: Tensor
    kappa: Tensor
    residual_lambda: Tensor
    tau: Tensor

    def __init__(
        self, configs: Sequence[PVAConfig], *, seeds: Sequence[int], base_KC: Tensor, texts: ClassTexts
    ) -> None:
        super().__init__()
        check_static(configs)
        self.config = config = configs[0]
        if int(base_KC.sum(1).min()) < 2:
            raise ValueError(
                f"every base split must have at least two base classes, "
                f"got {base_KC.sum(1).tolist()} base classes of {base_KC.shape[1]}"
            )
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.register_lane("noise_seeds", torch.tensor(seeds))
        self.logit_scale = texts.logit_scale
        self.register_buffer("text_features_CD", texts.features_CD)
        self.register_lane("base_KC", base_KC)
        self.base = BaseClasses(base_KC)
        self.register_lane("steps", torch.zeros(len(configs)))
        for name in PVAConfig.LANE_KNOBS - {"lr", "weight_decay", "tau"}:
            self.register_lane(name, lane_field(configs, name))
        # float64: a tau halfway between two float32 scores must not be rounded onto the lower one
        taus = [math.nan if c.tau is None else c.tau for c in configs]
        self.register_lane("tau", torch.tensor(taus, dtype=torch.float64))

        self.prompts: PromptLearner | None = None
        self.text_residual_KCD: nn.Parameter | None = None
        if config.prompts == "residual":
            self.text_residual_KCD = nn.Parameter(torch.zeros(len(configs), *texts.features_CD.shape))
        elif config.prompts != "none":
            self.prompts = PromptLearner(
                texts,
                generators=generators,
                template=texts.starting_template(config.template),
                per_class=config.prompts == "per_class",
            )
        basis_KDL = _isometry(generators, texts.features_CD.shape[1], config.latent_dim)
        self.image_encoder = GaussianEncoder(config, basis_KDL, self.sigma_init, generators)
        self.text_encoder = GaussianEncoder(config, basis_KDL, self.sigma_init, generators)
        self.image_decoder_KLD = nn.Parameter(basis_KDL.mT.clone())
        self.text_decoder_KLD = nn.Parameter(basis_KDL.mT.clone())

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute all losses by name, each (K,), of base-class images (labels are class ids); targets do not enter.

        Each call counts as a training step: the KL warms up over a share of `run_steps`.
        """
        place_KB, mask_KN = self.base.places(labels_KB), self.base.mask_KN
        text_mean, text_log_var = self.text_encoder(self.text_features(base_only=True))
        image_mean, image_log_var = self.image_encoder(images_KBD)
        image_KBL = self._sample(image_mean, image_log_var, shared=True)
        text_KNL = self._sample(text_mean, text_log_var, self.base.classes_KN)
        logits_KBN = self.logit_scale * normalise(image_KBL) @ normalise(text_KNL).mT
        own_mean, own_log_var = _rows(text_mean, place_KB), _rows(text_log_var, place_KB)
        distance = {"kl": symmetric_kl, "w2": wasserstein}[self.config.alignment]
        self.steps += 1
        losses = {
            "cls": base_cross_entropy(logits_KBN, place_KB, mask_KN),
            "align": distance(image_mean, image_log_var, own_mean, own_log_var).mean(1),
            "out": base_cross_entropy(self._out_logits(images_KBD, image_KBL, text_KNL), place_KB, mask_KN),
        }
        if self.config.variational:
            share_KN = mask_KN / mask_KN.sum(1, keepdim=True)
            free_K11 = self.free_bits[:, None, None]
            kl_KB = kl_to_prior(image_mean, image_log_var, free_K11)
            kl_KN = kl_to_prior(text_mean, text_log_var, free_K11)
            steps = torch.where(self.kl_warm_up > 1, self.kl_warm_up, self.kl_warm_up * self.run_steps)
            warm = (self.steps / steps.clamp_min(1)).clamp(max=1)
            losses["kl"] = warm * (kl_KB.mean(1) + (kl_KN * share_KN).sum(1))
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum (K,): L_cls + sum of w_x L_x."""
        return losses["cls"] + sum(getattr(self, f"w_{name}") * losses[name] for name in losses.keys() - {"cls"})

    def text_features(self, *, base_only: bool = False) -> Tensor:
        """Return CLIP features (K, C, D) of class texts, with the learned prompts or residuals.

        `base_only`: (K, N, D), of each lane's base classes.
        """
        chosen_KN = self.base.classes_KN if base_only else None
        if self.prompts is not None:
            return self.prompts(chosen_KN)
        cached = self.text_features_CD if chosen_KN is None else self.text_features_CD[chosen_KN]
        if self.text_residual_KCD is None:
            return cached.expand(len(self.base_KC), -1, -1)
        residual = self.text_residual_KCD if chosen_KN is None else _rows(self.text_residual_KCD, chosen_KN)
        return normalise(cached + residual)  # a novel class's residual never leaves zero

    @torch.no_grad()
    def scores(self, images_ID: Tensor) -> PVAScores:
        """Compute the scores of images (I, D) for the sweeps and `logits`; latents are posterior means."""
        images_KID = images_ID.expand(len(self.base_KC), -1, -1)
        image_mean, image_log_var = self.image_encoder(images_KID)
        text_mean, text_log_var = self.text_encoder(self.text_features())
        latent_KIC = F.normalize(image_mean, dim=-1) @ F.normalize(text_mean, dim=-1).mT
        latent_KIC = latent_KIC.masked_fill(~self.base_KC[:, None], -math.inf)
        near_KI = latent_KIC.amax(-1)
        if self.config.score == "kl":
            kl_KIC = pairwise_kl(image_mean, image_log_var, text_mean, text_log_var)
            near_KI = -kl_KIC.masked_fill(~self.base_KC[:, None], math.inf).amin(-1)
        elif self.config.score == "relative":
            clip_KIC = (images_KID @ self.text_features_CD.T).masked_fill(self.base_KC[:, None], -math.inf)
            near_KI = near_KI - self.kappa[:, None] * clip_KIC.amax(-1)
        return PVAScores(
            separation_KI=near_KI if self.config.separation else None,
            latent_KIC=latent_KIC,
            cosine=ResidualCosine(
                self._decode(image_mean, self.image_decoder_KLD),
                images_KID,
                self._decode(text_mean, self.text_decoder_KLD),
                self.text_features_CD.expand(len(self.base_KC), -1, -1),
            ),
        )

    def sweep(
        self,
        images_ID: Tensor,
        labels_I: Tensor,
        *,
        allowed_KI: Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        apart: bool = False,
        lambdas: Sequence[float] = LAMBDAS,
    ) -> list[Swept]:
        """Set tau and lambda of each lane to the best on labelled images; return what was found, by group.

        Labels are class ids; those of the lane's base classes count for S, the others for U. Other arguments as in
        `StackedModule.sweep`. Where classes compete apart, lambda is the best among novel classes, and tau, which then
        decides nothing, the best at this lambda where all of them compete.
        """
        scores = self.scores(unit_features(images_ID))
        found = []
        for lanes in each_lane(len(self.base_KC), groups):
            folds = []
            for k in lanes:
                chosen = allowed_images(allowed_KI, k)
                folds.append(
                    ResidualFold(
                        cosine=scores.cosine.lane(k, chosen),
                        score_I=None if scores.separation_KI is None else scores.separation_KI[k][chosen],
                        base_best_I=scores.latent_KIC[k][chosen].argmax(-1),
                        labels_I=labels_I[chosen],
                        base_C=self.base_KC[k],
                    )
                )
            own, mean = sweep_residual(folds, lambdas=lambdas if self.config.residual else (0.0,), apart=apart)
            for k, choice in zip(lanes, own, strict=True):
                self.tau[k], self.residual_lambda[k] = choice.tau, choice.residual_lambda
            knobs = {"tau": mean.tau, "residual_lambda": mean.residual_lambda}
            found.append(Swept(h=tuple(choice.h for choice in own), knobs=knobs))
        return found

    def curves(self, images_ID: Tensor, labels_I: Tensor) -> list[Curve]:
        """Compute each lane's seen-unseen curve over every tau, at its lambda.

        Raises `ValueError` without separation.
        """
        scores = self.scores(images_ID)
        if scores.separation_KI is None:
            raise ValueError("tau needs separation: a model with separation=False has no seen-unseen curve, got False")
        cosine_KIC = scores.cosine.at(self.residual_lambda if self.config.residual else 0.0)
        novel_KI = cosine_KIC.masked_fill(self.base_KC[:, None], -math.inf).argmax(-1)
        of_lanes = zip(scores.separation_KI, scores.latent_KIC.argmax(-1), novel_KI, self.base_KC, strict=True)
        return [
            seen_unseen_curve(s, base == labels_I, novel == labels_I, labels_I, c) for s, base, novel, c in of_lanes
        ]

    def divide(self, images_BD: Tensor, seen_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the separation score, best base class and best novel class of every image, (K, B) each.

        `seen_KC`: bool, the base classes. Without separation the score is the lead of the best base class over the best
        novel one.
        """
        scores = self.scores(images_BD)
        cosine_KBC = scores.cosine.at(self.residual_lambda if self.config.residual else 0.0)
        lead_KB, base_KB, novel_KB = lead_of_seen(cosine_KBC, seen_KC)
        if scores.separation_KI is None:
            return lead_KB, base_KB, novel_KB
        return scores.separation_KI, scores.latent_KIC.argmax(-1), novel_KB

    def unseen_by_lambda(self, images_BD: Tensor, lambdas: Sequence[float] = LAMBDAS) -> Tensor | None:
        """Return the best novel class at each residual strength (K, G, B); None without residual or separation.

        With the score and base class of `divide`, which do not depend on lambda, H follows at every tau and lambda.
        """
        if not (self.config.residual and self.config.separation):
            return None
        cosine, base_K1C = self.scores(images_BD).cosine, self.base_KC[:, None]
        return torch.stack([cosine.at(x).masked_fill(base_K1C, -math.inf).argmax(-1) for x in lambdas], dim=1)

    def logits(self, images_BD: Tensor) -> Tensor:
        """Compute logits over all classes (K, B, C) of image features (B, D): divide and conquer.

        The classes an image is not classified among lie far below. Raises `ValueError` if no tau has been chosen.
        """
        scores = self.scores(images_BD)
        cosine_KBC = scores.cosine.at(self.residual_lambda if self.config.residual else 0.0)
        if scores.separation_KI is None:
            return self.logit_scale * cosine_KBC
        if bool(self.tau.isnan().any()):
            raise ValueError("tau must be chosen before images can be separated: run PVA.sweep or set it, got None")
        base_like_KB1 = (scores.separation_KI >= self.tau[:, None])[:, :, None]
        own_KBC = torch.where(self.base_KC[:, None], scores.latent_KIC, cosine_KBC)
        # far below, but finite and in order: entropies stay numbers, and images can be classified among these alone
        return self.logit_scale * (own_KBC - FAR * (base_like_KB1 != self.base_KC[:, None]))

    def _sample(
        self, mean: Tensor, log_var: Tensor, classes_KN: Tensor | None = None, *, shared: bool = False
    ) -> Tensor:
        """Draw z = mu + noise sigma eps; eps of a row is that of the lane's seed, its step, and the image or class.

        `shared`: rows are this worker's share of a batch, and so is their noise of the batch's.
        """
        if not self.config.variational:
            return mean
        rank, count = workers() if shared else (0, 1)
        if classes_KN is None:
            rows_KB = torch.arange(mean.shape[1], device=mean.device)[None] * count + rank
        else:
            rows_KB = classes_KN + CLASS_ROWS
        eps = normal_rows(self.noise_seeds, self.steps.long(), rows_KB, mean.shape[2])
        return mean + self.noise[:, None, None] * (log_var / 2).exp() * eps

    def _decode(self, latent: Tensor, decoder_KLD: Tensor) -> Tensor:
        """Return f_adapter (K, B, D) of latents (K, B, L): of about unit length at first, as CLIP's."""
        return latent @ decoder_KLD / math.sqrt(latent.shape[-1])

    def _out_logits(self, images_KBD: Tensor, image_KBL: Tensor, text_KNL: Tensor) -> Tensor:
        """Compute logits (K, B, N) of the novel branch at lambda 1 (0 without residual)."""
        image_KBD = self._decode(image_KBL, self.image_decoder_KLD)
        text_KND = self._decode(text_KNL, self.text_decoder_KLD)
        if self.config.residual:
            image_KBD, text_KND = image_KBD + images_KBD, text_KND + self.text_features_CD[self.base.classes_KN]
        return self.logit_scale * normalise(image_KBD) @ normalise(text_KND).mT


def _rows(x_KCD: Tensor, rows_KN: Tensor) -> Tensor:
    """Return each lane's own rows (K, N, D)."""
    return x_KCD.gather(1, rows_KN[:, :, None].expand(-1, -1, x_KCD.shape[2]))


def _isometry(generators: Sequence[torch.Generator], dim: int, latent: int) -> Tensor:
    """Draw random matrices (K, D, L) with orthonormal rows or columns."""
    noise = lane_normal(generators, max(dim, latent), min(dim, latent), std=1.0)
    basis = torch.linalg.qr(noise).Q
    return basis if dim >= latent else basis.mT
