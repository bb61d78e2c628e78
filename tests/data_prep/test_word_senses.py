"""Names of a data set say each other's senses."""

import pytest

from data_prep import UserError
from data_prep.word_senses import likely_senses, resolve_wnids
from data_prep.wordnet import wordnet

DOG = "n02084071"
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


def test_names_without_a_wnid_are_looked_up() -> None:
    assert resolve_wnids(["zebras", "dog", "widget x"], ["", DOG, "-"], where="w") == ("n02391049", DOG, None)


def test_ambiguous_and_missing_names_are_listed_with_candidates() -> None:
    with pytest.raises(UserError) as error:
        resolve_wnids(["mouse", "zebra", "emojo"], ["", "", ""], where="column wnid of classes.csv")
    message = str(error.value)
    assert message.endswith("\nThe likeliest beside the other names: mouse n02330245, emojo -")
    assert message.startswith("2 of 3 class names need a wnid in column wnid of classes.csv ('-' for a class")
    assert "'mouse' is ambiguous" in message and "'emojo' is no noun of WordNet" in message
    assert "n03793489  mouse, computer mouse: a hand-operated electronic device" in message


@pytest.mark.parametrize("given", ["n02084071", "N02084071", "02084071", "2084071", "n2084071", " dog.n.01 "])
def test_a_wnid_may_be_spelled_in_every_usual_way(given: str) -> None:
    assert resolve_wnids(["dog"], [given], where="classes.csv") == ("n02084071",)


@pytest.mark.parametrize("given", ["n99999999", "dog.n.99", "dog.v.01", "unicorns.n.01", "dogs", "n"])
def test_a_wnid_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="as n02084071 or dog.n.01; class 'dog' has"):
        resolve_wnids(["dog"], [given], where="classes.csv")


def test_unknown_and_duplicate_wnids_are_refused() -> None:
    with pytest.raises(UserError, match="class 'dog' has 'n99999999'"):
        resolve_wnids(["dog"], ["n99999999"], where="w")
    with pytest.raises(UserError, match="classes 'dog' and 'hound' both have n02084071"):
        resolve_wnids(["dog", "hound"], [DOG, DOG], where="w")


def test_two_names_of_one_synset_are_not_both_told_to_take_it() -> None:
    with pytest.raises(UserError) as error:
        resolve_wnids(["mouse", "cat", "Cat"], ["", "", ""], where="classes.csv")
    assert str(error.value).endswith(": mouse n02330245, cat n02121620, Cat n02127808")
