"""SRE-CLIP Adapter: semantic-relation enhanced CLIP for domain-adaptive zero-shot learning.

Labelled source images of seen classes and unlabelled target images of all classes adapt a frozen CLIP: an attention
adapter on the image feature, and class prototypes from a graph network over WordNet with a linear residual path.
Frozen: CLIP itself (its features come in). Trained: everything here. An untrained module *is* zero-shot CLIP.

Source: Yu et al., 2025, arXiv 2510.21808 (graph prototypes, residual projection, L_srs, L_align). Ours: the start at
CLIP, the three losses on unlabelled target images, L_align as a cosine. All features are L2-normalised; s is CLIP's
logit scale.

Prototypes P (C, D), from node texts T (N, D) and class texts t (C, D):

    H_0 = T,  H_l = act(A H_(l-1) W_l)               A: normalised adjacency with self loops, see graph_conv.py
    P   = normalise(H_last[classes] + r t W_r)       at the start W_r = I and the last W_l = 0, so P = t

Image features f(x) (D,), from a feature x of CLIP:

    f(x)   = normalise(x + rho Attn(x))              at the start Attn = 0, so f(x) = x
    memory:  Attn(x) = [softmax(q_h K_h^T / sqrt(A / H)) V_h] over heads h, times W_o;  q = x W_q, learned K, V (M, A)
    tokens:  x cut into D / E tokens, plus positions; one self-attention among them, times W_o

Losses, on source images x with label y and target images u ("mean" is over the batch):

    L_cls   = mean of CE(s f(x) P^T, y) over seen classes: over all of them it would push unseen prototypes away
    q_c     = softmax(P_c P^T / t_rel)               soft labels (C,), without gradient
    L_srs   = mean over x of KL(q_y || softmax(f(x) P^T / t_rel))
            + mean over trusted u of KL(q_c || softmax(f(u) P^T / t_rel)), c the best class of p(u); trusted are
              those u whose p(u) of c reaches the threshold
    L_align = mean over classes c of CE(s f(t_c) P^T, c): texts pass the image adapter, unseen ones too; at each step
              over all classes, or over `align_texts` of more, whose expectation is the same (ours);
              or of 1 - f(t_c) P_c: the cross-entropy is 1e-5 where class texts are far apart, and then pulls on nothing
    p(u)    = softmax(s f(u) P^T / t_target)
    L_ent   = mean of the entropy of p(u)
    L_div   = KL(mean of p(u) || prior)              of a uniform prior: log C - entropy of the mean
    L_bal   = KL of two-valued distributions, prior against predicted unseen mass m of the mean of p(u):
              pi log(pi / m) + (1 - pi) log((1 - pi) / (1 - m)),  pi = min(unseen_prior x unseen mass of prior, 0.99)
              prior: 1 / C for every class, or estimated from the target's features (`estimated_prior`; ours): with
              1 / C both losses pull a target on which some classes are rare towards one on which none is
    L       = L_cls + w_srs L_srs + w_align L_align + w_ent L_ent + w_div L_div + w_bal L_bal

Prediction: argmax over all C classes of s f(x) P^T, or of a transductive head on f and P (`heads.py`; ours).

Suffixes: K lanes, B batch, C classes, D CLIP dimension, N graph nodes, M memory slots, A attention width, H heads,
T tokens, E token width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data_parallel import over_workers, workers
from models.graph_conv import GraphConv
from models.heads import FittedHead, Head, fitted_heads
from models.stacked import (
    LaneModule,
    StackedModule,
    check_fields,
    check_static,
    chunks,
    lane_field,
    lane_normal,
    normalise,
    unit_features,
)
from models.transductive import logits_of, target_rows

TOKENS = 4
"""Tokens that the tokens adapter makes of a feature, unless their width is given."""


@dataclass(frozen=True, kw_only=True)
class SREConfig:
    """One configuration of the SRE-CLIP Adapter; the first block is static, the second may differ between lanes."""

    LANE_KNOBS: ClassVar[frozenset[str]] = frozenset(
        "lr weight_decay rho residual_scale w_srs w_align w_ent w_div w_bal relation_temperature "
        "pseudo_label_threshold target_temperature unseen_prior".split()
    )

    adapter: Literal["memory", "tokens", "none"] = "memory"
    """Image adapter: attention over learned slots, self-attention over slices of the feature, or none (ablation)."""
    heads: int = 4
    """Attention heads."""
    slots: int = 32
    """Learned key/value slots of the memory adapter."""
    attention_width: int = 64
    """Width of queries, keys and values of the memory adapter."""
    token_dim: int = 0
    """Width of one token of the tokens adapter; divides D. 0: a quarter of D."""
    gcn_layers: int = 1
    """Graph layers, 0 for none (ablation)."""
    gcn_width: int = 128
    """Hidden width between graph layers."""
    adjacency: Literal["row", "symmetric", "identity"] = "row"
    """Normalisation of the adjacency; `identity` cuts the graph's edges (control: the same network without a graph)."""
    residual: bool = True
    """Linear residual projection beside the graph network (ablation: False)."""
    class_text: Literal["name", "lemmas", "both"] = "name"
    """Text behind a class node: the benchmark's class name, its WordNet lemmas, or the mean of both."""
    align: Literal["cross-entropy", "cosine"] = "cross-entropy"
    """Form of L_align: the article's cross-entropy among all classes, or 1 - cosine of a text and its own prototype."""
    align_texts: int = 512
    """Class texts in L_align at each step, at most; of 5,000 classes all would be most of a step's arithmetic."""
    class_prior: Literal["uniform", "estimated"] = "uniform"
    """Shares of the classes on the target that L_div and L_bal pull to: equal ones, or an estimate without labels."""
    head: Head = "none"
    """Who classifies at inference: the prototypes (none), or a transductive head on adapted features and prototypes."""
    batch_size: int = 256
    """Images of each domain per step."""

    lr: float = 1e-3
    """AdamW's peak learning rate (linear warm-up, cosine decay)."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    rho: float = 1.0
    """Strength of the image adapter, f(x) = normalise(x + rho Attn(x))."""
    residual_scale: float = 1.0
    """r of the prototypes, P = normalise(GCN(T) + r T W_r)."""
    w_srs: float = 1.0
    """Weight of the semantic relation structure loss."""
    w_align: float = 1.0
    """Weight of the cross-modal alignment retention loss."""
    w_ent: float = 1.0
    """Weight of the entropy of target predictions."""
    w_div: float = 1.0
    """Weight of the diversity of target predictions."""
    w_bal: float = 1.0
    """Weight of the balance of seen and unseen mass on the target."""
    relation_temperature: float = 0.1
    """t_rel of the relation structure's soft labels."""
    pseudo_label_threshold: float = 0.5
    """Confidence from which a target prediction counts as a label in L_srs."""
    target_temperature: float = 1.0
    """Temperature of target predictions in the unlabelled losses."""
    unseen_prior: float = 1.0
    """Expected unseen mass on the target, in units of the unseen classes' share by `class_prior`."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            at_least_one=("heads", "slots", "attention_width", "gcn_width", "batch_size", "align_texts"),
            positive=("lr", "rho", "residual_scale", "relation_temperature", "target_temperature", "unseen_prior"),
            not_negative=("token_dim", "weight_decay", "w_srs", "w_align", "w_ent", "w_div", "w_bal"),
        )
        if not 0 <= self.gcn_layers <= 3:
            raise ValueError(f"gcn_layers must be 0 to 3, got {self.gcn_layers}")
        if not self.residual and self.gcn_layers == 0:
            raise ValueError("residual must be True when gcn_layers is 0: no prototype would be left, got False")
        if self.attention_width % self.heads:
            raise ValueError(f"attention_width must be a multiple of heads={self.heads}, got {self.attention_width}")
        if not 0 <= self.pseudo_label_threshold <= 1:
            raise ValueError(f"pseudo_label_threshold must lie in [0, 1], got {self.pseudo_label_threshold}")


@dataclass(frozen=True, kw_only=True)
class ClassGraph:
    """Text features of classes and of the WordNet nodes above them, and the edges between these."""

    name_features_CD: Tensor
    """Text feature of each class name (template ensemble), L2-normalised."""
    node_features_ND: Tensor
    """Text feature of each synset (mean over lemmas x templates), L2-normalised."""
    class_node_C: Tensor
    """Node of each class, int64."""
    edges_E2: Tensor
    """Child and parent node of each hypernym edge, int64."""
    logit_scale: float
    """CLIP's exp(logit scale)."""

    def text_features(self, class_text: str) -> Tensor:
        """Return node features T (N, D), whose class rows are the texts that `class_text` names."""
        names, lemmas = self.name_features_CD, self.node_features_ND[self.class_node_C]
        rows = {"name": names, "lemmas": lemmas, "both": F.normalize(names + lemmas, dim=-1)}[class_text]
        return self.node_features_ND.index_copy(0, self.class_node_C, rows)


