"""Caches: built the same twice, resumed, and refused when anything about them is off."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from data_prep import UserError
from data_prep.feature_store import load, load_target_labels, mapped, verify
from data_prep.manifest import MANIFEST, read_manifest, write_manifest
from data_prep.storage import locate

EMBEDDED = [
    [
        [0.0472, 0.0574, 0.0101, -0.0369, 0.1071, -0.1276],
        [0.017, -0.1224, 0.0992, 0.0943, 0.1668, 0.1121],
        [0.0497, -0.0534, -0.0347, -0.1143, 0.0709, -0.0897],
    ],
    [
        [0.0161, 0.1266, -0.0624, -0.0392, 0.0565, -0.034],
        [0.0685, -0.0983, -0.1383, -0.0799, 0.0271, -0.089],
        [0.0955, 0.1844, 0.0341, -0.0292, -0.0489, -0.0078],
    ],
]  # source and target, images 0, 500 and the last
Prepare = Callable[..., Path]
Interrupt = Callable[[Path | str], None]


@pytest.fixture
def copy(small_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_cache, tmp_path / "copy"))


def reseal(cache: Path) -> None:
    """Write the manifest of files that were altered."""
    manifest = read_manifest(cache)
    write_manifest(
        locate(cache),
        manifest.inputs,
        benchmark=manifest.benchmark,
        clip=manifest.clip,
        logit_scale=manifest.logit_scale,
    )


def test_shapes_and_values(small_cache: Path) -> None:
    features = load(small_cache)
    assert features.clip == "icons2emoji/clip"
    assert features.logit_scale == pytest.approx(21.633, abs=1e-3)
    assert features.classes.names == ("anchor", "banana", "bear", "bed")
    assert features.classes.unseen_RC.tolist() == [[False, False, True, True]]
    assert features.source.features_ID.shape == (16, 192)
    assert features.source.features_ID.dtype == torch.float32
    assert features.source.keys.to_pylist()[:2] == ["source/anchor/0.png", "source/anchor/1.png"]
    assert features.source_labels_I.tolist() == [c for c in range(4) for _ in range(4)]
    assert sorted(features.target.split_I[:4].tolist()) == [0, 0, 1, 2]
    assert features.name_features_CPD.shape == (4, 5, 192)
    nodes = len(features.graph.node_wnids)
    assert features.node_features_ND.shape == (nodes, 192)
    assert features.graph.class_node_C.tolist() == [0, 1, 2, 3]
    assert features.graph.node_names[:4] == ("anchor", "banana", "bear", "bed")
    assert features.graph.edges_E2.max() < nodes
    lengths = torch.cat([features.source.features_ID, features.node_features_ND]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert load_target_labels(small_cache).tolist() == [c for c in range(4) for _ in range(4)]


def test_features_are_stored_as_float16_lists(small_cache: Path) -> None:
    assert (
        str(pq.read_schema(small_cache / "source.parquet").field("feature").type)
        == "fixed_size_list<element: halffloat>[192]"
    )
    column = pq.ParquetFile(small_cache / "source.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_load_takes_nothing_from_the_target_labels(copy: Path, small_cache: Path) -> None:
    path = copy / "target_labels.parquet"
    path.write_bytes(b"no table")  # load could not read it
    reseal(copy)
    assert torch.equal(load(copy).target.features_ID, load(small_cache).target.features_ID)


@pytest.mark.parametrize("name", ["target_labels.parquet", "source_labels.parquet"])
def test_all_files_are_checked_before_a_search(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=name):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load(copy)


def test_the_manifest_protects_its_own_facts(copy: Path) -> None:
    assert read_manifest(copy).protected
    path = copy / MANIFEST
    stated = json.loads(path.read_text())
    for altered in ({"logit_scale": 1.0}, {"clip": "other"}, {"batch": 1}, {"files": {}}, {"new": 1}):
        path.write_text(json.dumps(stated | altered))
        with pytest.raises(UserError, match="manifest.json was altered: its content_sha256"):
            load(copy)


def test_a_cache_of_an_earlier_version_is_read(copy: Path, small_cache: Path, tmp_path: Path) -> None:
    path = copy / MANIFEST
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in stated.items() if k not in ("content_sha256", "arrays")}))
    assert not read_manifest(copy).protected
    assert load(copy).fingerprint == load(small_cache).fingerprint
    assert np.array_equal(mapped(copy, "source", tmp_path), mapped(small_cache, "source", tmp_path))


def test_a_restart_goes_on_and_gives_the_same_bytes(
    small_cache: Path, prepare_small: Prepare, interrupted_build: Interrupt, tmp_path: Path, without_ray: None
) -> None:
    interrupted_build(tmp_path)
    assert not list(tmp_path.glob("folder-*"))  # no half cache
    calls: list[tuple[str, int, int]] = []
    cache = prepare_small(tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("features", 1, 2), ("features", 2, 2)]
    assert verify(cache) == verify(small_cache)
    assert read_manifest(cache) == read_manifest(small_cache)
    calls.clear()
    assert prepare_small(tmp_path, progress=lambda *call: calls.append(call)) == cache
    assert calls == []  # nothing to do
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [cache.name]


def test_shards_left_by_a_build_killed_after_its_manifest_are_cleared_by_the_next_run(
    small_cache: Path, prepare_small: Prepare, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / small_cache.name))
    shards = tmp_path / f".{cache.name}.building"
    shards.mkdir()
    (shards / "plan.json").write_text("{}")
    with FileLock(tmp_path / f".{cache.name}.lock"):  # another process rebuilds the cache: these are its shards
        assert prepare_small(tmp_path) == cache
    assert shards.exists()
    assert prepare_small(tmp_path) == cache
    assert not shards.exists()


def test_a_cache_is_rebuilt_when_asked_or_when_its_manifest_is_gone(
    small_cache: Path, prepare_small: Prepare, tmp_path: Path, without_ray: None
) -> None:
    calls: list[tuple[str, int, int]] = []
    cache = Path(shutil.copytree(small_cache, tmp_path / small_cache.name))
    (cache / "source.parquet").write_bytes(b"")
    assert prepare_small(tmp_path, rebuild=True, progress=lambda *call: calls.append(call)) == cache
    assert calls[0] == ("features", 0, 2)
    (cache / MANIFEST).unlink()
    prepare_small(tmp_path)
    assert verify(cache) == verify(small_cache)


def test_a_cache_folder_that_cannot_be_made_is_one_clear_error(prepare_small: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^the cache folder must be writable"):
        prepare_small(tmp_path / "file")


def test_zero_shot_accuracy_of_the_embedded_benchmark(embedded_cache: Path) -> None:
    """The checkpoint's own metrics.json says 50.06 % on icons and 32.57 % on emoji with the single template."""
    features = load(embedded_cache)
    prototypes_CD = features.name_features_CPD[:, 0]
    icons = (features.source.features_ID @ prototypes_CD.T).argmax(1) == features.source_labels_I
    emoji = (features.target.features_ID @ prototypes_CD.T).argmax(1) == load_target_labels(embedded_cache)
    assert icons.float().mean().item() == pytest.approx(0.5006, abs=2e-3)
    assert emoji.float().mean().item() == pytest.approx(0.3257, abs=2e-3)
    assert features.node_features_ND.shape == (568, 192)
    assert features.graph.edges_E2.shape == (598, 2)
    assert read_manifest(embedded_cache).precision == "float32"
    # Published results stand on these inputs and features: whoever changes them must publish anew.
    assert features.fingerprint == "120d128da2137940d58123d3dfd9ac2ef4f7d6939f1af31aeb5e129252490391"
    expected = torch.tensor(EMBEDDED)
    found = torch.stack([f[[0, 500, -1], :6] for f in (features.source.features_ID, features.target.features_ID)])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["source.parquet", "node_texts.parquet", "similarity.parquet"])
def test_a_truncated_file_is_refused_by_name(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name} is truncated"):
        load(copy)


def test_an_altered_file_is_refused_by_name(copy: Path) -> None:
    content = bytearray((copy / "target.parquet").read_bytes())
    content[100] ^= 1
    (copy / "target.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"target.parquet was altered after it was written"):
        load(copy)


def test_a_file_of_other_features_is_refused_by_name(copy: Path) -> None:
    table = pq.read_table(copy / "names.parquet").replace_schema_metadata({"fingerprint": "f" * 64})
    pq.write_table(table, copy / "names.parquet")
    with pytest.raises(UserError, match=r"names.parquet belongs to other features \(fingerprint ffffffffffff"):
        load(copy)


def test_a_manifest_of_other_inputs_is_refused(copy: Path) -> None:
    path = copy / MANIFEST
    path.write_text(path.read_text().replace("an image of a {}.", "a sketch of a {}."))
    with pytest.raises(UserError, match="its fingerprint is not that of its inputs"):
        load(copy)
    path.write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        load(copy)
    path.unlink()
    with pytest.raises(UserError, match="is no feature cache"):
        load(copy)
