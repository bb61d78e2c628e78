"""Features that exist already give the cache that their images give, and every mistake in their file is one line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep import FeatureOptions, prepare
from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet, load, load_target_labels
from data_prep.recompute import recompute

CLIP = str(ASSETS / "clip")
Write = Callable[..., str]


@pytest.fixture(scope="module")
def of_images(
    prepare_small: Callable[..., Path], module_without_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cache of the small folder."""
    return prepare_small(tmp_path_factory.mktemp("images"))


@pytest.fixture
def columns(of_images: Path) -> dict[str, Any]:
    """What its user would have kept: features longer than 1, names, domains."""
    features = load(of_images)
    names, parts = features.classes.names, (features.source, features.target)
    labels = torch.cat([features.source_labels_I, load_target_labels(of_images)])
    return {
        "feature": 3 * torch.cat([part.features_ID for part in parts]).numpy(),
        "label": np.array([names[c] for c in labels]),
        "domain": np.array(["source"] * len(features.source.keys) + ["target"] * len(features.target.keys)),
        "key": np.array([key for part in parts for key in part.keys.to_pylist()]),
        "split": np.array([("train", "val", "test")[s] for s in torch.cat([part.split_I for part in parts])]),
    }


@pytest.fixture
def write(small_folder: Path, tmp_path: Path) -> Write:
    """Writes features.npz or features.parquet with classes.csv beside it; returns the benchmark's name."""

    def call(columns: dict[str, Any], suffix: str = "npz") -> str:
        shutil.copy(small_folder / "classes.csv", tmp_path)
        if suffix == "npz":
            np.savez(tmp_path / "features.npz", **{f"{name}s": values for name, values in columns.items()})
        else:
            table = {name: pa.array(list(v)) if v.ndim == 2 else pa.array(v) for name, v in columns.items()}
            pq.write_table(pa.table(table), tmp_path / "features.parquet")
        return f"features:{tmp_path}"

    return call


def built(name: str, cache_dir: Path, **options: Any) -> FeatureSet:
    return load(prepare(FeatureOptions(benchmark=name, clip=CLIP, cache_dir=cache_dir, **options)))


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_the_cache_is_that_of_the_images(
    suffix: str, columns: dict[str, Any], write: Write, of_images: Path, tmp_path: Path, without_ray: None
) -> None:
    name = write(columns, suffix)
    ours, theirs = built(name, tmp_path / "cache"), load(of_images)
    for mine, given in ((ours.source, theirs.source), (ours.target, theirs.target)):
        assert torch.allclose(mine.features_ID, given.features_ID, atol=1e-3)
        assert mine.keys == given.keys and torch.equal(mine.split_I, given.split_I)
    assert torch.equal(ours.source_labels_I, theirs.source_labels_I)
    assert torch.equal(ours.name_features_CPD, theirs.name_features_CPD)
    assert torch.equal(ours.node_features_ND, theirs.node_features_ND)
    (folder,) = (tmp_path / "cache").glob("features-*[!s]")
    assert torch.equal(load_target_labels(folder), load_target_labels(of_images))
    notes = get_benchmark(name).notes
    assert notes[-1] == "32 of 32 features are 3 to 3 long: each is scaled to length 1"
    assert recompute(folder, clip=CLIP, samples=4) > 0.999


def test_rows_of_classes_csv_and_roles_that_are_said(columns: dict[str, Any], write: Write) -> None:
    plain = get_benchmark(write(columns)).images
    order = ["anchor", "banana", "bear", "bed"]
    domains = np.where(columns["domain"] == "source", "photos", "sketches").astype("U9")
    domains[0] = "paintings"
    named = write(columns | {"label": np.array([order.index(x) for x in columns["label"]]), "domain": domains})
    with pytest.raises(UserError, match="domain must be source or target; found paintings, photos, sketches: say"):
        get_benchmark(named)
    with pytest.raises(UserError, match="source must be a domain of .*: paintings, photos, sketches; got 'photo'"):
        get_benchmark(f"{named}::photo::sketches")
    said = get_benchmark(f"{named}::photos::sketches")
    assert said.images.equals(plain.slice(1))  # without the painting
    assert said.notes[-1] == "left out: 1 images of domain paintings"


