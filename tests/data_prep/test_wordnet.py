"""WordNet table, lookups and class graphs, against literals of WordNet 3.0, NLTK and the I2AwA peer graph."""

import csv
from pathlib import Path

import numpy as np
import pytest

from data_prep import UserError
from data_prep.wordnet import wordnet
from data_prep.wordnet_build import LEXNAMES, build
from data_prep.wordnet_graph import build_graph, hypernym_closure, hypernym_graph, with_auxiliary

DATA = Path(__file__).parent / "data"
DOG, CAT, MOUSE, PARIS = "n02084071", "n02121620", "n02330245", "n08932568"


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


def test_all_nouns_of_wordnet_3_0_are_there() -> None:
    hierarchy = hypernym_graph(wordnet())
    assert hierarchy.number_of_nodes() == 82_115
    assert hierarchy.number_of_edges() == 84_427
    relations = [relation for *_, relation in hierarchy.edges(data="relation")]
    assert relations.count("instance_hypernym") == 8_577
    assert [node for node, parents in hierarchy.out_degree() if parents == 0] == ["n00001740"]  # entity


def test_synset_row() -> None:
    dog = wordnet().synsets[DOG]
    assert dog.name == "dog.n.01"
    assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert dog.gloss.startswith("a member of the genus Canis")
    assert dog.hypernyms == ("n01317541", "n02083346")  # domestic animal, canine


@pytest.mark.parametrize(
    ("name", "synsets"),
    [
        ("killer+whale", ["killer_whale.n.01"]),
        ("Polar_Bear", ["ice_bear.n.01"]),
        ("mice", ["mouse.n.01", "shiner.n.01", "mouse.n.03", "mouse.n.04"]),  # by the exception list
        ("zebras", ["zebra.n.01"]),  # by rule
        ("knives", ["knife.n.01", "knife.n.02", "tongue.n.03"]),  # the exception, not the rule ves -> f
        ("glasses", ["spectacles.n.01", "glass.n.01", "glass.n.02"]),
        ("T-shirt", ["jersey.n.03"]),
        ("alarm-clock", ["alarm_clock.n.01"]),
        ("crème brûlée", ["creme_brulee.n.01"]),
        ("Adam’s apple", ["crape_jasmine.n.01", "thyroid_cartilage.n.01"]),
        ("wine glasses", ["wineglass.n.01"]),
        ("emojo", []),
        ("猫", []),
    ],
)
def test_lookup(name: str, synsets: list[str]) -> None:
    found = [synset.name for synset in wordnet().lookup(name)]
    assert found[: len(synsets)] == synsets if synsets else found == []


def test_i2awa_graph_is_the_peers() -> None:
    classes = rows("i2awa_classes.csv")
    ilsvrc = (DATA / "ilsvrc2012_wnids.txt").read_text().split()
    graph = build_graph(wordnet(), [row["name"] for row in classes], [row["wnid"] for row in classes], ilsvrc)
    edges = {(graph.wnids[child], graph.wnids[parent]) for child, parent in graph.edges_E2}
    expected = {(row["child"], row["parent"]) for row in rows("i2awa_graph_edges.csv")}
    assert len(graph.wnids) == 255
    assert len(graph.edges_E2) == 257
    assert edges == expected
    assert set(graph.wnids) == {wnid for edge in expected for wnid in edge}
    assert graph.wnids[:50] == tuple(row["wnid"] for row in classes)


def test_auxiliary_rule_looks_at_proper_ancestors_only() -> None:
    hierarchy = hypernym_graph(wordnet())
    pembroke, feline = "n02113023", "n02120997"
    assert len(hypernym_closure(hierarchy, [DOG])) == 15
    # A Pembroke's grandparent is the class itself, which does not count; feline's parent is an ancestor of the dog.
    assert pembroke not in with_auxiliary(hierarchy, [DOG], [pembroke])
    assert feline in with_auxiliary(hierarchy, [DOG], [feline])


def test_similarities_and_depths_are_nltks() -> None:
    graph = build_graph(wordnet(), ["dog", "cat", "mouse", "Paris"], [DOG, CAT, MOUSE, PARIS])
    np.testing.assert_allclose(graph.path_similarity_CC[0], [1, 1 / 5, 1 / 6, 1 / 15], rtol=1e-6)
    np.testing.assert_allclose(graph.wup_similarity_CC[0], [1, 0.85714286, 0.81481481, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(graph.wup_similarity_CC, graph.wup_similarity_CC.T)
    np.testing.assert_array_equal(graph.depth_N[:4], [8, 13, 12, 10])


def test_classes_outside_wordnet_are_nodes_without_edges() -> None:
    graph = build_graph(wordnet(), ["widget", "gadget x"], [None, None])
    assert graph.wnids == ("class:widget", "class:gadget x")
    assert graph.lemmas == (("widget",), ("gadget x",))
    assert graph.edges_E2.shape == (0, 2)
    np.testing.assert_array_equal(graph.path_similarity_CC, np.eye(2))


def test_build_names_the_missing_dictionary_file(tmp_path: Path) -> None:
    assert len(LEXNAMES) == 45
    with pytest.raises(UserError, match="has no data.noun"):
        build(tmp_path / "nouns.parquet", dictionary=tmp_path)
