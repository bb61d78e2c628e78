"""Classify images with an exported adapter, without Ray and without the feature cache.

Suffixes: B batch, I images, T texts, C classes, D CLIP dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import Checkpoint, find_checkpoint, find_pinned_checkpoint
from data_prep.clip_features import IMAGES_PER_SHARD, Encode, Preprocess
from data_prep.errors import UserError
from data_prep.storage import locate
from study.outputs.adapter import Adapter
from study.outputs.adapter_files import read_adapter


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's likeliest classes."""

    image: Path
    """The image file."""
    classes: tuple[tuple[str, float], ...]
    """Class names with their probabilities, the likeliest first."""


def predict_images(
    images: Sequence[Path],
    *,
    adapter: str,
    clip: str | None = None,
    allow_download: bool = False,
    classes: str = "",
    top: int = 5,
) -> Iterator[Prediction]:
    """Classify image files; yield the `top` likeliest classes of each. Raises `UserError`.

    `adapter`: folder or URI. `clip`: the checkpoint it was trained with, where it is neither embedded nor on this
    machine. `allow_download`: whether the repository that the adapter names may be downloaded. `classes`: more classes
    that compete, "NAME,NAME=WNID,...".
    """
    loaded = read_adapter(locate(adapter, option="adapter"))
    checkpoint = _checkpoint(loaded, clip, allow_download=allow_download)
    encoder = Encoder(checkpoint)
    if classes:
        pairs = (part.partition("=") for part in classes.split(","))
        loaded = loaded.with_classes([(name.strip(), wnid.strip()) for name, _, wnid in pairs], encoder.texts)
    module = loaded.module(str(checkpoint.folder))
    for start in range(0, len(images), IMAGES_PER_SHARD):
        batch = images[start : start + IMAGES_PER_SHARD]
        probabilities_BC = module.logits(encoder.images(batch))[0].detach().softmax(-1)
        best = probabilities_BC.topk(min(top, len(loaded.names)))
        for image, of_image, values in zip(batch, best.indices.tolist(), best.values.tolist(), strict=True):
            named = tuple((loaded.names[c], p) for c, p in zip(of_image, values, strict=True))
            yield Prediction(image=image, classes=named)


class Encoder:
    """A checkpoint that encodes as the study's features were encoded: same code, same rounding."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._preprocess, self._encode = Preprocess(checkpoint), Encode(checkpoint, torch.get_num_threads())

    def images(self, paths: Sequence[Path]) -> Tensor:
        """Return features (I, D) of image files, L2-normalised. Raises `UserError` naming those that are unreadable."""
        row = self._row({"kind": "image", "path": [str(p) for p in paths], "data": [None] * len(paths)}, len(paths))
        unreadable = [f"{path}: {reason}" for path, reason in zip(paths, row["reasons"], strict=True) if reason]
        if unreadable:
            raise UserError(f"IMAGES must be readable: {'; '.join(unreadable)}")
        return _normalised(row)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (T, D) of texts, L2-normalised."""
        return _normalised(self._row({"kind": "text", "texts": list(texts)}, len(texts)))

    def _row(self, unit: dict[str, Any], rows: int) -> dict[str, Any]:
        """Return a row as Ray Data's job makes it of a unit of work."""
        row = self._encode(self._preprocess({"shard": "", "rows": rows, **unit}))
        if row["fatal"]:
            raise UserError(row["fatal"], option="clip")
        return row


def _normalised(row: dict[str, Any]) -> Tensor:
    """Return features as the study reads them from its cache: normalised again, because they were rounded."""
    return normalize(torch.from_numpy(row["features"]).float(), dim=-1)


def _checkpoint(adapter: Adapter, clip: str | None, *, allow_download: bool) -> Checkpoint:
    """Return the checkpoint named, that on the hub, or the embedded one, if the adapter was trained with it."""
    trained_with = adapter.clip_identity
    if clip is None and "hub" in trained_with:  # what an adapter of others names is not downloaded in silence
        repo, revision = str(trained_with["hub"]), str(trained_with.get("revision", "main"))
        checkpoint = find_pinned_checkpoint(repo, revision, download=allow_download)
    else:
        checkpoint = find_checkpoint(clip or ASSETS / "clip")
    # a download and a copy of it in a folder are identified differently; what both state must be equal
    if any(trained_with[key] != checkpoint.identity[key] for key in trained_with.keys() & checkpoint.identity.keys()):
        raise UserError(f"must be the checkpoint of the adapter, {adapter.clip}; got {checkpoint.name}", option="clip")
    return checkpoint
