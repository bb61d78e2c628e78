"""Classify images with an exported adapter, without Ray and without the feature cache.

from study import Adapter

adapter = Adapter.load("results/NAME/adapters/selected")
for prediction in adapter.predict(["cat.png", "photos/"]):
    print(prediction.image, prediction.classes[0])

Suffixes: I images, T texts, C classes, D CLIP dimension.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from data_prep.benchmarks.features import TEXTS
from data_prep.benchmarks.folder import is_litter
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import Checkpoint, find_checkpoint, find_pinned_checkpoint
from data_prep.clip_features import IMAGES_PER_SHARD, Encode, Preprocess
from data_prep.errors import UserError
from data_prep.storage import locate
from study.outputs.adapter import TrainedAdapter
from study.outputs.adapter_files import read_adapters
from study.protocol.consensus import vote_weights

ImageLike = str | Path | Image.Image
"""An image file, or an image that is opened."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's likeliest classes."""

    image: str
    """Path of the file; "image 0", "image 1", ... for opened images, by their place in the input."""
    classes: tuple[tuple[str, float], ...]
    """Class names with their probabilities, the likeliest first; empty for an image that cannot be read."""
    error: str = ""
    """Why the image cannot be read."""


class Adapter:
    """An exported adapter with its checkpoint, ready to classify images; on a GPU, if there is one.

    Of an ensemble, all members: they vote, and the probability of a class is its share of the votes.
    """

    def __init__(self, members: Sequence[TrainedAdapter], encoder: "Encoder") -> None:
        """`members`: one or more with the same classes and checkpoint, the best in selection first."""
        self._members, self._encoder = members, encoder
        self._modules = [of_one.module(str(encoder.checkpoint.folder)).to(encoder.device) for of_one in members]

    @classmethod
    def load(cls, path: str | Path, *, clip: str | Path | None = None, allow_download: bool = False) -> "Adapter":
        """Load the adapter in a folder or URI, <study>/adapters/selected, ensemble or a rank. Raises `UserError`.

        `clip`: the checkpoint it was trained with, where it is neither embedded nor on this machine.
        `allow_download`: whether the Hugging Face repository that the adapter names may be downloaded.
        """
        members = read_adapters(locate(path, option="adapter"))
        return cls(members, Encoder(_checkpoint(members[0], clip, allow_download=allow_download)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that compete."""
        return self._members[0].names

    def with_classes(self, *added: str) -> "Adapter":
        """Return the adapter with more classes, each NAME or NAME=WNID. Raises `UserError`."""
        pairs = [part.partition("=") for part in added]
        named = [(name.strip(), wnid.strip()) for name, _, wnid in pairs]
        grown = [of_one.with_classes(named, self._encoder.texts) for of_one in self._members]
        return Adapter(grown, self._encoder)

    def predict(self, images: ImageLike | Iterable[ImageLike], *, top: int = 5) -> list[Prediction]:
        """Return the `top` likeliest classes of every image. Raises `UserError` for a folder without images.

        `images`: files, folders (all images below them) or opened images, or one of these. An image that cannot be
        read gets no class and says why.
        """
        single = isinstance(images, str | Path | Image.Image)
        return list(self.predictions(find_images([images] if single else images), top=top))  # type: ignore[list-item,arg-type]

    def predictions(self, images: Sequence[ImageLike], *, top: int = 5) -> Iterator[Prediction]:
        """Yield what `predict` returns, batch by batch; for image files without folders."""
        for start in range(0, len(images), IMAGES_PER_SHARD):
            yield from self._batch(images[start : start + IMAGES_PER_SHARD], start, top)

    @torch.inference_mode()
    def _batch(self, images: Sequence[ImageLike], start: int, top: int) -> list[Prediction]:
        features_ID, reasons = self._encoder.images(images)
        named = iter(self._likeliest(features_ID, top))
        return [
            Prediction(
                image=f"image {start + i}" if isinstance(image, Image.Image) else str(image),
                classes=() if reason else next(named),
                error=reason,
            )
            for i, (image, reason) in enumerate(zip(images, reasons, strict=True))
        ]

    def _likeliest(self, features_ID: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        if not len(features_ID):
            return []
        features_ID = features_ID.to(self._encoder.device)
        pairs = zip(self._members, self._modules, strict=True)
        mean_IC, votes_IC = _votes([of_one.logits(module, features_ID).softmax(-1).cpu() for of_one, module in pairs])
        # by votes; of equal ones, as those of the classes without any, by the mean probability
        order_IC = mean_IC.argsort(dim=-1, descending=True, stable=True)
        by_votes_IC = votes_IC.gather(1, order_IC).argsort(dim=-1, descending=True, stable=True)
        best_IC = order_IC.gather(1, by_votes_IC)[:, :top]
        return [
            tuple((self.classes[c], p) for c, p in zip(of_image, values, strict=True))
            for of_image, values in zip(best_IC.tolist(), votes_IC.gather(1, best_IC).tolist(), strict=True)
        ]


def _votes(probabilities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return members' mean probabilities (I, C), and each class's share of their votes; of one, its own twice."""
    mean_IC = torch.stack(list(probabilities)).mean(0)
    if len(probabilities) == 1:
        return mean_IC, mean_IC
    weights = vote_weights(len(probabilities))
    votes = [weight * one_hot(p.argmax(-1), p.shape[-1]) for weight, p in zip(weights, probabilities, strict=True)]
    return mean_IC, torch.stack(votes).sum(0) / weights.sum()


class Encoder:
    """A checkpoint that encodes as the study's features were encoded: same code, same rounding."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        threads = torch.get_num_threads()
        self._preprocess, self._encode = Preprocess(checkpoint, threads), Encode(checkpoint, threads)

    def images(self, images: Sequence[ImageLike]) -> tuple[Tensor, list[str]]:
        """Return features (readable images, D), L2-normalised, and why each image cannot be read, "" if it can."""
        opened = [image if isinstance(image, Image.Image) else None for image in images]
        paths = [None if image else str(path) for path, image in zip(images, opened, strict=True)]
        row = self._row({"kind": "image", "path": paths, "data": opened}, len(images))
        readable_I = torch.tensor([not reason for reason in row["reasons"]])
        return _normalised(row)[readable_I], row["reasons"]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (T, D) of texts, L2-normalised."""
        return _normalised(self._row({"kind": "text", "texts": list(texts)}, len(texts)))

    def _row(self, unit: dict[str, Any], rows: int) -> dict[str, Any]:
        """Return a row as Ray Data's job makes it of a unit of work."""
        row = self._encode(self._preprocess({"shard": "", "rows": rows, **unit}))
        if row["fatal"]:
            raise UserError(row["fatal"], option="clip")
        return row


def find_images(images: Iterable[ImageLike]) -> list[ImageLike]:
    """Return images with all files below each folder in its place, in the order of their names.

    Hidden files and what is not meant to be an image (texts, Thumbs.db) are passed over. Raises `UserError` for a
    folder without images.
    """
    found: list[ImageLike] = []
    for image in images:
        if isinstance(image, Image.Image) or not os.path.isdir(image):
            found.append(image)
            continue
        below = sorted(_files(str(image)))
        if not below:
            raise UserError(f"IMAGES must be image files or folders with images; {image} holds none")
        found += below
    return found


def _files(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not (name.startswith(".") or is_litter(name))]
        yield from (os.path.join(place, name) for name in files if not (name.startswith(".") or is_litter(name)))


def _normalised(row: dict[str, Any]) -> Tensor:
    """Return features as the study reads them from its cache: normalised again, because they were rounded."""
    return normalize(torch.from_numpy(row["features"]).float(), dim=-1)


def _checkpoint(adapter: TrainedAdapter, clip: str | Path | None, *, allow_download: bool) -> Checkpoint:
    """Return the checkpoint named, that on the hub, or the embedded one, if the adapter was trained with it."""
    trained_with = adapter.clip_identity
    if list(trained_with.get("files", {})) == [TEXTS]:
        raise UserError(
            f"must come from a study with a checkpoint; the features of this one were given ({adapter.clip}), so that "
            "nothing is known to encode images",
            option="adapter",
        )
    if clip is None and "hub" in trained_with:  # what an adapter of others names is not downloaded in silence
        repo, revision = str(trained_with["hub"]), str(trained_with.get("revision", "main"))
        checkpoint = find_pinned_checkpoint(repo, revision, download=allow_download)
    else:
        checkpoint = find_checkpoint(clip or ASSETS / "clip")
    # a download and a copy of it in a folder are identified differently; what both state must be equal
    if any(trained_with[key] != checkpoint.identity[key] for key in trained_with.keys() & checkpoint.identity.keys()):
        raise UserError(f"must be the checkpoint of the adapter, {adapter.clip}; got {checkpoint.name}", option="clip")
    return checkpoint
