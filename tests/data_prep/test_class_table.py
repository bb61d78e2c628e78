"""From a folder of images to its class table."""

import csv
from pathlib import Path

import pytest

from data_prep import UserError
from data_prep.__main__ import classes
from data_prep.benchmarks import get_benchmark
from data_prep.class_table import write_class_table


def folders(root: Path, names: list[str], domains: tuple[str, ...] = ("source", "target")) -> Path:
    for name in names:
        for domain in domains:
            (root / domain / name).mkdir(parents=True)
            for i in range(2):
                (root / domain / name / f"{i}.png").write_bytes(b"x")
    return root


def read(root: Path) -> dict[str, dict[str, str]]:
    with (root / "classes.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


EVERYDAY = ["dog", "cat", "car", "chair", "mouse", "apple", "orange", "guitar", "bus", "tiger", "fire_engine", "crane"]


def test_everyday_names_take_a_sense_and_show_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = folders(tmp_path, EVERYDAY)
    classes(root)
    table = read(root)
    assert sorted(table) == sorted(name.replace("_", " ") for name in EVERYDAY)
    assert table["dog"]["wnid"] == "n02084071" and table["dog"]["guess"] == "1 of 7"
    assert table["dog"]["other senses"].count(" | n") == 4 and "n02084071" not in table["dog"]["other senses"]
    assert sum(row["seen"] == "0" for row in table.values()) == 3
    assert "look at the senses" in capsys.readouterr().out
    bench = get_benchmark(f"folder:{root}")
    assert bench.classes.wnids[bench.classes.names.index("fire engine")] == table["fire engine"]["wnid"]


def test_names_outside_wordnet_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cars = [f"Model {letter}{k}00" for letter in "QXZ" for k in range(1, 5)]
    root = folders(tmp_path, cars, domains=("train", "test"))
    classes(root)
    assert {row["wnid"] for row in read(root).values()} == {"-"}
    assert "no class is in WordNet" in capsys.readouterr().out
    assert get_benchmark(f"folder:{root}").classes.wnids == (None,) * 12


def test_a_synset_is_one_class_only(tmp_path: Path) -> None:
    root = folders(tmp_path, ["bus", "autobus", "dog"])
    write_class_table(root)
    table = read(root)
    assert len({row["wnid"] for row in table.values()}) == 3
    assert table["autobus"]["guess"] == "1 of 1" and table["bus"]["wnid"] != table["autobus"]["wnid"]


def test_a_class_whose_senses_others_have_has_none(tmp_path: Path) -> None:
    write_class_table(folders(tmp_path, ["wine glass", "wineglass", "dog"]))
    table = read(tmp_path)
    assert (table["wine glass"]["wnid"], table["wine glass"]["guess"]) == ("n04592099", "1 of 1")
    assert (table["wineglass"]["wnid"], table["wineglass"]["guess"]) == ("-", "other classes have its senses")


def test_unseen_classes_may_be_given_or_dealt_by_a_seed(tmp_path: Path) -> None:
    root = folders(tmp_path, EVERYDAY, domains=("",))
    write_class_table(root, unseen=["dog", "fire engine"])
    assert {name for name, row in read(root).items() if row["seen"] == "0"} == {"dog", "fire engine"}
    dealt = []
    for seed in (0, 0, 1, 2, 3):
        write_class_table(root, seed=seed, force=True)
        dealt.append(frozenset(name for name, row in read(root).items() if row["seen"] == "0"))
    assert dealt[0] == dealt[1] and len(set(dealt)) > 1


@pytest.mark.parametrize("domains", [("source", "target"), ("train", "test")])
def test_classes_that_the_target_alone_has_are_the_unseen_ones(tmp_path: Path, domains: tuple[str, str]) -> None:
    root = folders(tmp_path, EVERYDAY, domains)
    for name in ("okapi", "polar_bear"):
        (root / domains[1] / name).mkdir()
        (root / domains[1] / name / "0.png").write_bytes(b"x")
    write_class_table(root)
    assert {name for name, row in read(root).items() if row["seen"] == "0"} == {"okapi", "polar bear"}
    write_class_table(root, unseen=["dog"], force=True)
    assert {name for name, row in read(root).items() if row["seen"] == "0"} == {"dog", "okapi", "polar bear"}
    assert len(get_benchmark(f"folder:{root}").classes.names) == len(EVERYDAY) + 2


def test_a_class_without_target_images_is_not_dealt_as_unseen(tmp_path: Path) -> None:
    root = folders(tmp_path, ["dog", "cat"])
    folders(root, EVERYDAY[2:], domains=("source",))
    for seed in range(3):
        write_class_table(root, seed=seed, force=True)
        assert {name for name, row in read(root).items() if row["seen"] == "0"} <= {"dog", "cat"}


def test_an_unseen_class_needs_no_folder_where_images_have_no_label(tmp_path: Path) -> None:
    root = folders(tmp_path, ["dog", "cat"])
    with pytest.raises(UserError, match="unseen must be classes of .*; got 'okapi'"):
        write_class_table(root, unseen=["okapi"])
    (root / "target" / "1.png").write_bytes(b"")
    write_class_table(root, unseen=["okapi", "polar_bear"])
    assert {name: row["seen"] for name, row in read(root).items()} == {
        "cat": "1", "dog": "1", "okapi": "0", "polar bear": "0",
    }  # fmt: skip


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    root = folders(tmp_path / "images", ["dog", "cat"])
    with pytest.raises(UserError, match=r"unseen must be classes of .*; got 'dgo' \(nearest: dog\)"):
        write_class_table(root, unseen=["dgo"])
    with pytest.raises(UserError, match="unseen must leave a seen class; got all 2"):
        write_class_table(root, unseen=["dog", "cat"])
    with pytest.raises(UserError, match="path must be a folder of images; got"):
        write_class_table(tmp_path / "none")
    with pytest.raises(UserError, match="path must hold a folder for each of at least two classes; .* has 0"):
        write_class_table(tmp_path / "images" / "source" / "dog")
    write_class_table(root)
    with pytest.raises(UserError, match="force must be given to write over .*classes.csv, which is there"):
        write_class_table(root)
