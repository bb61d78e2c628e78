"""Learnable prompts: context vectors in front of a class name, through CLIP's frozen text encoder.

    t_c = normalise(encoder([start, v_1, ..., v_X, name of c, suffix, EOS]))     (D,)

with X learned vectors v (X, W) for all classes, or X for each class. Source: CoOp (Zhou et al., 2022).

CLIP's text transformer is causal and reads its feature off the end-of-text token (EOS). So nothing behind an EOS
matters, and the tokens before the names, start token and shared context, are equal for all names: a lane's classes are
written one after another into a few long rows, each row with one start and context that all its names see while they
do not see each other. Of a 77-token prompt only the name, its suffix and the EOS are left to compute.

Memory: the backward pass keeps 14 T W floats per layer for a row of T tokens (counted; width W). 1,000 classes of 4
tokens and ViT-B/32's text tower (W = 512, 12 layers) keep 1.4 GB a lane, 26.5 GB if every prompt were 77 tokens. Beyond
`ACTIVATION_BYTES` the backward pass recomputes row by row, and the activations of one row are all it keeps.

Suffixes: K lanes, C classes, M some of them, T tokens of a row, S tokens of a class, X context vectors, W width of the
text encoder, D CLIP dimension.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.stacked import LaneModule, lane_normal

if TYPE_CHECKING:
    from transformers import CLIPModel

CLASSES_PER_ROW = 64
"""Classes that share a row: attention costs T^2 of a row, its one context is spared in all but the first."""

ACTIVATION_BYTES = 2**30
"""Bytes of activations that the backward pass may keep before it recomputes instead."""


class FrozenTextEncoder:
    """A CLIP checkpoint's tokenizer and text tower, float32, never trained.

    Not a `Module` on purpose: methods share one, and it must not show up among the parameters of their lanes.
    Raises `ValueError` if the checkpoint would read its feature off another token than its tokenizer's EOS.
    """

    def __init__(self, clip: "CLIPModel", tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tower = clip.text_model.float().eval().requires_grad_(False)
        self.projection = clip.text_projection.float().eval().requires_grad_(False)
        self.max_tokens: int = self.tower.config.max_position_embeddings
        self.width: int = self.tower.config.hidden_size
        self._check_eos()

    @classmethod
    def load(cls, checkpoint_path: str | Path) -> "FrozenTextEncoder":
        """Load a CLIP checkpoint in Hugging Face format. Raises ValueError for another model than CLIP."""
        # seconds to import, and methods without prompts never need it
        from transformers import AutoConfig, AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = Path(checkpoint_path)
        is_openclip = folder.exists() and not (folder / "config.json").exists()  # it has another configuration
        kind = "OpenCLIP" if is_openclip else AutoConfig.from_pretrained(checkpoint_path).model_type
        if kind != "clip":  # its prompts go past the embedding layer, which is CLIP's own
            raise ValueError(f"learned prompts need the text tower of CLIP, got a {kind} model")
        clip = CLIPModel.from_pretrained(checkpoint_path, dtype=torch.float32)
        return cls(clip, AutoTokenizer.from_pretrained(checkpoint_path))

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a text without start and end tokens; apostrophes are straight, as in cached features."""
        return self.tokenizer(text.replace("’", "'"), add_special_tokens=False)["input_ids"]

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings (..., W)."""
        return self.tower.embeddings.token_embedding(ids.to(self.tower.device))

    def encode(self, tokens_KTW: Tensor, position_T: Tensor, mask_TT: Tensor, eos_M: Tensor) -> Tensor:
        """Compute L2-normalised text features (K, M, D) at the tokens `eos_M` of rows of embeddings; differentiable.

        `position_T`: place of each token in its own prompt. `mask_TT`: bool, whether a token (row) sees another.
        """
        # the embedding module itself refuses rows that are longer than one prompt may be
        hidden_KTW = tokens_KTW + self.tower.embeddings.position_embedding(position_T)
        bias_TT = torch.zeros_like(mask_TT, dtype=hidden_KTW.dtype).masked_fill_(~mask_TT, -math.inf)
        mask = bias_TT.expand(len(hidden_KTW), 1, -1, -1)
        hidden_KTW = self.tower.encoder(inputs_embeds=hidden_KTW, attention_mask=mask).last_hidden_state
        return F.normalize(self.projection(self.tower.final_layer_norm(hidden_KTW[:, eos_M])), dim=-1)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that the backward pass keeps of a token."""
        return 14 * 4 * self.width * self.tower.config.num_hidden_layers

    def to(self, device: torch.device) -> None:
        """Move the weights, unless they are there."""
        if self.tower.device != device:
            self.tower.to(device)
            self.projection.to(device)

    def _check_eos(self) -> None:
        eos, expected = self.tokenizer.eos_token_id, self.tower.config.eos_token_id
        ids = self.tokenizer("a")["input_ids"]
        if eos is None or ids[-1] != eos:
            raise ValueError(f"the tokenizer must end every text with its EOS token {eos}, got ids {ids}")
        # released OpenAI checkpoints say 2: the model then takes the largest id, which is right if that is the EOS
        pooled = max(self.tokenizer.get_vocab().values()) if expected == 2 else expected
        if pooled != eos:
            raise ValueError(
                f"text_config.eos_token_id must be the tokenizer's EOS {eos} (or 2 where that is the largest id), "
                f"got {expected}: the feature would be read off token {pooled}"
            )


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """The texts of a benchmark, for methods that train on base images."""

    features_CD: Tensor
    """CLIP's text feature of each class (base and novel), L2-normalised."""
    logit_scale: float
    """CLIP's exp(logit scale)."""
    names: tuple[str, ...] = ()
    """Class names; needed with learnable prompts only."""
    encoder: FrozenTextEncoder | None = None
    """The checkpoint's text encoder; needed with learnable prompts only."""
    template: str = "a photo of a {}"
    """The benchmark's own prompt, which learnable prompts start from."""

    def starting_template(self, given: str, *, period: bool = False) -> str:
        """Return what learnable prompts start from: a given template, or the benchmark's own.

        `period`: end the benchmark's with one, as the code of CoOp does. Without a word before the name there would be
        nothing to learn: "a photo of a" stands in.
        """
        if given:
            return given
        before, after = self.template.split("{}")
        after = f"{after.rstrip()}." if period and not after.rstrip().endswith(".") else after
        return f"{before if before.strip() else 'a photo of a '}{{}}{after}"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Some classes' prompts in one row of tokens."""

    classes_M: Tensor
    """The classes."""
    ids_T: Tensor
    """Token ids; where a learned vector stands, any."""
    position_T: Tensor
    """Place of each token in its own prompt."""
    mask_TT: Tensor
    """Bool: a token sees its own prompt up to itself, and of others only the shared start."""
    context_T: Tensor
    """Index of each token into the row's learned vectors followed by its token embeddings."""
    eos_M: Tensor
    """Where each class's feature is read."""

    def to(self, device: torch.device) -> "_Row":
        return _Row(**{name: v.to(device) for name, v in vars(self).items()})


