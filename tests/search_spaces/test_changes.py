"""What `--set` and files make of a space, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_spaces
from data_prep.errors import UserError
from search_spaces import Ablation, Knob, Space
from search_spaces.changes import as_settings, change, describe, find_space, read_space, to_yaml
from search_spaces.plugins import PLUGINS


def shipped(name: str) -> Space:
    found = search_spaces.load(name)
    assert isinstance(found, Space)
    return found


def knob(space: Space, name: str) -> Knob:
    return next(k for k in space.knobs if k.name == name)


def test_a_value_is_fixed_and_searched_no_more() -> None:
    space = change(shipped("sre"), ["lr=3e-3", "adapter=tokens", "residual=false"])
    assert not {"lr", "adapter", "residual"} & {k.name for k in space.knobs}
    config: Any = space.config(**space.defaults())
    assert (config.lr, config.adapter, config.residual) == (3e-3, "tokens", False)


def test_a_range_keeps_the_default_that_lies_in_it_and_else_takes_its_middle() -> None:
    space = change(shipped("sre"), ["lr=5e-4..2e-3:log", "rho=4..9:log", "w_ent=2..4", "gcn_layers=1..2"])
    assert (knob(space, "lr").low, knob(space, "lr").high, knob(space, "lr").log) == (5e-4, 2e-3, True)
    assert knob(space, "lr").default == 1e-3
    assert knob(space, "rho").default == pytest.approx(6)
    assert knob(space, "w_ent").default == 3 and not knob(space, "w_ent").log
    assert knob(space, "gcn_layers").default == 1 and knob(space, "gcn_layers").is_int
    assert knob(change(space, ["rho=4..9@8"]), "rho").default == 8


def test_values_to_choose_from_have_the_type_of_the_field() -> None:
    space = change(shipped("sre"), ["gcn_width=32,64", "batch_size=64,128@128", "adapter=tokens,memory"])
    assert knob(space, "gcn_width").choices == (32, 64) and knob(space, "gcn_width").default == 32
    assert knob(space, "adapter").choices == ("tokens", "memory") and knob(space, "adapter").default == "memory"
    added = knob(space, "batch_size")  # which no shipped space searches
    assert added.choices == (64, 128) and added.default == 128 and added.scope == "static"
    assert knob(change(shipped("linear-probe"), ["lr=1e-3,1e-2"]), "lr").scope == "lane"


def test_a_knob_follows_the_one_that_it_depends_on() -> None:
    flat = change(shipped("sre"), ["gcn_layers=0"])
    assert not {"gcn_width", "adjacency"} & {k.name for k in flat.knobs}
    deep = change(shipped("sre"), ["gcn_layers=2"])
    assert knob(deep, "gcn_width").when is None and knob(deep, "adjacency").when is None


def test_the_last_word_on_a_knob_counts() -> None:
    space = change(shipped("sre"), ["lr=1e-3", "lr=1e-4..1e-3:log"])
    assert knob(space, "lr").high == 1e-3 and not any(s == "lr=0.001" for s in describe(space))
    assert change(shipped("sre"), ["rho=2", "rho=3"]).config().rho == 3  # type: ignore[attr-defined]


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.01, 1e3),
    log=st.booleans(),
    choices=st.sets(st.integers(1, 512), min_size=2),
)
def test_a_description_makes_the_same_space_again(low: float, factor: float, log: bool, choices: set[int]) -> None:
    changed = change(
        shipped("sre"),
        [
            f"w_ent={low}..{low * factor}{':log' * log}",
            f"slots={','.join(map(str, choices))}",
            "heads=2",
            "gcn_layers=2",
        ],
    )
    assert describe(change(shipped("sre"), describe(changed))) == describe(changed)


@pytest.mark.parametrize("name", [n for n in search_spaces.shipped() if "ablation" not in n])
def test_yaml_holds_a_whole_space(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(shipped(name)))
    read = read_space(file)
    assert isinstance(read, Space) and read.name == name
    assert read.knobs == shipped(name).knobs
    assert as_settings(read) == describe(shipped(name))


def test_a_file_says_all_that_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: sre\nknobs:\n  lr: {low: 1e-4, high: 1e-3, log: true, why: mine}\n  slots: [16, 32]\nfixed: {rho: 2}\n"
    )
    space = find_space(str(file), ["slots=8,16"])
    assert isinstance(space, Space) and [k.name for k in space.knobs] == ["lr", "slots"]
    assert knob(space, "lr").why == "mine" and knob(space, "slots").choices == (8, 16)
    config: Any = space.config(**space.defaults())
    assert (config.rho, config.adapter, config.w_ent) == (2.0, "memory", 1.0)


def test_python_exports_a_space(tmp_path: Path) -> None:
    (tmp_path / "space_of_mine.py").write_text(
        "from dataclasses import replace\nfrom search_spaces import load\nSPACE = replace(load('sre'), name='mine')\n"
    )
    space = find_space(str(tmp_path / "space_of_mine.py"))
    assert isinstance(space, Space) and space.name == "mine"
    assert not PLUGINS  # of ranges alone no worker needs the file
    (tmp_path / "own_config.py").write_text(
        "from dataclasses import replace\nfrom models.baselines import LinearProbeConfig\n"
        "from search_spaces import load\n"
        "class Mine(LinearProbeConfig): ...\nSPACE = replace(load('linear-probe'), name='own', config=Mine)\n"
    )
    find_space(str(tmp_path / "own_config.py"))
    assert list(PLUGINS) == ["own_config"]
    (tmp_path / "no_space_there.py").write_text("X = 1\n")
    with pytest.raises(UserError, match="space must be a file that exports SPACE, a Space; .* has None"):
        find_space(str(tmp_path / "no_space_there.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="space must be a file with a name that no other module has; got json.py"):
        find_space(str(tmp_path / "json.py"))


def test_a_space_that_is_no_change_of_its_base_needs_a_name_of_its_own() -> None:
    changed = replace(shipped("sre"), knobs=shipped("sre").knobs[::-1])
    with pytest.raises(UserError, match="space needs a name of its own; sre is another space"):
        as_settings(changed)
    fewer = replace(shipped("sre"), knobs=shipped("sre").knobs[:5])
    assert change(shipped("sre"), as_settings(fewer)).knobs == fewer.knobs


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", r"must name a knob of SRE-CLIP \(adapter, .*; got 'lrr' \(nearest: lr\)"),
        ("lr", "must be NAME=VALUE, NAME=LOW..HIGH or NAME=A,B; got 'lr'"),
        ("lr=", "must be NAME=VALUE, NAME=LOW..HIGH or NAME=A,B; got 'lr='"),
        ("lr=fast", "must be a number for lr; got 'fast'"),
        ("heads=1.5", "must be a whole number for heads; got '1.5'"),
        ("residual=yes", "must be true or false for residual; got 'yes'"),
        ("adapter=memry", r"must be one of memory, tokens, none for adapter; got 'memry' \(nearest: memory\)"),
        ("adapter=memory..tokens", "must have values to choose from, not a range, for adapter"),
        ("lr=1..0", "must have a lowest value below the highest, for lr; got 1.0 and 0.0"),
        ("lr=nan..1", "must have a lowest value below the highest, for lr; got nan and 1.0"),
        ("rho=0..1:log", "must have a lowest value above 0 and below the highest, on a log scale, for rho"),
        ("lr=-1", "must be a value that SRE-CLIP takes; lr=-1.0: lr must be finite and positive, got -1.0"),
        ("lr=1e-3..inf", "must be a value that SRE-CLIP takes; lr=inf: lr must be finite"),
        ("batch_size=0,8", "must be a value that SRE-CLIP takes; batch_size=0"),
        ("adapter=memory,tokens@none", "must make a knob that can be drawn: knob adapter: default must be one of"),
        ("rho=5@3", "must be a range or values where @ says the first one; got 'rho=5@3'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^set {message}"):
        change(shipped("sre"), [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "must be YAML; .*mine.yaml: "),
        ("knobs: {}", "must say its base, such as base: sre"),
        ("base: sra", "must be one of .*; got 'sra' .nearest: sre."),
        ("base: sre-ablation", "must have a method's space as its base; .* has sre-ablation"),
        ("base: sre\nknob: {}", "must have base, knobs, fixed; .* has 'knob' .nearest: knobs."),
        ("base: sre\nknobs: {lr: {lo: 1}}", "must have low, high, log, .*; .*: lr has 'lo' .nearest: low."),
        ("base: sre\nknobs: {lr: {low: 1}}", "must have low and high, or choices; lr has no high"),
        ("base: sre\nknobs: {lr: []}", r"must have values to choose from for lr; got \[\]"),
        ("base: sre\nknobs: {lr: 3}", "must have names with values; .*: lr has 3"),
        ("base: sre\nfixed: {nose: 3}", "must name a knob of SRE-CLIP .*; got 'nose'"),
        (
            "base: sre\nknobs: {slots: {choices: [4, 8], when: {lr: [1]}}}",
            "must depend on one static knob before it .*; slots depends on lr",
        ),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^space {message}"):
        find_space(str(tmp_path / "mine.yaml"))


def test_an_ablation_takes_no_settings() -> None:
    assert isinstance(find_space("sre-ablation"), Ablation)
    with pytest.raises(UserError, match="^set must come with the space of a method, sre-ablation is an ablation"):
        find_space("sre-ablation", ["lr=1"])