def test_target_images_may_lack_a_label_and_source_images_may_not(columns: dict[str, Any], write: Write) -> None:
    order, plain = ["anchor", "banana", "bear", "bed"], get_benchmark(write(columns)).images.to_pandas()
    rows = np.array([order.index(x) for x in columns["label"]])
    is_bed = (columns["domain"] == "target") & (columns["label"] == "bed")
    expected = plain.label.where(~is_bed, -1)
    for suffix, labels in (
        ("npz", np.where(is_bed, -1, rows)),
        ("npz", np.where(is_bed, "", columns["label"])),
        ("parquet", np.where(is_bed, None, columns["label"])),  # type: ignore[call-overload]
    ):
        assert get_benchmark(write(columns | {"label": labels}, suffix)).images.to_pandas().label.equals(expected)
        for file in Path(write(columns).removeprefix("features:")).glob("features.*"):
            file.unlink()
    nobody = columns | {"label": np.where(columns["domain"] == "source", -1, rows)}
    with pytest.raises(UserError, match="every source image needs a label; none for source/anchor/0.png"):
        get_benchmark(write(nobody))
    # in one domain they are the target's
    one = {"feature": columns["feature"], "label": np.where(is_bed, -1, rows)}
    dealt = get_benchmark(write(one)).images.to_pandas()
    assert set(dealt[dealt.label == -1].domain) == {"target"} and (dealt.label == -1).sum() == is_bed.sum()


def test_without_domains_splits_say_the_roles_and_without_both_they_are_dealt(
    columns: dict[str, Any], write: Write
) -> None:
    one = {name: values for name, values in columns.items() if name in ("feature", "label")}
    split = get_benchmark(write(one | {"split": columns["split"]})).images.to_pandas()
    assert set(split[split.domain == "target"].split) == {2} and set(split[split.domain == "source"].split) == {0, 1}
    dealt = get_benchmark(write(one)).images.to_pandas()
    source, target = (dealt[dealt.domain == domain] for domain in ("source", "target"))
    assert set(source.label) == {0, 1} and (target.label >= 2).sum() == 16  # images of unseen classes are all tested
    assert dealt.key.is_unique and len(source) + len(target) == 32


def test_features_that_are_no_features_are_rejected(
    columns: dict[str, Any], write: Write, tmp_path: Path, without_ray: None
) -> None:
    columns["feature"][0, 3] = np.nan
    columns["feature"][1] = 0
    name = write(columns)
    with pytest.raises(UserError, match=r"2 of 32 images cannot be read .*0.png \(the feature is not finite\)"):
        built(name, tmp_path / "cache")
    features = built(name, tmp_path / "cache", max_rejected=0.1)
    assert features.rejected == 2 and len(features.source.features_ID) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": None}, "must have feature; found labels, domains, keys, splits"),
        ({"feature": np.ones(32)}, "feature must be floats, images x dimension; got float64, 32"),
        ({"feature": np.ones((32, 8), int)}, "feature must be floats, images x dimension; got int64, 32 x 8"),
        ({"feature": np.ones((31, 192))}, "all arrays must have a row for each image; got"),
        ({"label": np.array(["bare"] * 32)}, "label must be a name of classes.csv; got bare .nearest: bear"),
        ({"label": np.full(32, 4)}, "label must be a row of classes.csv, 0 to 3, or -1 of images without one; got 4"),
        ({"split": np.array(["all"] * 32)}, "split must be one of train, .*; got all"),
        ({"key": np.array(["a"] * 32)}, "key must be unique; 'a' is there twice"),
        ({"domain": np.array(["source"] * 32)}, "every unseen class needs target images; none for bear, bed"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    change: dict[str, Any], message: str, columns: dict[str, Any], write: Write
) -> None:
    changed = {name: values for name, values in (columns | change).items() if values is not None}
    with pytest.raises(UserError, match=message):
        get_benchmark(write(changed))


