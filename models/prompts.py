"""Learnable prompts: context vectors in front of a class name, through CLIP's frozen text encoder (CoOp, Zhou et al.).

CLIP's text transformer is causal and reads its feature off the end-of-text token (EOS), so nothing behind the longest
EOS can matter: sequences are cut there. Lanes and classes are one batch of rows, encoded in chunks that are
recomputed in the backward pass: only one chunk's activations exist at a time.

Memory: the backward pass keeps 14 T W floats per layer for a row of T tokens (counted; width W). ViT-B/32's text tower
(W = 512, 12 layers) at T = 24 keeps 8.3 MB a row, 26.5 MB at its full 77: 1,000 classes at once would take 8.3 GB (26.5
GB uncut), chunks of 128 rows take 1.1 GB beside 0.25 GB of weights, however many classes and lanes there are.

Suffixes: K lanes, C classes, R rows (lane x class), T tokens, X context vectors, W width of the text encoder,
D CLIP dimension.
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

from models.stacked import StackedModule, lane_normal

if TYPE_CHECKING:
    from transformers import CLIPModel

ROWS_PER_CHUNK = 128
"""Sequences encoded at once."""


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
        """Load a checkpoint in Hugging Face format."""
        from transformers import (
            AutoTokenizer,
            CLIPModel,
        )  # seconds to import, and methods without prompts never need it

        clip = CLIPModel.from_pretrained(checkpoint_path, dtype=torch.float32)
        return cls(clip, AutoTokenizer.from_pretrained(checkpoint_path))

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without start and end tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (..., W)."""
        return self.tower.embeddings.token_embedding(ids.to(self.tower.device))

    def encode(self, tokens_RTW: Tensor, eos_R: Tensor) -> Tensor:
        """L2-normalised text features (R, D) of token embeddings whose EOS stands at `eos_R`; differentiable."""
        from transformers.masking_utils import create_causal_mask

        self.to(tokens_RTW.device)
        hidden_RTW = self.tower.embeddings(inputs_embeds=tokens_RTW)
        mask = create_causal_mask(
            config=self.tower.config, inputs_embeds=hidden_RTW, attention_mask=None, past_key_values=None
        )
        hidden_RTW = self.tower.encoder(inputs_embeds=hidden_RTW, attention_mask=mask, is_causal=True).last_hidden_state
        rows_R = torch.arange(len(eos_R), device=eos_R.device)
        return F.normalize(self.projection(self.tower.final_layer_norm(hidden_RTW[rows_R, eos_R])), dim=-1)

    def to(self, device: torch.device) -> None:
        """Move the weights, once."""
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
    """The text side of a benchmark, as methods that train on base images take it."""

    features_CD: Tensor
    """CLIP's text feature of each class (base and novel), L2-normalised."""
    logit_scale: float
    """CLIP's exp(logit scale)."""
    names: tuple[str, ...] = ()
    """Class names; needed with learnable prompts only."""
    encoder: FrozenTextEncoder | None = None
    """The checkpoint's text encoder; needed with learnable prompts only."""


