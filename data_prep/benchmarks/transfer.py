"""Training on one benchmark and testing on another: `A->B` .

Source: A's labelled images, of all its classes. Target: B's test images, classified among B's classes. A class of both
(the same synset or, outside WordNet, the same name) is one class; those of B alone are unseen. Prompts and checkpoint
are A's. CoOp's sets draw their shots over all classes; `imagenet->B` is the published cross-dataset protocol.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from data_prep.benchmarks.base import UNLABELLED, Benchmark
from data_prep.feature_store import ClassTable

ARROW = "->"


def join(source: Benchmark, target: Benchmark) -> Benchmark:
    """Return the benchmark that trains on `source` and is scored on the test images of `target`."""
    images = {"source": source.domain("source"), "target": target.domain("target")}
    trained = set(images["source"]["label"].to_pylist())  # of other classes there is nothing to learn from
    seen = [class_ for c, class_ in enumerate(_classes(source)) if c in trained]
    both = dict(reversed([*seen, *_classes(target)]))  # the first name given to a synset stays
    index = {key: c for c, key in enumerate(dict.fromkeys(key for key, _ in [*seen, *_classes(target)]))}
    return Benchmark(
        name=f"{source.name}{ARROW}{target.name}",
        slug=f"{source.slug}-to-{target.slug}",
        classes=ClassTable(
            names=tuple(both[key][0] for key in index),
            wnids=tuple(both[key][1] for key in index),
            unseen_RC=torch.tensor([[c >= len(seen) for c in range(len(index))]]),
        ),
        images=pa.concat_tables(
            _relabelled(images[domain], domain, [index.get(key, -1) for key, _ in _classes(bench)])
            for domain, bench in (("source", source), ("target", target))
        ),
        templates=source.templates,
        default_clip=source.default_clip,
        auxiliary_wnids=source.auxiliary_wnids,
        target_classes=tuple(sorted({index[key] for key, _ in _classes(target)})),
        partial="; ".join(filter(None, (source.partial, target.partial))),
    )


def _classes(bench: Benchmark) -> list[tuple[str, tuple[str, str | None]]]:
    """Return each class's synset or else its name as key, with both."""
    pairs = zip(bench.classes.names, bench.classes.wnids, strict=True)
    return [(wnid or name, (name, wnid)) for name, wnid in pairs]


def _relabelled(images: pa.Table, domain: str, new_C: list[int]) -> pa.Table:
    keys = pc.binary_join_element_wise(domain, images["key"], "/")  # two trees may share names
    label_I = images["label"].to_numpy()
    label_I = np.where(label_I == UNLABELLED, UNLABELLED, np.array(new_C)[label_I])
    return images.set_column(0, "key", keys).set_column(1, "label", pa.array(label_I, pa.int64()))