class MemoryAdapter(LaneModule):
    """Multi-head attention of the feature over M learned key/value slots; output projection starts at zero."""

    def __init__(self, config: SREConfig, dim: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        width = config.attention_width
        self.heads = config.heads
        self.query_KDA = nn.Parameter(lane_normal(generators, dim, width, std=1.0))
        self.keys_KMA = nn.Parameter(lane_normal(generators, config.slots, width, std=1.0))
        self.values_KMA = nn.Parameter(lane_normal(generators, config.slots, width, std=1.0))
        self.out_KAD = nn.Parameter(torch.zeros(len(generators), width, dim))

    def forward(self, x_KBD: Tensor, rho_K11: Tensor) -> Tensor:
        """Return x + rho Attn(x), not normalised."""

        def split(t: Tensor) -> Tensor:  # (K, *, A) -> (K, H, *, A/H)
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(x_KBD @ self.query_KDA), split(self.keys_KMA), split(self.values_KMA)
        )
        return torch.baddbmm(x_KBD, attended.transpose(1, 2).flatten(2), rho_K11 * self.out_KAD)


class TokensAdapter(LaneModule):
    """The feature cut into D / E tokens, one self-attention block over them; output projection starts at zero."""

    def __init__(self, config: SREConfig, dim: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        width = config.token_dim or dim // TOKENS
        if dim % width or width % config.heads:
            raise ValueError(
                f"token_dim must divide the CLIP dimension {dim} and be a multiple of heads={config.heads}, got {width}"
            )
        self.heads, self.token_dim = config.heads, width
        self.position_KTE = nn.Parameter(lane_normal(generators, dim // width, width, std=width**-0.5))
        self.qkv_KEF = nn.Parameter(lane_normal(generators, width, 3 * width, std=1.0))
        self.out_KEE = nn.Parameter(torch.zeros(len(generators), width, width))

    def forward(self, x_KBD: Tensor, rho_K11: Tensor) -> Tensor:
        """Return x + rho Attn(x), not normalised."""
        k, b, _ = x_KBD.shape
        tokens = x_KBD.unflatten(-1, (-1, self.token_dim)) + self.position_KTE[:, None]
        qkv = tokens.flatten(1, 2) @ self.qkv_KEF  # (K, B*T, 3E)
        q, key, value = qkv.view(k, b, -1, 3, self.heads, self.token_dim // self.heads).permute(3, 0, 1, 4, 2, 5)
        attended = F.scaled_dot_product_attention(q, key, value)  # (K, B, H, T, E/H)
        attended_KNE = attended.transpose(2, 3).reshape(k, -1, self.token_dim)
        return torch.baddbmm(x_KBD.reshape(attended_KNE.shape), attended_KNE, rho_K11 * self.out_KEE).view(k, b, -1)


class SREClip(StackedModule):
    """K lanes of the SRE-CLIP Adapter.

    `configs`: one per lane, equal in all static fields (`ValueError` otherwise). `seeds`: each lane's own.
    `seen_KC`: bool, the classes whose labels each lane may use; all others are unseen to it. `target_features_TD`:
    the unlabelled target images, which a head is fitted to when logits are first asked for after training.
    """

    seen_KC: Tensor
    unseen_bias_KC: Tensor
    text_features_CD: Tensor
    relative_prior_C: Tensor
    align_order_C: Tensor
    # lane knobs that the forward pass uses, (K,) each
    rho: Tensor
    residual_scale: Tensor
    relation_temperature: Tensor
    pseudo_label_threshold: Tensor
    target_temperature: Tensor
    unseen_prior: Tensor
    target_KTD: Tensor  # with a head

    def __init__(
        self,
        configs: Sequence[SREConfig],
        *,
        seeds: Sequence[int],
        seen_KC: Tensor,
        graph: ClassGraph,
        target_features_TD: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_static(configs)
        config = configs[0]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        text_features_ND = graph.text_features(config.class_text)
        dim = text_features_ND.shape[1]
        self.logit_scale = graph.logit_scale
        self.align, self.align_texts = config.align, config.align_texts
        self.register_buffer("text_features_CD", text_features_ND[graph.class_node_C])
        relative_C = torch.ones(seen_KC.shape[1])  # shares in units of equal ones
        if config.class_prior == "estimated":
            if target_features_TD is None:
                raise ValueError("target_features_TD must be given with class_prior=estimated, got None")
            target_TD = unit_features(target_features_TD)
            relative_C *= len(relative_C) * estimated_prior(target_TD, self.text_features_CD, self.logit_scale)
        self.register_buffer("relative_prior_C", relative_C)
        order_C = torch.randperm(seen_KC.shape[1], generator=torch.Generator().manual_seed(0))
        self.register_buffer("align_order_C", order_C)
        self.register_lane("seen_KC", seen_KC)
        self.register_lane("unseen_bias_KC", torch.zeros(seen_KC.shape).masked_fill(~seen_KC, -math.inf))
        for name in SREConfig.LANE_KNOBS - {"lr", "weight_decay"}:
            self.register_lane(name, lane_field(configs, name))

        adapters = {"memory": MemoryAdapter, "tokens": TokensAdapter}
        self.adapter = adapters[config.adapter](config, dim, generators) if config.adapter != "none" else None
        self.gcn = None
        if config.gcn_layers:
            no_edges = torch.empty(0, 2, dtype=torch.int64)
            self.gcn = GraphConv(
                text_features_ND=text_features_ND,
                edges_E2=no_edges if config.adjacency == "identity" else graph.edges_E2,
                class_node_C=graph.class_node_C,
                layers=config.gcn_layers,
                width=config.gcn_width,
                normalisation="symmetric" if config.adjacency == "symmetric" else "row",
                zero_init=config.residual,
                generators=generators,
            )
        self.residual_KDD = nn.Parameter(torch.eye(dim).repeat(len(configs), 1, 1)) if config.residual else None
        self.head, self._heads = config.head, list[FittedHead]()
        if config.head != "none":
            if target_features_TD is None:
                raise ValueError(f"target_features_TD must be given with head={config.head}, got None")
            self.register_lane("target_KTD", target_features_TD.expand(len(configs), -1, -1))  # exported with the lane

    def adapt(self, features_KBD: Tensor) -> Tensor:
        """Return adapted features f(x) (K, B, D), L2-normalised, of image or text features."""
        if self.adapter is None:
            return features_KBD
        return normalise(self.adapter(features_KBD, self.rho[:, None, None]))

    def prototypes(self) -> Tensor:
        """Compute class prototypes P (K, C, D), L2-normalised."""
        parts = []
        if self.residual_KDD is not None:
            parts.append(self.residual_scale[:, None, None] * (self.text_features_CD @ self.residual_KDD))
        if self.gcn is not None:
            parts.append(self.gcn())
        return normalise(parts[0] + parts[1] if len(parts) == 2 else parts[0])

    def logits(self, images_BD: Tensor) -> Tensor:
        """Compute logits over all classes (K, B, C) of image features (B, D) or (K, B, D)."""
        features_KBD = self.adapt(images_BD.expand(self.rho.shape[0], -1, -1))
        if self.head == "none":
            return self.logit_scale * features_KBD @ self.prototypes().mT
        return self._head_logits(images_BD, features_KBD)

    @torch.no_grad()
    def _head_logits(self, images_BD: Tensor, features_KBD: Tensor) -> Tensor:
        """Compute the head's logits (K, B, C) of images (B, D), whose adapted features are given."""
        target_TD = unit_features(self.target_KTD[0])
        if not self._heads:
            features_KTD, prototypes_KCD = self._embed(target_TD)
            self._heads = [
                fitted_heads(features_TD, prototypes_CD, self.logit_scale, [self.head])[self.head]
                for features_TD, prototypes_CD in zip(features_KTD, prototypes_KCD, strict=True)
            ]
        rows_B, known_B = target_rows(images_BD, target_TD)
        return torch.stack(
            [
                logits_of(rows_B, known_B, head.target_logits, head.logits, features_BD)
                for head, features_BD in zip(self._heads, features_KBD, strict=True)
            ]
        )

    def embed(self, images_TD: Tensor) -> tuple[Tensor, Tensor] | None:
        return self._embed(images_TD) if self.head == "none" else None

    @torch.no_grad()
    def _embed(self, images_TD: Tensor) -> tuple[Tensor, Tensor]:
        lanes = self.rho.shape[0]
        features_KTD = torch.cat([self.adapt(part_BD.expand(lanes, -1, -1)) for part_BD in chunks(images_TD)], dim=1)
        return features_KTD, self.prototypes()

    def keep(self, lanes: Tensor) -> None:
        """Drop all lanes but `lanes`."""
        super().keep(lanes)
        self._heads = []

    def join(self, other: Self) -> None:
        """Append another module's lanes."""
        super().join(other)
        self._heads = []

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        """Compute all losses by name, each (K,), of labelled source images and unlabelled target images.

        Raises `ValueError` without target images.
        """
        self._heads = []  # of the weights before this step
        if target_KBD is None:
            raise ValueError("target_KBD must be given: SRE-CLIP adapts to unlabelled target images, got None")
        # relation logits, cosines / t_rel: the scale is cheaper on prototypes than on images x classes
        prototypes_KCD = self.prototypes()
        sharp_KCD = prototypes_KCD / self.relation_temperature[:, None, None]
        classes_KN = self._align_classes(labels_KB)
        texts_KND = self.text_features_CD[classes_KN]
        source_KBC, target_KBC, text_KNC = (self.adapt(x) @ sharp_KCD.mT for x in (images_KBD, target_KBD, texts_KND))
        scale_K11 = self.logit_scale * self.relation_temperature[:, None, None]  # ... times this are CLIP's logits
        log_target_KBC = F.log_softmax(scale_K11 / self.target_temperature[:, None, None] * target_KBC, dim=-1)
        p_target_KBC = log_target_KBC.exp()
        mean_KC = over_workers(p_target_KBC.mean(1))
        log_confidence_KB, pseudo_KB = log_target_KBC.detach().max(-1)
        trusted_KB = (log_confidence_KB.exp() >= self.pseudo_label_threshold[:, None]).float()
        both_K2B = torch.cat([labels_KB, pseudo_KB], dim=1)
        soft_K2BC, entropy_K2B = soft_labels(prototypes_KCD.detach(), sharp_KCD.detach(), both_K2B)
        of_source, of_target = slice(labels_KB.shape[1]), slice(labels_KB.shape[1], None)
        # over all columns the cross-entropy would push every unseen prototype away from the images
        seen_logits = torch.addcmul(self.unseen_bias_KC[:, None], source_KBC, scale_K11)
        if self.align == "cosine":
            own_KN = text_KNC.gather(2, classes_KN[:, :, None])[:, :, 0]
            align_KN = 1 - self.relation_temperature[:, None] * own_KN
        else:
            align_KN = _cross_entropy(scale_K11 * text_KNC, classes_KN)
        return {
            "cls": _cross_entropy(seen_logits, labels_KB).mean(1),
            "srs": _relation_loss(source_KBC, soft_K2BC[:, of_source], entropy_K2B[:, of_source]).mean(1)
            + (_relation_loss(target_KBC, soft_K2BC[:, of_target], entropy_K2B[:, of_target]) * trusted_KB).sum(1)
            / over_workers(trusted_KB.sum(1)).clamp_min(1 / workers()[1]),
            "align": align_KN.mean(1),
            "ent": -(p_target_KBC * log_target_KBC).sum((1, 2)) / p_target_KBC.shape[1],
            "div": math.log(mean_KC.shape[1])
            + (mean_KC * (mean_KC.clamp_min(1e-12).log() - self.relative_prior_C.log())).sum(-1),
            "bal": self._balance(mean_KC),
        }

    def _align_classes(self, labels_KB: Tensor) -> Tensor:
        """Return the classes (K, N) whose texts are in L_align at this step: all, or a run of a fixed random order.

        The run begins where a hash of the lane's own labels says, so it needs no stream of its own: a lane in a pack is
        the lane alone, and every class has the same chance.
        """
        lanes, classes = len(self.rho), len(self.align_order_C)
        if classes <= self.align_texts:
            return torch.arange(classes, device=labels_KB.device).expand(lanes, -1)
        # times a prime: every class may begin a run
        factors_B = torch.arange(1, labels_KB.shape[1] + 1, device=labels_KB.device) * 7919
        begin_K = (labels_KB * factors_B).sum(1) % classes
        run_N = torch.arange(self.align_texts, device=labels_KB.device)
        return self.align_order_C[(begin_K[:, None] + run_N) % classes]

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum (K,): L_cls + sum of w_x L_x."""
        weighted = [getattr(self, f"w_{name}") * losses[name] for name in ("srs", "align", "ent", "div", "bal")]
        return losses["cls"] + torch.stack(weighted).sum(0)

    def _balance(self, mean_KC: Tensor) -> Tensor:
        """Return L_bal (K,); 0 when nothing is unseen."""
        unseen_KC = (~self.seen_KC).float()
        prior = (self.unseen_prior * (unseen_KC * self.relative_prior_C).mean(1)).clamp(max=0.99)
        mass = (mean_KC * unseen_KC).sum(1)
        return (
            torch.xlogy(prior, prior)
            - prior * mass.clamp_min(1e-6).log()
            + torch.xlogy(1 - prior, 1 - prior)
            - (1 - prior) * (1 - mass).clamp_min(1e-6).log()
        )


def estimated_prior(images_TD: Tensor, texts_CD: Tensor, logit_scale: float, *, rounds: int = 100) -> Tensor:
    """Estimate the shares of the classes (C,) among unlabelled images from zero-shot predictions, without labels.

    Expectation maximisation of Saerens et al. (2002): predictions are weighted with the shares, and their mean gives
    the next shares. One image more of each class keeps every share above 0; without images the shares are equal.
    """
    zero_shot_TC = (logit_scale * images_TD @ texts_CD.T).softmax(-1)
    classes = len(texts_CD)
    prior_C = texts_CD.new_full((classes,), 1 / classes)
    for _ in range(rounds):
        weighted_TC = zero_shot_TC * prior_C
        counts_C = (weighted_TC / weighted_TC.sum(-1, keepdim=True).clamp_min(1e-30)).sum(0)
        prior_C = (counts_C + 1) / (len(images_TD) + classes)
    return prior_C


def soft_labels(prototypes_KCD: Tensor, sharp_KCD: Tensor, labels_KB: Tensor) -> tuple[Tensor, Tensor]:
    """Return q_y = softmax(P_y P^T / t_rel) (K, B, C) of the labels, and sum q_y log q_y (K, B).

    `sharp_KCD`: P / t_rel. Of few classes by a table of all, of more classes than labels by the labels' rows alone: of
    5,000 classes and twice 256 images a tenth of the products, with the same result.
    """
    lanes, classes, _ = prototypes_KCD.shape
    # rows of a flat table: several times faster than a gather over (K, B, C)
    row_KB = labels_KB + classes * torch.arange(lanes, device=labels_KB.device)[:, None]
    if classes <= labels_KB.shape[1]:
        log_q_KCC = F.log_softmax(prototypes_KCD @ sharp_KCD.mT, dim=-1)
        q_KCC = log_q_KCC.exp()
        return q_KCC.flatten(0, 1)[row_KB], (q_KCC * log_q_KCC).sum(-1).flatten()[row_KB]
    log_q_KBC = F.log_softmax(prototypes_KCD.flatten(0, 1)[row_KB] @ sharp_KCD.mT, dim=-1)
    q_KBC = log_q_KBC.exp()
    return q_KBC, (q_KBC * log_q_KBC).sum(-1)


def _relation_loss(logits_KBC: Tensor, q_KBC: Tensor, q_log_q_KB: Tensor) -> Tensor:
    """Compute KL(q_y || softmax(logits)) of every image, (K, B)."""
    return q_log_q_KB - (q_KBC * F.log_softmax(logits_KBC, dim=-1)).sum(-1)


def _cross_entropy(logits_KBC: Tensor, labels_KB: Tensor) -> Tensor:
    """Compute the cross-entropy of every row, (K, B)."""
    return F.cross_entropy(logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none").view(labels_KB.shape)