class PromptLearner(StackedModule):
    """Text features of classes under each lane's learned context.

    `template`: where "{}" stands for the name; what follows it stays as it is. What precedes it initialises the
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
        rows_per_chunk: int = ROWS_PER_CHUNK,
    ) -> None:
        super().__init__()
        if texts.encoder is None or len(texts.names) != len(texts.features_CD):
            raise ValueError(
                f"prompts need the text encoder and a name for each of {len(texts.features_CD)} classes, "
                f"got {len(texts.names)} names and encoder {texts.encoder}"
            )
        if template.count("{}") != 1:
            raise ValueError(f"template must contain {{}} once, got {template!r}")
        self.encoder, self.per_class, self.rows_per_chunk = texts.encoder, per_class, rows_per_chunk
        before, after = template.split("{}")
        context = self.encoder.token_ids(before)
        self.n_ctx = len(context) if init == "text" else n_ctx
        if self.n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1 (with init text: words before {{}}), got {self.n_ctx}")
        ids_CT, eos_C = self._tokenise(texts.names, after)
        self.register_buffer("token_ids_CT", ids_CT)
        self.register_buffer("eos_C", eos_C)
        rows = (ids_CT.shape[0],) if per_class else ()
        if init == "text":
            start_XW = self.encoder.embed(torch.tensor(context)).cpu()
            start = start_XW.expand(len(generators), *rows, -1, -1).clone()
        else:
            start = lane_normal(generators, *rows, self.n_ctx, self.encoder.width, std=0.02)
        self.context = nn.Parameter(start)  # (K, X, W) or (K, C, X, W)
        self._kept: tuple[tuple[Tensor, int], Tensor] | None = None

    token_ids_CT: Tensor
    eos_C: Tensor

    def forward(self, classes: Tensor | None = None) -> Tensor:
        """Text features (K, C, D), L2-normalised, of all classes or of `classes` (int64 indices).

        Outside training those of all classes are kept until the context changes.
        """
        state = (self.context, self.context._version)
        if classes is None and not torch.is_grad_enabled():
            if self._kept is None or self._kept[0][0] is not state[0] or self._kept[0][1] != state[1]:
                self._kept = (state, self._features(torch.arange(len(self.eos_C), device=self.eos_C.device)))
            return self._kept[1]
        return self._features(torch.arange(len(self.eos_C), device=self.eos_C.device) if classes is None else classes)

    def _features(self, classes: Tensor) -> Tensor:
        """Text features (K, C, D) of some classes, encoded chunk by chunk."""
        lanes, count = self.context.shape[0], len(classes)
        order = self.eos_C[classes].argsort(stable=True)  # a chunk of short names is cut shorter
        rows_R = torch.arange(lanes * count, device=classes.device)
        features = []
        for chunk in rows_R.split(self.rows_per_chunk):
            lane_R, class_R = chunk % lanes, classes[order[chunk // lanes]]
            if torch.is_grad_enabled() and len(rows_R) > self.rows_per_chunk:
                features.append(checkpoint(self._encode, self.context, lane_R, class_R, use_reentrant=False))
            else:
                features.append(self._encode(self.context, lane_R, class_R))
        return torch.cat(features).view(count, lanes, -1)[order.argsort()].transpose(0, 1)

    def _encode(self, context: Tensor, lane_R: Tensor, class_R: Tensor) -> Tensor:
        """Text features (R, D) of some lanes' classes, cut at their longest EOS."""
        eos_R = self.eos_C[class_R]
        ids_RT = self.token_ids_CT[class_R, : int(eos_R.max()) + 1]
        context_RXW = context[lane_R, class_R] if self.per_class else context[lane_R]
        embedded_RTW = self.encoder.embed(ids_RT).to(context.device)
        tokens_RTW = torch.cat([embedded_RTW[:, :1], context_RXW, embedded_RTW[:, 1 + self.n_ctx :]], dim=1)
        return self.encoder.encode(tokens_RTW, eos_R)

    def _tokenise(self, names: Sequence[str], after: str) -> tuple[Tensor, Tensor]:
        """Ids (C, T) of start, room for the context, name, suffix, EOS, padding; and the place of each EOS (C,)."""
        tokenizer = self.encoder.tokenizer
        rows = []
        for name in names:
            ids = self.encoder.token_ids(name) if name.strip() else []
            if not ids:
                raise ValueError(f"every class needs a name to be prompted with, got {name!r} among {len(names)} names")
            room = [tokenizer.bos_token_id, *[tokenizer.eos_token_id] * self.n_ctx]
            row = [*room, *self.encoder.token_ids(name + after), tokenizer.eos_token_id]
            if len(row) > self.encoder.max_tokens:
                raise ValueError(f"prompts hold at most {self.encoder.max_tokens} tokens, got {len(row)} for {name!r}")
            rows.append(row)
        eos_C = torch.tensor([len(row) - 1 for row in rows])
        longest = int(eos_C.max()) + 1
        padded = [row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows]
        return torch.tensor(padded), eos_C


def base_cross_entropy(logits_KBC: Tensor, labels_KB: Tensor, base_KC: Tensor) -> Tensor:
    """Cross-entropy over each lane's base columns, mean over the batch (K,); over all it pushes novel texts away."""
    logits_KBC = logits_KBC.masked_fill(~base_KC[:, None], -math.inf)
    loss = F.cross_entropy(logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none")
    return loss.view(labels_KB.shape).mean(1)
