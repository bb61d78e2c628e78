"""Classify images with an exported adapter: `python study/predict.py --adapter results/NAME/adapters/1 image.png`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import tyro  # noqa: E402
from tyro.conf import Positional  # noqa: E402

from data_prep.errors import UserError, run_command  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify images with an exported adapter; needs neither Ray nor the feature cache."""

    images: Positional[tuple[Path, ...]]
    """Image files."""
    adapter: str
    """Folder or URI of an adapter: <study>/adapters/<rank>."""
    clip: str | None = None
    """The checkpoint it was trained with, hub id or local folder; found by itself if it is embedded or on the hub."""
    classes: str = ""
    """New classes that compete beside the adapter's own, separated by commas: NAME, or NAME=WNID where WordNet knows
    several things of that name."""
    top: int = 5
    """Classes shown for every image."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"must be at least 1, got {self.top}", option="top")
        if not self.images:
            raise UserError("IMAGES must be at least one file, got none")


def main(arguments: list[str] | None = None) -> int:
    """Print the likeliest classes of each image; return the exit code."""

    def print_classes() -> None:
        options = tyro.cli(PredictOptions, args=arguments, description=PredictOptions.__doc__)
        for image, guesses in predict(options):
            print(f"{image}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in guesses))

    return run_command(print_classes)


def predict(options: PredictOptions) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Every image with its likeliest classes and their probabilities. Raises `UserError`."""
    from data_prep.clip_features import IMAGES_PER_SHARD  # torch takes seconds: --help does not wait for it
    from data_prep.storage import locate
    from study.outputs.adapter_files import read_adapter

    adapter = read_adapter(locate(options.adapter, option="--adapter"))
    checkpoint = _checkpoint(adapter, options.clip)
    clip = Clip(checkpoint)
    if options.classes:
        added = [
            (name.strip(), wnid.strip()) for name, _, wnid in (c.partition("=") for c in options.classes.split(","))
        ]
        adapter = adapter.with_classes(added, clip.texts, where="--classes as NAME=WNID")
    module = adapter.module(str(checkpoint.folder))
    for start in range(0, len(options.images), IMAGES_PER_SHARD):
        images = options.images[start : start + IMAGES_PER_SHARD]
        probabilities_BC = module.logits(clip.images(images))[0].detach().softmax(-1)
        best = probabilities_BC.topk(min(options.top, len(adapter.names)))
        for image, classes, values in zip(images, best.indices.tolist(), best.values.tolist(), strict=True):
            yield image, [(adapter.names[c], p) for c, p in zip(classes, values, strict=True)]


class Clip:
    """A checkpoint that encodes as the study's features were: same code, same rounding."""

    def __init__(self, checkpoint: Any) -> None:
        import torch

        from data_prep.clip_features import Encode, Preprocess

        self._preprocess, self._encode = Preprocess(checkpoint), Encode(checkpoint, torch.get_num_threads())

    def images(self, paths: Sequence[Path]) -> Any:
        """Features (I, D) of image files, L2-normalised. Raises `UserError` naming those that cannot be read."""
        row = self._encoded({"kind": "image", "path": [str(p) for p in paths], "data": [None] * len(paths)}, len(paths))
        unreadable = [f"{path}: {reason}" for path, reason in zip(paths, row["reasons"], strict=True) if reason]
        if unreadable:
            raise UserError(f"IMAGES must be readable: {'; '.join(unreadable)}")
        return _normalised(row)

    def texts(self, texts: Sequence[str]) -> Any:
        """Features (T, D) of texts, L2-normalised."""
        return _normalised(self._encoded({"kind": "text", "texts": list(texts)}, len(texts)))

    def _encoded(self, unit: dict[str, Any], rows: int) -> dict[str, Any]:
        row = self._encode(self._preprocess({"shard": "", "rows": rows, **unit}))
        if row["fatal"]:
            raise UserError(row["fatal"])
        return row


def _normalised(row: dict[str, Any]) -> Any:
    """As the study reads features from its cache: again, because they were rounded."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(row["features"]).float(), dim=-1)


def _checkpoint(adapter: Any, clip: str | None) -> Any:
    """The checkpoint named, that on the hub, or the embedded one, if it is what the adapter was trained with."""
    from data_prep.benchmarks.icons2emoji import ASSETS
    from data_prep.checkpoint import find_checkpoint

    trained_with = adapter.clip_identity
    checkpoint = find_checkpoint(clip or trained_with.get("hub") or ASSETS / "clip")
    # a download and a copy of it in a folder are identified differently; what both state must be equal
    if any(trained_with[key] != checkpoint.identity[key] for key in trained_with.keys() & checkpoint.identity.keys()):
        raise UserError(f"must be the checkpoint of the adapter, {adapter.clip}; got {checkpoint.name}", option="clip")
    return checkpoint


if __name__ == "__main__":
    sys.exit(main())
