"""Transductive baselines: they classify all target images at once, without any label, training-free or nearly.

Each sees the target images x_i (T, D), the class texts t_c (C, D), both L2-normalised, and CLIP's logit scale s; source
images and the split into seen and unseen classes do not enter. Settings are the authors' defaults. A temperature of 1
is that of CLIP's own logits: s x t, so their 0.01 for a scale of 100 is 1 / s here.

ZLaP (Stojnic et al., CVPR 2024). A graph of C texts and T images; F = what each class's text spreads over it:

    w_ij = max(0, x_i x_j)            j among the k nearest images of i, i itself counted but without an edge
    w_ic = max(0, x_i t_c)^gamma      c among the k nearest texts of i
    W <- W + W^T,  A = D^-1/2 W D^-1/2,  (I - alpha A) F = Y      Y (C + T, C): one-hot rows of the texts, else 0
    an image of the target: log F_i;  any other x: log(sum_j w_xj F_j) over its neighbours, images and texts

TransCLIP, zero-shot form (Zanella et al., NeurIPS 2024). One Gaussian per class with a shared diagonal variance, whose
assignments z (T, C) stay near CLIP's y_i = softmax(s x_i T^T) and near those of their neighbours:

    w_ij = x_i x_j                    j among the k nearest images of i
    z_i  ∝ y_i^lambda exp(-1/(2 tau) sum_d (x_id - mu_cd)^2 / var_d + 1/(2 k) sum_j (w_ij + w_ji) z_j)   5 times
    mu_c = normalise(sum_i z_ic x_i),  var_d = 1/T sum_ic z_ic (x_id - mu_cd)^2                          10 rounds
    tau = s / 2 (50 for a scale of 100); first z = y, mu_c from the 8 images with the largest y_c, var = 1 / D
    an image of the target: log z_i;  any other x: the same formula, its neighbours being target images

InMaP (Qian et al., NeurIPS 2023). Class proxies among the images, learned from pseudo-labels of the texts:

    P    = softmax(s x T^T), balanced by 20 rounds of Sinkhorn: every class has T / C images, every image one class
    P_i  <- one-hot of its largest entry where that exceeds 0.6
    w    = argmin over unit vectors of mean_i CE(P_i, softmax(s x_i w^T / 4)), gradient descent from the texts
    any x: s x w^T

Memory: T x C numbers and a few neighbours per image; no T x T matrix is formed (`nearest` works in blocks).

Suffixes: T target images, C classes, D CLIP dimension, K lanes, B batch, R rest of a batch, N neighbours or nodes, M
classes of a block, Q queries, E edges.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.baselines import BaselineConfig
from models.prompts import ClassTexts
from models.stacked import StackedModule, check_static, unit_features

BLOCK = 2**24
"""Cosines formed at once: 64 MB."""
CLASSES_AT_ONCE = 512
"""Classes whose labels are propagated at once."""
STILL = 1e-6
"""Largest change in a step, of unit vectors, from which proxies count as still."""
KEPT = 8
"""Nearest images that are kept of each: more than any method's default."""
SAME = 1e-5
"""Distance of a cosine to 1 up to which two features are of the same image."""
SMALLEST = 1e-12
"""Probability of classes that nothing reaches, so that logarithms stay finite."""


