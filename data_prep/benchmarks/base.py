"""What a benchmark states about itself."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.feature_store import ClassTable

DOMAINS = ("source", "target")
IMAGE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # stable and unique
        ("label", pa.int64()),  # class id
        ("domain", pa.string()),  # one of DOMAINS
        ("split", pa.int8()),  # index into feature_store.SPLITS
        ("path", pa.string()),  # image file, or null
        ("data", pa.binary()),  # encoded image, or null; one of path and data is given
    ]
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Class table, image list, prompts. To add one: a file with `read(name, data_root)` and a line in BENCHMARKS."""

    name: str
    """As given on the command line."""
    slug: str
    """Short name, fit for a folder name."""
    classes: ClassTable
    """Names, wnids, unseen classes per rotation."""
    images: pa.Table
    """IMAGE_SCHEMA; the order is that of the feature tables."""
    templates: tuple[str, ...]
    """Prompts with one {} each; the first is the single template."""
    default_clip: Path | str
    """Checkpoint used when --clip is not given: a folder or a hub id."""
    auxiliary_wnids: tuple[str, ...] = ()
    """Candidates for auxiliary graph nodes (see wordnet_graph.with_auxiliary)."""

    def domain(self, domain: str) -> pa.Table:
        """The images of one of DOMAINS, in order."""
        return self.images.filter(pc.equal(self.images["domain"], domain))