def test_features_of_another_model_or_without_a_file_are_refused(
    columns: dict[str, Any], write: Write, tmp_path: Path, without_ray: None
) -> None:
    name = write(columns | {"feature": columns["feature"][:, :100]})
    with pytest.raises(
        UserError, match="clip must be the checkpoint of the features, which have 100 dimensions; .* 192"
    ):
        built(name, tmp_path / "cache")
    with pytest.raises(UserError, match="tokens must be left out with features:"):
        built(name, tmp_path / "cache", tokens=True)
    with pytest.raises(UserError, match="must be features:PATH of a Parquet or npz file, .* is no such file"):
        get_benchmark("features:/no/where.npz")
    (tmp_path / "features.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match="features.npz cannot be read: "):
        get_benchmark(name)
    (tmp_path / "features.npz").unlink()
    with pytest.raises(UserError, match="is a folder with none"):
        get_benchmark(name)


# --- class texts' features --------------------------------------------------------------------------------------------


def with_texts(name: str, tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "texts.npz", **arrays)
    return name


def test_class_texts_that_are_given_take_the_place_of_a_checkpoint(
    columns: dict[str, Any], write: Write, of_images: Path, tmp_path: Path, without_ray: None
) -> None:
    theirs = load(of_images)
    name = with_texts(
        write(columns), tmp_path, features=2 * theirs.name_features_CPD.numpy(), logit_scale=np.float32(20)
    )
    bench = get_benchmark(name)
    assert bench.notes[2].startswith("class texts: 5 of each class from texts.npz, logit_scale 20. Without a text")
    cache = prepare(FeatureOptions(benchmark=name, cache_dir=tmp_path / "cache"))
    ours = load(cache)
    assert torch.allclose(ours.name_features_CPD, theirs.name_features_CPD, atol=1e-3)
    assert torch.allclose(ours.target.features_ID, theirs.target.features_ID, atol=1e-3)
    assert ours.logit_scale == 20.0 and len(ours.graph.edges_E2) == 0 and ours.classes.wnids == (None,) * 4
    # a class is a node of its own, with the mean of its texts
    mean_CD = torch.nn.functional.normalize(ours.name_features_CPD.mean(1), dim=1)
    assert torch.allclose(ours.node_features_ND, mean_CD, atol=1e-3)
    assert recompute(cache) > 0.999
    # other texts are another cache
    with_texts(name, tmp_path, features=theirs.name_features_CPD.numpy()[:, 0])
    again = load(prepare(FeatureOptions(benchmark=name, cache_dir=tmp_path / "cache")))
    assert again.name_features_CPD.shape == (4, 1, 192) and again.logit_scale == 100.0
    for option, value in (("clip", CLIP), ("templates", ("imagenet7",))):
        with pytest.raises(UserError, match=f"^{option} must be left out: .*texts.npz has the"):
            prepare(FeatureOptions(benchmark=name, cache_dir=tmp_path / "cache", **{option: value}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"texts": np.ones((4, 192))}, "texts.npz must have features; found texts"),
        (
            {"features": np.ones((3, 192))},
            "floats, 4 classes x 192 .*, or classes x prompts x 192; got float64, 3 x 192",
        ),
        ({"features": np.ones((4, 64))}, "floats, 4 classes x 192 .*; got float64, 4 x 64"),
        ({"features": np.eye(4, 192) * [[1], [1], [0], [1]]}, "must be finite and not 0; those of row 2 are not"),
        ({"features": np.eye(4, 192), "logit_scale": np.array(-1.0)}, "logit_scale must be a number over 0; got -1.0"),
        ({"features": np.array(["a"])}, "features must be floats, .*; got <U1, 1"),
    ],
)
def test_a_mistake_in_given_texts_is_one_line(
    arrays: dict[str, Any], message: str, columns: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        get_benchmark(with_texts(write(columns), tmp_path, **arrays))


def test_classes_whose_given_texts_are_equal_are_refused(
    columns: dict[str, Any], write: Write, tmp_path: Path, without_ray: None
) -> None:
    name = with_texts(write(columns), tmp_path, features=np.ones((4, 192)))
    with pytest.raises(UserError, match="texts of classes must differ .*; 'anchor' and 'banana' do not"):
        prepare(FeatureOptions(benchmark=name, cache_dir=tmp_path / "cache"))
