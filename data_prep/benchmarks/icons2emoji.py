"""The embedded benchmarks: from monochrome icons (labelled source) to colour emoji (unlabelled target), 228 classes.

Images, class table and a small CLIP are part of this package; assets/icons2emoji/ATTRIBUTION.md says where they came
from. Splits go by icon set, so that no drawing style is in two of them. In rotation r the classes with that number are
unseen.

`emoji2icons` is the other direction: labelled emoji, unlabelled icons. `icons2emoji-gzsl` is generalized zero-shot
learning within the emoji domain: labelled are the training and validation images, classified the test images.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from data_prep.benchmarks.base import IMAGE_SCHEMA, Benchmark
from data_prep.feature_store import SPLITS, ClassTable

ASSETS = Path(__file__).parent.parent / "assets" / "icons2emoji"
ROTATIONS = 4
GZSL = "icons2emoji-gzsl"
BACK = "emoji2icons"
TEMPLATES = ("a {} icon", "an icon of a {}", "a picture of a {}", "a drawing of a {}", "{}")


def read(name: str, data_root: Path | None, allow_partial: bool = False) -> Benchmark:
    """Read the benchmark; neither `data_root` nor `allow_partial` is needed."""
    classes = pq.read_table(ASSETS / "classes.parquet").sort_by("class_id")
    images = pq.read_table(ASSETS / "images.parquet")
    if name == GZSL:
        images = images.filter(pc.equal(images["domain"], "emoji"))
        source = pc.not_equal(images["split"], "test")
    else:
        source = pc.equal(images["domain"], "emoji" if name == BACK else "icon")
    rotation_C = torch.tensor(classes["rotation"].to_numpy())
    return Benchmark(
        name=name,
        slug=name,
        classes=ClassTable(
            names=tuple(classes["name"].to_pylist()),
            wnids=tuple(classes["wnid"].to_pylist()),
            unseen_RC=rotation_C == torch.arange(ROTATIONS)[:, None],
        ),
        images=pa.table(
            {
                "key": pc.binary_join_element_wise(images["icon_set"], images["icon_name"], ":"),
                "label": images["class_id"].cast(pa.int64()),
                "domain": pc.if_else(source, "source", "target"),
                "split": np.array([SPLITS.index(split) for split in images["split"].to_pylist()], dtype=np.int8),
                "path": pa.nulls(len(images), pa.string()),
                "data": images["image"],
            },
            schema=IMAGE_SCHEMA,
        ),
        templates=TEMPLATES,
        default_clip=ASSETS / "clip",
    )
