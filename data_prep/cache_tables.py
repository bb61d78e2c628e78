"""The tables of a feature cache (their columns: see feature_store), from benchmark, graph and features.

Shapes: C classes, N graph nodes, P templates, I images, T texts, D CLIP dimension.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.benchmarks.base import DOMAINS, Benchmark
from data_prep.parquet import feature_column
from data_prep.wordnet_graph import ClassGraph


def name_texts(bench: Benchmark) -> pa.Table:
    """One row per class x template: class_id, template, text."""
    rows = [
        {"class_id": c, "template": p, "text": template.format(name)}
        for c, name in enumerate(bench.classes.names)
        for p, template in enumerate(bench.templates)
    ]
    return pa.Table.from_pylist(rows)


def node_texts(graph: ClassGraph, templates: Sequence[str]) -> pa.Table:
    """One row per node x lemma x template: node, lemma, template, text."""
    rows = [
        {"node": n, "lemma": lemma, "template": p, "text": template.format(lemma)}
        for n, lemmas in enumerate(graph.lemmas)
        for lemma in lemmas
        for p, template in enumerate(templates)
    ]
    return pa.Table.from_pylist(rows)


def class_tables(bench: Benchmark) -> dict[str, pa.Table]:
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


def image_tables(bench: Benchmark, contents: pa.Table, features_ID: np.ndarray) -> dict[str, pa.Table]:
    """Images and, apart from them, labels of both domains. contents: columns bytes and sha256, (I,)."""
    table = pa.table(
        {
            **{name: bench.images[name] for name in ("key", "label", "domain", "split")},
            **{name: contents[name] for name in ("bytes", "sha256")},
            "feature": feature_column(features_ID),
        }
    )
    tables = {}
    for domain in DOMAINS:
        part = table.filter(pc.equal(table["domain"], domain)).drop("domain")
        tables[domain] = part.drop("label")
        tables[f"{domain}_labels"] = part.select(["key", "label"])
    return tables


def graph_tables(graph: ClassGraph, classes: int) -> dict[str, pa.Table]:
    """The class nodes come first, in class order."""
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
