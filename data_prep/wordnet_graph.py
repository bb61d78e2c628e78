"""Class synsets -> hypernym closure -> nodes and edges, plus auxiliary synsets and class similarities.

Shapes: C classes, N nodes, E edges. The graph is a plain `networkx.DiGraph` over wnids with edges child -> parent.
Classes without a wnid become nodes of their own with no edges.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from data_prep.wordnet import WordNet

UNCONNECTED = 255  # edges between classes without a common hypernym; the longest way in WordNet is far shorter
CELLS_PER_SLICE = 1000  # a smaller block costs more as a slice of its own than as part of an indexed one


@dataclass(frozen=True, kw_only=True)
class WordNetGraph:
    """Classes and their hypernyms as nodes and edges."""

    wnids: tuple[str, ...]
    """(N,) class nodes in class order, then all other nodes sorted; a class outside WordNet has "class:<its name>"."""
    lemmas: tuple[tuple[str, ...], ...]
    """(N,) words of each node."""
    depth_N: np.ndarray
    """int64 (N,) edges on the shortest way up to "entity"."""
    edges_E2: np.ndarray
    """int64 (E, 2) child and parent nodes, sorted."""
    relations: tuple[str, ...]
    """(E,) "hypernym" or "instance_hypernym"."""
    path_similarity_CC: np.ndarray
    """float32 (C, C) 1 / (1 + edges between two classes); 0 where they are not connected."""
    wup_similarity_CC: np.ndarray
    """float32 (C, C) Wu-Palmer similarity as NLTK defines it; 0 where not connected."""


def hypernym_graph(net: WordNet, wnids: Iterable[str] | None = None) -> nx.DiGraph:
    """Build the hierarchy above `wnids`, or all of it: 82,115 nodes, 84,427 edges child -> parent with `relation`."""
    graph = nx.DiGraph()
    todo = list(net.synsets if wnids is None else wnids)
    seen: set[str] = set()
    while todo:
        wnid = todo.pop()
        if wnid in seen:
            continue
        seen.add(wnid)
        graph.add_node(wnid)
        synset = net.synsets[wnid]
        graph.add_edges_from(((wnid, p) for p in synset.instance_hypernyms), relation="instance_hypernym")
        graph.add_edges_from(((wnid, p) for p in synset.hypernyms), relation="hypernym")
        todo += synset.hypernyms + synset.instance_hypernyms
    return graph


def hypernym_closure(hierarchy: nx.DiGraph, wnids: Iterable[str]) -> set[str]:
    """Return `wnids` and everything above them."""
    closure = set(wnids)
    for wnid in tuple(closure):
        closure |= nx.descendants(hierarchy, wnid)
    return closure


def with_auxiliary(hierarchy: nx.DiGraph, classes: Sequence[str], candidates: Iterable[str]) -> set[str]:
    """Return the closure of the classes, widened by related synsets: the rule behind the I2AwA graph of UODTN.

    A candidate joins if a parent or grandparent of it is a proper ancestor of the classes, that is in their closure but
    no class itself; then the whole is closed again. (50 I2AwA classes: 106 nodes, 230 with ILSVRC's synsets, 255
    closed.)
    """
    closure = hypernym_closure(hierarchy, classes)
    ancestors = closure - set(classes)
    near = set()
    for wnid in candidates:
        parents = set(hierarchy.successors(wnid))
        grandparents = {g for parent in parents for g in hierarchy.successors(parent)}
        if (parents | grandparents) & ancestors:
            near.add(wnid)
    return hypernym_closure(hierarchy, closure | near)


def build_graph(
    net: WordNet, names: Sequence[str], wnids: Sequence[str | None], auxiliary: Iterable[str] = ()
) -> WordNetGraph:
    """Build the graph over the classes, their hypernyms and those `auxiliary` wnids that are related to them.

    names, wnids: (C,), the wnids unique where not None, and all in `net`.
    """
    known, auxiliary = [wnid for wnid in wnids if wnid is not None], list(auxiliary)
    hierarchy = hypernym_graph(net, known + auxiliary)
    class_nodes = [wnid or f"class:{name}" for name, wnid in zip(names, wnids, strict=True)]
    nodes = [*class_nodes, *sorted(with_auxiliary(hierarchy, known, auxiliary) - set(known))]
    index = {node: i for i, node in enumerate(nodes)}
    graph = hierarchy.subgraph(nodes).copy()
    graph.add_nodes_from(class_nodes)  # those outside WordNet, with no edges
    edges = sorted((index[child], index[parent], relation) for child, parent, relation in graph.edges(data="relation"))
    shallowest = depths(graph, min)
    path_CC, wup_CC = class_similarities(net, graph, class_nodes)
    return WordNetGraph(
        wnids=tuple(nodes),
        lemmas=tuple(net.synsets[node].lemmas if node in net.synsets else (names[i],) for i, node in enumerate(nodes)),
        depth_N=np.array([shallowest[node] for node in nodes], dtype=np.int64),
        edges_E2=np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2),
        relations=tuple(edge[2] for edge in edges),
        path_similarity_CC=path_CC,
        wup_similarity_CC=wup_CC,
    )


def depths(graph: nx.DiGraph, choose: Callable[..., int]) -> dict[str, int]:
    """Count edges from every node of a closed graph to a root, the shortest way (choose=min) or the longest (max)."""
    found: dict[str, int] = {}
    for node in reversed(list(nx.topological_sort(graph))):  # parents first
        found[node] = choose((found[parent] + 1 for parent in graph.successors(node)), default=0)
    return found


def class_similarities(net: WordNet, graph: nx.DiGraph, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Compute path and Wu-Palmer similarity, float32 (C, C) each, as NLTK defines them; 0 between unconnected classes.

    Path: 1 / (1 + d) with d the fewest edges between two synsets by way of a common hypernym.
    Wu-Palmer: 2 h / (d1 + d2 + 2 h), d1 and d2 the edges to the lowest common hypernym (the one with the largest
    minimal depth; ties: first by name) and h one more than the longest way from there to the root.
    """
    # Blocks of a class order in which relatives are neighbours are slices, and small integers travel fast: thousands of
    # classes share their upper hypernyms, and every one of these means a block of all pairs below it.
    position = {node: p for p, node in enumerate(nx.dfs_postorder_nodes(graph.reverse(copy=False)))}
    order = sorted(range(len(classes)), key=lambda c: position[classes[c]])
    above = {node: nx.single_source_shortest_path_length(graph, node) for node in graph}
    below: dict[str, list[int]] = {}
    for place, c in enumerate(order):
        for ancestor in above[classes[c]]:
            below.setdefault(ancestor, []).append(place)
    shallowest, deepest = depths(graph, min), depths(graph, max)
    # Deepest last, so that what is written last into a cell comes from the lowest common hypernym.
    ancestors = sorted(below, key=lambda a: net.synsets[a].name if a in net.synsets else a, reverse=True)
    ancestors.sort(key=shallowest.__getitem__)

    steps_CC = np.full((len(classes), len(classes)), UNCONNECTED, dtype=np.uint8)
    height_CC, whole_CC = np.zeros_like(steps_CC), np.ones_like(steps_CC)
    for ancestor in ancestors:
        nodes = [classes[order[place]] for place in below[ancestor]]
        up = np.array([above[node][ancestor] for node in nodes], dtype=np.uint8)
        # The shortest way to an ancestor may lead over one of its own ancestors: NLTK counts that one.
        way = np.array([min(above[n][a] + s for a, s in above[ancestor].items()) for n in nodes], dtype=np.uint8)
        height = np.uint8(2 * (deepest[ancestor] + 1))
        for cells, i, j in _blocks(below[ancestor]):
            steps_CC[cells] = np.minimum(steps_CC[cells], up[i, None] + up[j])
            height_CC[cells] = height
            whole_CC[cells] = way[i, None] + height + way[j]
    unorder = np.argsort(order)
    path_of = np.append(1 / (1 + np.arange(UNCONNECTED)), 0).astype(np.float32)
    wup_of = (np.arange(256)[:, None] / np.maximum(np.arange(256), 1)).astype(np.float32)
    path_CC = path_of[steps_CC[np.ix_(unorder, unorder)]]
    wup_CC = wup_of[height_CC, whole_CC][np.ix_(unorder, unorder)]
    # By its definition a synset with a short and a long way up is not even like itself (NLTK: dog and dog 0.93),
    # because a hypernym on the long way has the larger minimal depth. No use of the table wants that.
    np.fill_diagonal(wup_CC, 1)
    return path_CC, wup_CC


def _blocks(places: list[int]) -> Iterator[tuple[Any, slice, slice]]:
    """Yield all pairs of increasing integers as blocks of a matrix: their index, and the positions of rows and columns.

    Runs of neighbours make slices; where they are short, the pairs are one block by index arrays.
    """
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    runs = [slice(i, j) for i, j in zip([0, *ends.tolist()], [*ends.tolist(), len(places)], strict=True)]
    if len(runs) ** 2 * CELLS_PER_SLICE > len(places) ** 2:
        yield np.ix_(places, places), slice(None), slice(None)
        return
    spans = [slice(places[run.start], places[run.stop - 1] + 1) for run in runs]
    for rows, i in zip(spans, runs, strict=True):
        for columns, j in zip(spans, runs, strict=True):
            yield (rows, columns), i, j
