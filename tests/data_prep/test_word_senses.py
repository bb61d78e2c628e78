"""Names of a data set say each other's senses."""

from data_prep.word_senses import likely_senses
from data_prep.wordnet import wordnet

ANIMALS = ["zebra", "giraffe", "hippopotamus", "walrus", "chimpanzee", "antelope", "squirrel"]
TOOLS = ["screwdriver", "hammer", "chisel", "corkscrew", "spatula", "tweezers", "crowbar"]


def likeliest(name: str, beside: list[str]) -> str:
    return likely_senses([*beside, name], wordnet())[-1][0].name


def test_a_name_has_the_sense_that_lies_near_the_others() -> None:
    assert [sense.name for sense in wordnet().lookup("seal")][:2] == ["sealing_wax.n.01", "seal.n.02"]
    assert (likeliest("seal", ANIMALS), likeliest("seal", TOOLS)) == ("seal.n.09", "seal.n.02")  # the mammal, a stamp
    assert (likeliest("crane", ANIMALS), likeliest("crane", TOOLS)) == ("crane.n.05", "crane.n.04")  # bird, machine


def test_every_sense_stays_in_the_list() -> None:
    names = [*ANIMALS, "seal", "no such noun"]
    for name, likely in zip(names, likely_senses(names, wordnet()), strict=True):
        assert sorted(likely) == sorted(wordnet().lookup(name))
    assert likely_senses([], wordnet()) == []
