"""Classify images with an exported adapter: `python study/predict.py --adapter results/NAME/adapters/1 image.png`."""

import sys
from dataclasses import dataclass
from pathlib import Path

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
    """The checkpoint it was trained with, hub id or local folder; found by itself if it is embedded or was downloaded
    before."""
    allow_download: bool = False
    """Download the Hugging Face repository that the adapter names, in the revision that it names."""
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
    """Print every image's classes; return 0 when done, 2 for a mistake in the options or files."""

    def predict() -> None:
        options = tyro.cli(PredictOptions, args=arguments, description=PredictOptions.__doc__)
        from study.outputs.prediction import predict_images  # torch takes seconds: --help does not wait for it

        for prediction in predict_images(
            options.images,
            adapter=options.adapter,
            clip=options.clip,
            allow_download=options.allow_download,
            classes=options.classes,
            top=options.top,
        ):
            print(f"{prediction.image}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in prediction.classes))

    return run_command(predict)


if __name__ == "__main__":
    sys.exit(main())
