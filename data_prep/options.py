"""The options of `prepare`: benchmark, checkpoint and folder of a feature cache."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.command_line import with_help
from data_prep.errors import UserError


@dataclass(frozen=True, kw_only=True)
@with_help
class FeatureOptions:
    """A benchmark, a checkpoint, and the folder of their features"""

    benchmark: str = "icons2emoji"
    """A name from `python -m data_prep list`, or your own data: folder:PATH with PATH/DOMAIN/CLASS/*.jpg and
    PATH/classes.csv, features:PATH for features of images in a Parquet or npz file, hf:PATH_OR_NAME of Hugging Face
    datasets. CoOp's sets take options: dtd:shots=16,seed=2."""
    source: str | None = None
    """Of your own data, the folder, domain or split of labelled images, where it is not called source or train."""
    target: str | None = None
    """Of your own data, the folder, domain or split of unlabelled images, where it is not called target or test."""
    clip: str | None = None
    """Checkpoint folder or Hugging Face id; the benchmark's own if left out."""
    data_root: Path | None = None
    """Where the data sets were unpacked, and where a relative PATH of own data starts."""
    cache_dir: str | Path = ".cache"
    """Folder or URI (s3://bucket/prefix) where caches are kept, one folder each, named by benchmark and fingerprint."""
    rebuild: bool = False
    """Build it even if it is there."""
    allow_partial: bool = False
    """Take the part of an incomplete data set that is there. The cache says that it is partial."""
    templates: tuple[str, ...] = ()
    """A template set (single, imagenet7, imagenet80, ...) or prompts with {}; the benchmark's own if left out."""
    tokens: bool = False
    """Keep the features of image patches, too: 50 KB an image for a ViT-B/32."""
    gpu: bool = False
    """Encode on GPUs only. Where there is none yet, a cluster's autoscaler is asked for one. Without the option GPUs
    are used if there are some."""
    max_rejected: float = 0.001
    """Share of images that may be unreadable. They are left out and listed in rejected.parquet."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"must be a share of the images, 0 to 1; got {self.max_rejected}", option="max_rejected")
