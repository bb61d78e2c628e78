"""The tables of a feature cache (their columns: see feature_store), from benchmark, graph and features.

Shapes: C classes, N graph nodes, P templates, I images, T texts, D CLIP dimension.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.benchmarks.base import DOMAINS, UNLABELLED, Benchmark
from data_prep.clip_features import IMAGES_PER_SHARD, Encoded, GivenTextFeatures
from data_prep.errors import UserError, some_of
from data_prep.wordnet_graph import WordNetGraph


def name_texts(bench: Benchmark) -> pa.Table:
    """Return one row per class x template: class_id, template, text."""
    rows = [
        {"class_id": c, "template": p, "text": template.format(name)}
        for c, name in enumerate(bench.classes.names)
        for p, template in enumerate(bench.templates)
    ]
    return pa.Table.from_pylist(rows)


def given_texts(bench: Benchmark, names: pa.Table) -> GivenTextFeatures | None:
    """Return the features of a benchmark's class texts that exist already, if they do. names: `name_texts`.

    A class without a place in WordNet is a node of its own, with the same texts.
    """
    if bench.texts is None:
        return None
    features_TD = bench.texts.features_CPD.reshape(len(names), -1)
    by_text = dict(zip(names["text"].to_pylist(), features_TD, strict=True))
    return GivenTextFeatures(features=by_text, logit_scale=bench.texts.logit_scale)


def node_texts(graph: WordNetGraph, templates: Sequence[str]) -> pa.Table:
    """Return one row per node x lemma x template: node, lemma, template, text."""
    rows = [
        {"node": n, "lemma": lemma, "template": p, "text": template.format(lemma)}
        for n, lemmas in enumerate(graph.lemmas)
        for lemma in lemmas
        for p, template in enumerate(templates)
    ]
    return pa.Table.from_pylist(rows)


def class_tables(bench: Benchmark) -> dict[str, pa.Table]:
    """Return one row per class: class_id, name, wnid, unseen and, across data sets, in_target."""
    classes = bench.classes
    columns = {
        "class_id": np.arange(len(classes.names)),
        "name": pa.array(classes.names, pa.string()),
        "wnid": pa.array(classes.wnids, pa.string()),
        "unseen": pa.array(classes.unseen_RC.T.tolist(), pa.list_(pa.bool_())),
    }
    if bench.target_classes:
        columns["in_target"] = np.isin(columns["class_id"], bench.target_classes)
    return {"classes": pa.table(columns)}


def label_tables(bench: Benchmark, readable_I: np.ndarray) -> dict[str, pa.Table]:
    """Return the labels of the readable images, one table per domain, apart from the images."""
    table = bench.images.filter(pa.array(readable_I))
    return {
        f"{domain}_labels": table.filter(pc.equal(table["domain"], domain)).select(["key", "label"])
        for domain in DOMAINS
    }


def image_rows(
    domain: str, bench: Benchmark, contents: pa.Table, encoded: Encoded, readable_I: np.ndarray, feature: str
) -> Iterator[pa.Table]:
    """Yield the readable images of a domain, a shard at a time: key, split, bytes, sha256, feature; or key, tokens.

    contents: columns bytes and sha256, (I,). feature: "feature" or "tokens".
    """
    facts = {name: bench.images[name] for name in ("key", "split")}
    facts |= {name: contents[name] for name in ("bytes", "sha256")} if feature == "feature" else {}
    table = pa.table(facts).select(list(facts) if feature == "feature" else ["key"])
    wanted_I = readable_I & pc.equal(bench.images["domain"], domain).to_numpy()
    for start, shard in encoded.image_shards:
        wanted = pa.array(wanted_I[start : start + IMAGES_PER_SHARD])
        if wanted.true_count:
            part = table.slice(start, IMAGES_PER_SHARD)
            features = encoded.image_table(shard, [feature])[feature]
            yield part.append_column(feature, features).filter(wanted)


def rejected_table(bench: Benchmark, encoded: Encoded) -> pa.Table:
    """Return the unreadable images: key, domain, path (null for images inside the benchmark's own table), reason."""
    table = bench.images.select(["key", "domain", "path"]).append_column("reason", pa.array(encoded.reasons))
    return table.filter(pc.not_equal(table["reason"], ""))


def check_classes(bench: Benchmark, encoded: Encoded) -> None:
    """Raise UserError where a class that needs images of a domain had some, and none of them can be read."""
    unseen_C = bench.classes.unseen_RC.any(0).numpy()
    seen_C = (~bench.classes.unseen_RC).any(0).numpy()
    label_I, readable_I = bench.images["label"].to_numpy(), np.array([not reason for reason in encoded.reasons])
    for domain, needed_C, kind in zip(DOMAINS, (seen_C, unseen_C), ("seen", "unseen"), strict=True):
        own_I = pc.equal(bench.images["domain"], domain).to_numpy()
        listed_C, left_C = (
            np.bincount(label_I[rows_I & (label_I != UNLABELLED)], minlength=len(needed_C))
            for rows_I in (own_I, own_I & readable_I)
        )
        lost = [bench.classes.names[c] for c in np.flatnonzero(needed_C & (listed_C > 0) & (left_C == 0))]
        if lost:
            raise UserError(
                f"{bench.name}: every {kind} class needs {domain} images that can be read; none for {some_of(lost)}"
            )


def check_texts(bench: Benchmark, features_TD: np.ndarray) -> None:
    """Raise UserError where two classes have the same text features (C * P, D) in every template.

    Their texts differ behind the last token that the text tower reads, or in words that its tokenizer does not know:
    no method could tell them apart.
    """
    first: dict[bytes, str] = {}
    for name, features in zip(bench.classes.names, np.split(features_TD, len(bench.classes.names)), strict=True):
        other = first.setdefault(features.tobytes(), name)
        if other != name:
            raise UserError(
                f"texts of classes must differ within what the text tower reads; {other!r} and {name!r} do not under "
                f"{bench.templates[0]!r}: its tokenizer cuts them, or knows no word in which they differ. Shorten or "
                "change the names, or the prompts with --templates"
            )


def graph_tables(graph: WordNetGraph, classes: int) -> dict[str, pa.Table]:
    """Return nodes, edges and similarities; class nodes come first, in class order."""
    nodes = {
        "node": np.arange(len(graph.wnids)),
        "wnid": pa.array(graph.wnids, pa.string()),
        "class_id": pa.array([n if n < classes else None for n in range(len(graph.wnids))], pa.int64()),
        "depth": graph.depth_N,
        "lemmas": pa.array(graph.lemmas, pa.list_(pa.string())),
    }
    edges = {
        "child": graph.edges_E2[:, 0],
        "parent": graph.edges_E2[:, 1],
        "relation": pa.array(graph.relations, pa.string()),
    }
    similarity = {"path": _rows(graph.path_similarity_CC), "wup": _rows(graph.wup_similarity_CC)}
    return {"nodes": pa.table(nodes), "edges": pa.table(edges), "similarity": pa.table(similarity)}


def _rows(matrix_CC: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix_CC.reshape(-1)), matrix_CC.shape[1])