class PromptLearner(LaneModule):
    """Text features of classes under each lane's learned context.

    `template`: where "{}" stands for the name; the words behind it stay as they are. The words before it initialise the
    context (`init="text"`, one vector per token) or is replaced by `n_ctx` vectors of noise (`init="noise"`).
    `per_class`: every class has a context of its own; those of classes never trained stay at their start.
    Raises `ValueError` for a class without a name, a prompt longer than the encoder takes, or texts without encoder.
    """

    def __init__(
        self,
        texts: ClassTexts,
        *,
        generators: Sequence[torch.Generator],
        template: str = "a photo of a {}",
        init: Literal["text", "noise"] = "text",
        n_ctx: int = 4,
        per_class: bool = False,
        classes_per_row: int = CLASSES_PER_ROW,
        activation_bytes: int = ACTIVATION_BYTES,
    ) -> None:
        super().__init__()
        if texts.encoder is None or len(texts.names) != len(texts.features_CD):
            raise ValueError(
                f"prompts need the text encoder and a name for each of {len(texts.features_CD)} classes, "
                f"got {len(texts.names)} names and encoder {texts.encoder}"
            )
        if template.count("{}") != 1:
            raise ValueError(f"template must contain {{}} once, got {template!r}")
        self.encoder, self.per_class = texts.encoder, per_class
        self.classes_per_row, self.activation_bytes = classes_per_row, activation_bytes
        before, after = template.split("{}")
        context = self.encoder.token_ids(before)
        self.n_ctx = len(context) if init == "text" else n_ctx
        if self.n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1 (with init text: words before {{}}), got {self.n_ctx}")
        self.name_ids = self._tokenise(texts.names, after)
        sets = (len(texts.names),) if per_class else ()
        if init == "text":
            start_XW = self.encoder.embed(torch.tensor(context)).cpu()
            start = start_XW.expand(len(generators), *sets, -1, -1).clone()
        else:
            start = lane_normal(generators, *sets, self.n_ctx, self.encoder.width, std=0.02)
        self.context = nn.Parameter(start)  # (K, X, W) or (K, C, X, W)
        self._rows: dict[tuple[int, ...], list[_Row]] = {}
        self._cached: tuple[Tensor, int, Tensor] | None = None
        self._grouped: tuple[Tensor, list[tuple[tuple[int, ...], Tensor]]] | None = None

    def forward(self, classes_KM: Tensor | None = None) -> Tensor:
        """Compute text features (K, M, D), L2-normalised, of each lane's `classes_KM` or of all classes.

        Lanes with the same classes, in the same order, are encoded together. Outside training the features of all
        classes are cached until the context changes.
        """
        if classes_KM is not None:
            groups = self._groups(classes_KM)
            features = [self._features(classes, self.context[lanes]) for classes, lanes in groups]
            return torch.cat(features)[torch.cat([lanes for _, lanes in groups]).argsort()]
        every = tuple(range(len(self.name_ids)))
        if torch.is_grad_enabled():
            return self._features(every, self.context)
        if self._cached is None or self._cached[0] is not self.context or self._cached[1] != self.context._version:
            self._cached = (self.context, self.context._version, self._features(every, self.context))
        return self._cached[2]

    def _groups(self, classes_KM: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """Return lists of classes, each with its lanes; found once for a tensor that comes back every step."""
        if self._grouped is None or self._grouped[0] is not classes_KM:
            lanes_of: dict[tuple[int, ...], list[int]] = {}
            for k, classes in enumerate(classes_KM.tolist()):
                lanes_of.setdefault(tuple(classes), []).append(k)
            groups = [(classes, torch.tensor(ks, device=classes_KM.device)) for classes, ks in lanes_of.items()]
            self._grouped = (classes_KM, groups)
        return self._grouped[1]

    def _features(self, classes: tuple[int, ...], context: Tensor) -> Tensor:
        """Compute text features (K, M, D) of the same classes for every lane of `context`."""
        if classes not in self._rows:  # laid out once: no index leaves the device afterwards
            chunks = [classes[i : i + self.classes_per_row] for i in range(0, len(classes), self.classes_per_row)]
            self._rows[classes] = [self._lay_out(chunk).to(self.context.device) for chunk in chunks]
        rows = self._rows[classes]
        tokens = len(context) * sum(len(row.ids_T) for row in rows)
        if torch.is_grad_enabled() and tokens * self.encoder.bytes_per_token > self.activation_bytes:
            lanes = [
                torch.cat([checkpoint(self._encode, lane, row, use_reentrant=False) for row in rows], dim=1)
                for lane in context.split(1)
            ]
            return torch.cat(lanes)
        return torch.cat([self._encode(context, row) for row in rows], dim=1)

    def _encode(self, context: Tensor, row: _Row) -> Tensor:
        """Compute text features (K, M, D) of a row's classes."""
        learned = context[:, row.classes_M].flatten(1, 2) if self.per_class else context
        self.encoder.to(context.device)
        embedded_TW = self.encoder.embed(row.ids_T)
        both = torch.cat([learned, embedded_TW.expand(len(context), -1, -1)], dim=1)
        return self.encoder.encode(both[:, row.context_T], row.position_T, row.mask_TT, row.eos_M)

    def _lay_out(self, classes: tuple[int, ...]) -> _Row:
        """Write [start, context, name 1, EOS, name 2, EOS, ...]; a class's own context stands before its name."""
        bos, x = self.encoder.tokenizer.bos_token_id, self.n_ctx
        # (token id, index of a learned vector or -1, place in its prompt, class or -1 where all see it)
        tokens = [(bos, -1, 0, -1)]
        if not self.per_class:
            tokens += [(bos, i, 1 + i, -1) for i in range(x)]
        eos = []
        for m, c in enumerate(classes):
            if self.per_class:
                tokens += [(bos, m * x + i, 1 + i, m) for i in range(x)]
            tokens += [(id_, -1, 1 + x + i, m) for i, id_ in enumerate(self.name_ids[c])]
            eos.append(len(tokens) - 1)
        ids_T, vector_T, position_T, owner_T = torch.tensor(tokens).unbind(1)
        learned = x * (len(classes) if self.per_class else 1)
        sees_TT = (owner_T[:, None] == owner_T) | (owner_T == -1)
        return _Row(
            classes_M=torch.tensor(classes),
            ids_T=ids_T,
            position_T=position_T,
            mask_TT=sees_TT.tril(),
            context_T=torch.where(vector_T >= 0, vector_T, learned + torch.arange(len(tokens))),
            eos_M=torch.tensor(eos),
        )

    def _tokenise(self, names: Sequence[str], after: str) -> list[list[int]]:
        """Return the ids of every class's name, suffix and EOS."""
        rows = []
        for name in names:
            if not name.strip() or not self.encoder.token_ids(name):
                raise ValueError(f"every class needs a name to be prompted with, got {name!r} among {len(names)} names")
            row = [*self.encoder.token_ids(name + after), self.encoder.tokenizer.eos_token_id]
            length = 1 + self.n_ctx + len(row)
            if length > self.encoder.max_tokens:
                raise ValueError(f"prompts hold at most {self.encoder.max_tokens} tokens, got {length} for {name!r}")
            rows.append(row)
        return rows


class BaseClasses(LaneModule):
    """The classes each lane has images of, as lists: texts of all others enter no loss, and training leaves them out.

    `base_KC`: bool. Lists are as long as the longest, N; shorter ones repeat their first class, outside the mask.
    """

    classes_KN: Tensor
    """Class ids."""
    mask_KN: Tensor
    """Bool: no repetition."""
    place_KC: Tensor
    """Place of each class in its lane's list."""

    def __init__(self, base_KC: Tensor) -> None:
        super().__init__()
        count_K = base_KC.sum(1, keepdim=True)
        order_KC = base_KC.int().argsort(dim=1, descending=True, stable=True)
        mask_KN = torch.arange(int(count_K.max())) < count_K
        self.register_lane("mask_KN", mask_KN)
        self.register_lane("classes_KN", order_KC[:, : mask_KN.shape[1]].where(mask_KN, order_KC[:, :1]))
        self.register_lane("place_KC", order_KC.argsort(dim=1))

    def places(self, labels_KB: Tensor) -> Tensor:
        """Return where labels of base classes stand in their lane's list, (K, B)."""
        return self.place_KC.gather(1, labels_KB)


def base_cross_entropy(logits_KBC: Tensor, labels_KB: Tensor, base_KC: Tensor) -> Tensor:
    """Compute the cross-entropy over each lane's base columns, mean over the batch (K,).

    Over all columns it would push novel texts away from the images.
    """
    # adding -inf is several times faster than filling with it
    novel_bias_KC = torch.zeros(base_KC.shape, device=base_KC.device).masked_fill(~base_KC, -math.inf)
    logits_KBC = logits_KBC + novel_bias_KC[:, None]
    loss = F.cross_entropy(logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none")
    return loss.view(labels_KB.shape).mean(1)
