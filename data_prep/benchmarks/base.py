"""The facts that a benchmark states about itself.

Every benchmark has two domains. Of domain-adaptive ones the source is the labelled domain and the target the other.
Generalized zero-shot and base-to-novel benchmarks have one domain of images; of those the source is the
training and validation images of seen (base) classes, whose labels may be learned from, and the target is the test
images of all classes: `ClassTable.unseen_RC` says which are unseen. Splits are the published ones; a benchmark that
publishes none calls its source images train and its target images test.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.checkpoint import Checkpoint, find_checkpoint
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.parquet import file_sha256

DOMAINS = ("source", "target")
UNLABELLED = -1
"""Label of a target image whose class nobody has said: it is learned from and classified, and never scored."""
IMAGE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # stable and unique
        ("label", pa.int64()),  # class id; UNLABELLED in the target only
        ("domain", pa.string()),  # one of DOMAINS
        ("split", pa.int8()),  # index into feature_store.SPLITS
        ("path", pa.string()),  # image file, or null
        ("data", pa.binary()),  # encoded image (or feature: `holds_features`), or null; one of path and data is given
    ]
)


@dataclass(frozen=True, kw_only=True)
class GivenTexts:
    """Features of class texts that exist already."""

    path: Path
    """Their file."""
    features_CPD: np.ndarray
    """Float32, of length 1, a row for each template."""
    logit_scale: float
    """Multiplier of cosines."""
    notes: tuple[str, ...]
    """What a study says of them."""

    @property
    def templates(self) -> tuple[str, ...]:
        """What stands for the P prompts, which nobody knows."""
        return ("{}", *(f"{{}} ({p})" for p in range(2, self.features_CPD.shape[1] + 1)))


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Class table, image list, prompts. To add one: a file with `read` and a line in BENCHMARKS."""

    name: str
    """Name as `get_benchmark` takes it."""
    slug: str
    """Short name, fit for a folder name."""
    classes: ClassTable
    """Names, wnids, unseen classes per rotation."""
    images: pa.Table
    """IMAGE_SCHEMA; the order is that of the feature tables."""
    templates: tuple[str, ...]
    """Prompts with one {} each; the first is the single template."""
    default_clip: Path | str
    """Checkpoint used when no other is given: a folder or a hub id."""
    auxiliary_wnids: tuple[str, ...] = ()
    """Candidates for auxiliary graph nodes (see wordnet_graph.with_auxiliary)."""
    halves: bool = False
    """Base-to-novel: a test image is classified among the seen or the unseen classes, whichever its own is of, and
    accuracies are over images, as they are published."""
    target_classes: tuple[int, ...] = ()
    """Cross-dataset: test images are classified among these, accuracies are over images; () stands for all classes."""
    holds_features: bool = False
    """Whether `data` of the images are CLIP features that exist already, float32, as bytes."""
    texts: GivenTexts | None = None
    """Features of the class texts that exist already: they stand for a checkpoint."""
    notes: tuple[str, ...] = ()
    """What its owner should read before anything is computed: which images have which role, what was passed over."""
    partial: str = ""
    """What of the published benchmark is missing, in words (`allow_partial`); "" if it is complete."""

    def checkpoint(self, clip: str | Path | None) -> Checkpoint:
        """Return the checkpoint: `clip`, by default its own. Raises `UserError`."""
        if self.texts is None:
            return find_checkpoint(clip or self.default_clip)
        file = self.texts.path
        if clip:
            raise UserError(f"must be left out: {file} has the class texts' features; got {clip}", option="clip")
        return Checkpoint(
            name=f"{file.parent.name}/{file.name}",
            folder=file,
            identity={"files": {file.name: file_sha256(file)}, "processor": []},
            model_type="",
            dimension=self.texts.features_CPD.shape[2],
        )

    def domain(self, domain: str) -> pa.Table:
        """Return the images of one of DOMAINS, in order."""
        return self.images.filter(pc.equal(self.images["domain"], domain))