def nearest(queries_QD: Tensor, keys_ND: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosines with the nearest keys (Q, count) and the keys' rows, largest cosine first.

    Both inputs are L2-normalised. With fewer keys than `count`, all of them.
    """
    count = min(count, len(keys_ND))
    rows = max(1, BLOCK // max(1, len(keys_ND)))
    cosines, places = [], []
    for start in range(0, len(queries_QD), rows):
        top = (queries_QD[start : start + rows] @ keys_ND.T).topk(count, dim=1)
        cosines.append(top.values)
        places.append(top.indices)
    return torch.cat(cosines), torch.cat(places)


class NearestImages:
    """The images nearest to each image of a set: found when first asked for, once for all methods on the same images.

    It is the only part whose cost grows with the square of the images: most of what ZLaP and TransCLIP take.
    """

    def __init__(self, images_TD: Tensor) -> None:
        """`images_TD`: L2-normalised."""
        self.images_TD = images_TD
        self._found: tuple[Tensor, Tensor] | None = None

    def of_each(self, count: int, *, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Return what `nearest` does for these images among themselves; `apart`: none is its own neighbour."""
        if self._found is None or self._found[0].shape[1] < min(count + apart, len(self.images_TD)):
            self._found = nearest(self.images_TD, self.images_TD, max(count + apart, KEPT))
        cosine_TN, place_TN = self._found
        if apart:  # itself to the end, where it is cut; of many equal images it may not be among the nearest
            own_T1 = torch.arange(len(place_TN), device=place_TN.device)[:, None]
            order_TN = (place_TN == own_T1).int().argsort(dim=1, stable=True)
            count = min(count, place_TN.shape[1] - 1)
            cosine_TN, place_TN = cosine_TN.gather(1, order_TN), place_TN.gather(1, order_TN)
        return cosine_TN[:, :count], place_TN[:, :count]


# --- ZLaP -----------------------------------------------------------------------------------------------------------


def label_propagation(
    near_images: NearestImages, texts_CD: Tensor, *, neighbours: int = 5, gamma: float = 5.0, alpha: float = 0.3
) -> Tensor:
    """Compute ZLaP's F (C + T, C), texts first: how much of each class's label reaches each node."""
    images_TD, found = near_images.images_TD, near_images.of_each(neighbours)
    classes, nodes = len(texts_CD), len(texts_CD) + len(images_TD)
    rows_TN, columns_TN, weights_TN = _graph_edges(images_TD, found, texts_CD, neighbours, gamma)
    edges_2E = torch.stack([classes + rows_TN.flatten(), columns_TN.flatten()])
    weights_E = weights_TN.flatten() * (edges_2E[0] != edges_2E[1])  # an image is no neighbour of itself
    edges_2E, weights_E = torch.cat([edges_2E, edges_2E.flip(0)], dim=1), weights_E.repeat(2)
    degree_N = weights_E.new_zeros(nodes).index_add_(0, edges_2E[0], weights_E)
    scale_N = torch.where(degree_N > 0, degree_N.clamp_min(SMALLEST).rsqrt(), 0.0)
    weights_E = weights_E * scale_N[edges_2E[0]] * scale_N[edges_2E[1]]
    graph_NN = torch.sparse_coo_tensor(edges_2E, weights_E, (nodes, nodes), check_invariants=False).coalesce()
    parts = []
    for block_M in torch.arange(classes, device=images_TD.device).split(CLASSES_AT_ONCE):
        labels_NM = images_TD.new_zeros(nodes, len(block_M))
        labels_NM[block_M, torch.arange(len(block_M), device=block_M.device)] = 1
        parts.append(_conjugate_gradients(graph_NN, alpha, labels_NM))
    return torch.cat(parts, dim=1)


def _graph_edges(
    queries_QD: Tensor, near_images: tuple[Tensor, Tensor], texts_CD: Tensor, neighbours: int, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, node and weight of each query's edges to its nearest images and texts, (Q, N) each."""
    image_QN, image_place_QN = near_images
    text_QN, text_place_QN = nearest(queries_QD, texts_CD, neighbours)
    nodes_QN = torch.cat([len(texts_CD) + image_place_QN, text_place_QN], dim=1)
    weights_QN = torch.cat([image_QN.clamp_min(0), text_QN.clamp_min(0) ** gamma], dim=1)
    rows_QN = torch.arange(len(queries_QD), device=nodes_QN.device)[:, None].expand_as(nodes_QN)
    return rows_QN, nodes_QN, weights_QN


def _conjugate_gradients(graph_NN: Tensor, alpha: float, labels_NM: Tensor, *, steps: int = 50) -> Tensor:
    """Solve (I - alpha graph) F = labels for all columns, to a relative residual of 1e-6 (8 steps at alpha 0.3)."""
    solution_NM, residual_NM = torch.zeros_like(labels_NM), labels_NM.clone()
    direction_NM, square_M = residual_NM.clone(), residual_NM.square().sum(0)
    goal_M = 1e-12 * square_M
    for _ in range(steps):
        if bool((square_M <= goal_M).all()):
            break
        image_NM = direction_NM - alpha * torch.sparse.mm(graph_NN, direction_NM)
        step_M = square_M / (direction_NM * image_NM).sum(0).clamp_min(1e-30)
        solution_NM += step_M * direction_NM
        residual_NM -= step_M * image_NM
        before_M, square_M = square_M, residual_NM.square().sum(0)
        direction_NM = residual_NM + square_M / before_M.clamp_min(1e-30) * direction_NM
    return solution_NM


# --- TransCLIP ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """TransCLIP's Gaussians and assignments."""

    mean_CD: Tensor
    """Means, L2-normalised."""
    variance_D: Tensor
    """Variances, shared by all classes."""
    assignment_TC: Tensor
    """Assignments of the target images to classes before the last update; rows sum to 1."""
    logits_TC: Tensor
    """Logarithm of the last assignments, up to a constant of each image."""


def transclip(
    near_images: NearestImages,
    texts_CD: Tensor,
    logit_scale: float,
    *,
    neighbours: int = 3,
    confident: int = 8,
    rounds: int = 10,
    updates: int = 5,
    temperature: float = 0.5,
    text_weight: float = 1.0,
) -> Mixture:
    """Fit TransCLIP's mixture to the target images; `temperature` is tau / s, `text_weight` lambda."""
    images_TD = near_images.images_TD
    images, dim = images_TD.shape
    prior_TC = text_weight * (logit_scale * images_TD @ texts_CD.T).log_softmax(-1)
    z_TC = (logit_scale * images_TD @ texts_CD.T).softmax(-1)
    weights_TN, places_TN = near_images.of_each(neighbours, apart=True)
    rows_TN = torch.arange(images, device=places_TN.device)[:, None].expand_as(places_TN)
    edges_2E = torch.stack([rows_TN.flatten(), places_TN.flatten()])
    both_2E, weights_E = torch.cat([edges_2E, edges_2E.flip(0)], dim=1), weights_TN.flatten().repeat(2)
    laplacian_TT = torch.sparse_coo_tensor(
        both_2E, weights_E / (2 * neighbours), (images, images), check_invariants=False
    ).coalesce()

    top = z_TC.topk(min(confident, images), dim=0)  # (confident, C)
    mean_CD = F.normalize(torch.einsum("nc,ncd->cd", top.values, images_TD[top.indices]), dim=-1)
    variance_D = images_TD.new_full((dim,), 1 / dim)
    for last in [False] * rounds + [True]:
        own_TC = prior_TC + _log_density(images_TD, mean_CD, variance_D) / (temperature * logit_scale)
        for _ in range(updates):
            before_TC = z_TC
            logits_TC = own_TC + torch.sparse.mm(laplacian_TT, z_TC)
            z_TC = logits_TC.softmax(-1)
        if not last:
            mean_CD = F.normalize(z_TC.T @ images_TD, dim=-1)
            # sum over images and classes of z (x - mu)^2, multiplied out: rows of z sum to 1
            cross_D = (images_TD * (z_TC @ mean_CD)).sum(0)
            squares_D = images_TD.square().sum(0) - 2 * cross_D + z_TC.sum(0) @ mean_CD.square()
            variance_D = (squares_D / images).clamp_min(SMALLEST)
    return Mixture(mean_CD=mean_CD, variance_D=variance_D, assignment_TC=before_TC, logits_TC=logits_TC)


def _log_density(images_BD: Tensor, mean_CD: Tensor, variance_D: Tensor) -> Tensor:
    """Compute -1/2 sum_d (x_d - mu_cd)^2 / var_d (B, C), without the part that is equal for all classes."""
    return (images_BD / variance_D) @ mean_CD.T - (mean_CD.square() / variance_D).sum(-1) / 2


# --- InMaP ----------------------------------------------------------------------------------------------------------


def sinkhorn(probabilities_TC: Tensor, *, rounds: int = 20) -> Tensor:
    """Balance probabilities (T, C): every class gets equal mass, rows sum to 1 (Cuturi, 2013)."""
    balanced_TC = probabilities_TC.clone()
    for _ in range(rounds):
        balanced_TC /= balanced_TC.sum(0).clamp_min(1e-30)
        balanced_TC /= balanced_TC.sum(1, keepdim=True).clamp_min(1e-30)
    return balanced_TC


def intra_modal_proxies(
    images_TD: Tensor,
    texts_CD: Tensor,
    logit_scale: float,
    *,
    balance: bool = True,
    text_temperature: float = 1.0,
    image_temperature: float = 4.0,
    hard_from: float = 0.6,
    step: float = 10.0,
    steps: int = 2000,
) -> Tensor:
    """Learn InMaP's class proxies (C, D), L2-normalised, from pseudo-labels of the texts.

    Temperatures are in units of 1 / `logit_scale`. `hard_from`: probability from which a pseudo-label becomes one-hot.
    The step size halves whenever the gradient has grown; the descent ends where no proxy moves any more (some 240 of
    the 2,000 steps on the embedded images, with the same predictions).
    """
    labels_TC = (logit_scale / text_temperature * images_TD @ texts_CD.T).softmax(-1)
    if balance:
        labels_TC = sinkhorn(labels_TC)
    best = labels_TC.max(-1)
    one_hot_TC = F.one_hot(best.indices, len(texts_CD)).to(labels_TC)
    labels_TC = torch.where(best.values[:, None] > hard_from, one_hot_TC, labels_TC)
    wanted_CD = labels_TC.T @ images_TD
    temperature = image_temperature / logit_scale
    proxies_CD, norm_before = texts_CD.clone(), texts_CD.new_tensor(torch.inf)
    rate = texts_CD.new_tensor(step / (len(images_TD) * temperature))
    for i in range(steps):
        probabilities_TC = (images_TD @ (proxies_CD / temperature).T).softmax(-1)
        gradient_CD = probabilities_TC.T @ images_TD - wanted_CD
        norm = gradient_CD.norm()
        rate = torch.where(norm > norm_before, rate / 2, rate)  # stays on the device: no step waits for a number
        norm_before = norm
        before_CD, proxies_CD = proxies_CD, F.normalize(proxies_CD - rate * gradient_CD, dim=-1)
        # asked now and then: on a GPU each question waits for the device
        if i % 20 == 19 and bool((proxies_CD - before_CD).abs().max() < STILL):
            break
    return proxies_CD


# --- as methods of a study ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ZLaPConfig(BaselineConfig):
    """ZLaP (Stojnic et al., 2024): label propagation over a graph of images and class texts."""

    neighbours: int = 5
    """Nearest images, and nearest texts, of each image; static."""
    gamma: float = 5.0
    """Power of the cosines of images with texts, which are smaller than those among images; static."""
    alpha: float = 0.3
    """Share of a label that each edge passes on, below 1; static."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha >= 1:
            raise ValueError(f"alpha must be below 1, got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class TransCLIPConfig(BaselineConfig):
    """TransCLIP, zero-shot form (Zanella et al., 2024): a Gaussian mixture held by texts and neighbours."""

    neighbours: int = 3
    """Nearest images of each image; static."""
    temperature: float = 0.5
    """tau, which divides the Gaussians' log density, in units of CLIP's logit scale; static."""
    text_weight: float = 1.0
    """lambda, how strongly CLIP's own predictions hold the assignments; static."""


@dataclass(frozen=True, kw_only=True)
class InMaPConfig(BaselineConfig):
    """InMaP (Qian et al., 2023): class proxies among the images, from the texts' pseudo-labels."""

    balance: Literal["sinkhorn", "none"] = "sinkhorn"
    """Whether pseudo-labels are balanced over classes; static."""
    text_temperature: float = 1.0
    """Temperature of the pseudo-labels, in units of CLIP's; static."""
    image_temperature: float = 4.0
    """Temperature of the proxies' predictions, in units of CLIP's; static."""
    hard_from: float = 0.6
    """Probability from which a pseudo-label becomes one-hot; static."""
    steps: int = 2000
    """Descent steps at most; static."""


class Transductive(StackedModule):
    """K lanes of a transductive method: all fields are static and nothing is trained, so all lanes are the same.

    `target_features_TD`: the unlabelled target images. The method is fitted when logits are first asked for.
    """

    text_features_CD: Tensor

    def __init__(self, configs: Sequence[BaselineConfig], *, texts: ClassTexts) -> None:
        super().__init__()
        check_static(configs)
        self.logit_scale = texts.logit_scale
        self.register_buffer("text_features_CD", texts.features_CD)

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Return zero (K,): there is nothing to train."""
        return {"none": images_KBD.new_zeros(len(images_KBD))}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return zero (K,)."""
        return losses["none"]

    @abstractmethod
    def target_logits(self, rows_B: Tensor) -> Tensor:
        """Return the logits (B, C) of some target images; fit the method to all of them if it is not fitted yet."""

    @abstractmethod
    def other_logits(self, images_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of images that are not of the target."""


def target_rows(images_BD: Tensor, target_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return which target image each image is (B,), and whether it is one at all: by its features.

    Features of the same image, encoded again in another batch, differ in their last digits: only those that equal none
    by every digit are compared with all.
    """
    first_T, order_T = target_TD[:, 0].sort(stable=True)
    place_B = torch.searchsorted(first_T, images_BD[:, 0].contiguous()).clamp_max(len(first_T) - 1)
    rows_B = order_T[place_B]
    known_B = (images_BD == target_TD[rows_B]).all(-1)
    rest_R = (~known_B).nonzero().flatten()
    if len(rest_R):
        images_RD = images_BD[rest_R]
        cosine_RN, place_RN = nearest(images_RD, target_TD, 4)
        # of images that are nearly the same, rounding may put another one first
        equal_RN = torch.stack([(images_RD == target_TD[place_R]).all(-1) for place_R in place_RN.T], dim=1)
        # without an equal one, the nearest
        rows_B[rest_R] = place_RN.gather(1, equal_RN.int().argmax(1, keepdim=True))[:, 0]
        known_B[rest_R] = equal_RN.any(1) | (cosine_RN[:, 0] > 1 - SAME)
    return rows_B, known_B


def logits_of(
    rows_B: Tensor,
    known_B: Tensor,
    of_target: Callable[[Tensor], Tensor],
    of_others: Callable[[Tensor], Tensor],
    features_BD: Tensor,
) -> Tensor:
    """Return logits (B, C): of target images by their rows, of others by their features.

    `rows_B`, `known_B`: what `target_rows` says. What others would get costs a comparison with all target images.
    """
    logits_BC = of_target(rows_B)
    others_R = (~known_B).nonzero().flatten()
    return logits_BC.index_copy(0, others_R, of_others(features_BD[others_R])) if len(others_R) else logits_BC


class OnNeighbours(Transductive):
    """A method that classifies an image of the target by what the target's fit says of it, any other by its neighbours.

    The target's features are part of the lane: an exported adapter is fitted to them again.
    """

    target_KTD: Tensor

    def __init__(
        self,
        configs: Sequence[BaselineConfig],
        *,
        texts: ClassTexts,
        target_features_TD: Tensor,
        near_images: NearestImages | None = None,
    ) -> None:
        """`near_images`: those of the target, where another method has them, too."""
        super().__init__(configs, texts=texts)
        self.register_lane("target_KTD", target_features_TD.expand(len(configs), -1, -1))
        self.config, self._near_images = configs[0], near_images

    @property
    def target_TD(self) -> Tensor:
        """Return the target's features as they are computed with."""
        return unit_features(self.target_KTD[0])

    @property
    def near_images(self) -> NearestImages:
        """Return the nearest of the target's images to each of them."""
        return self._near_images or NearestImages(self.target_TD)

    @torch.no_grad()
    def logits(self, images_BD: Tensor) -> Tensor:
        rows_B, known_B = target_rows(images_BD, self.target_TD)
        logits_BC = logits_of(rows_B, known_B, self.target_logits, self.other_logits, images_BD)
        return logits_BC.expand(len(self.target_KTD), -1, -1)


class ZLaP(OnNeighbours):
    """ZLaP: an image of the target takes its node's labels, any other image those of its neighbours."""

    config: ZLaPConfig
    propagated_NC: Tensor | None = None

    def _propagated(self) -> Tensor:
        if self.propagated_NC is None:
            c = self.config
            self.propagated_NC = label_propagation(
                self.near_images, self.text_features_CD, neighbours=c.neighbours, gamma=c.gamma, alpha=c.alpha
            )
        return self.propagated_NC

    def target_logits(self, rows_B: Tensor) -> Tensor:
        return self._propagated()[len(self.text_features_CD) + rows_B].clamp_min(SMALLEST).log()

    def other_logits(self, images_BD: Tensor) -> Tensor:
        c, labels_NC = self.config, self._propagated()
        near_images = nearest(images_BD, self.target_TD, c.neighbours)
        _, nodes_BN, weights_BN = _graph_edges(images_BD, near_images, self.text_features_CD, c.neighbours, c.gamma)
        reached_BC = labels_NC.new_zeros(len(images_BD), labels_NC.shape[1])
        for nodes_B, weights_B in zip(nodes_BN.T, weights_BN.T, strict=True):  # (B, N, C) would be ten times larger
            reached_BC += weights_B[:, None] * labels_NC[nodes_B]
        return reached_BC.clamp_min(SMALLEST).log()


class TransCLIP(OnNeighbours):
    """TransCLIP: an image of the target takes its own assignment, any other image one by the fitted mixture."""

    config: TransCLIPConfig
    mixture: Mixture | None = None

    def _fitted(self) -> Mixture:
        if self.mixture is None:
            c = self.config
            self.mixture = transclip(
                self.near_images,
                self.text_features_CD,
                self.logit_scale,
                neighbours=c.neighbours,
                temperature=c.temperature,
                text_weight=c.text_weight,
            )
        return self.mixture

    def target_logits(self, rows_B: Tensor) -> Tensor:
        return self._fitted().logits_TC[rows_B]

    def other_logits(self, images_BD: Tensor) -> Tensor:
        c, fit = self.config, self._fitted()
        logits_BC = c.text_weight * (self.logit_scale * images_BD @ self.text_features_CD.T).log_softmax(-1)
        logits_BC += _log_density(images_BD, fit.mean_CD, fit.variance_D) / (c.temperature * self.logit_scale)
        weights_BN, places_BN = nearest(images_BD, self.target_TD, c.neighbours)
        for weights_B, places_B in zip(weights_BN.T, places_BN.T, strict=True):
            logits_BC += weights_B[:, None] * fit.assignment_TC[places_B] / (2 * c.neighbours)
        return logits_BC


class InMaP(Transductive):
    """InMaP: logits = s x w^T with the proxies w, for any image; they are all that an exported adapter needs."""

    proxies_KCD: Tensor
    fitted_K: Tensor
    target_features_TD: Tensor

    def __init__(self, configs: Sequence[InMaPConfig], *, texts: ClassTexts, target_features_TD: Tensor) -> None:
        super().__init__(configs, texts=texts)
        self.config = configs[0]
        self.register_buffer("target_features_TD", target_features_TD)
        self.register_lane("proxies_KCD", texts.features_CD.expand(len(configs), -1, -1))
        self.register_lane("fitted_K", torch.zeros(len(configs), dtype=torch.bool))

    def _proxies(self) -> Tensor:
        """Return the proxies (K, C, D), learned when first asked for."""
        if not bool(self.fitted_K.all()):
            c = self.config
            self.proxies_KCD[:] = intra_modal_proxies(
                unit_features(self.target_features_TD),
                self.text_features_CD,
                self.logit_scale,
                balance=c.balance == "sinkhorn",
                text_temperature=c.text_temperature,
                image_temperature=c.image_temperature,
                hard_from=c.hard_from,
                steps=c.steps,
            )
            self.fitted_K.fill_(True)
        return self.proxies_KCD

    @torch.no_grad()
    def logits(self, images_BD: Tensor) -> Tensor:
        return self.logit_scale * images_BD @ self._proxies().mT

    def target_logits(self, rows_B: Tensor) -> Tensor:
        return self.other_logits(unit_features(self.target_features_TD[rows_B]))

    def other_logits(self, images_BD: Tensor) -> Tensor:
        return self.logits(images_BD)[0]
