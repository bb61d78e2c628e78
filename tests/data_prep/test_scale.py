"""The job at scale: killed at any moment, on S3, with unreadable images, without hashing twice, arrays mapped once."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_prep import UserError, clip_features, ray_session
from data_prep.__main__ import list_
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import find_checkpoint
from data_prep.clip_features import Encode
from data_prep.feature_store import load, load_target_labels, mapped, verify
from data_prep.image_hashes import image_contents
from data_prep.manifest import read_manifest, write_manifest
from data_prep.parquet import feature_column, matrix, write_table
from data_prep.ray_session import start_ray
from data_prep.recompute import recompute
from data_prep.storage import locate

Prepare = Callable[..., Path]
Interrupt = Callable[[Path | str], None]
CLIP = ASSETS / "clip"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_killed_ten_times_the_cache_is_that_of_an_undisturbed_run(
    prepare_small: Prepare, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_features, "IMAGES_PER_SHARD", 2)
    monkeypatch.setattr("data_prep.cache_tables.IMAGES_PER_SHARD", 2)
    monkeypatch.setattr(clip_features, "TEXTS_PER_SHARD", 8)
    undisturbed = prepare_small(tmp_path / "undisturbed")
    started = time.monotonic()
    prepare_small(tmp_path / "undisturbed", rebuild=True)  # again, now that all is imported and loaded
    seconds, generator, killed = time.monotonic() - started, random.Random(0), 0
    for _ in range(10):
        child = os.fork()
        if child == 0:  # never returns to pytest
            try:
                prepare_small(tmp_path / "killed")
            finally:
                os._exit(0)
        time.sleep(generator.random() * seconds / 3)
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    cache = prepare_small(tmp_path / "killed")
    assert killed > 0
    assert cache.name == undisturbed.name and contents(cache) == contents(undisturbed)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 API on this machine, with a bucket."""
    server_module = pytest.importorskip("moto.server")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    locate(f"s3://features{query}").filesystem.create_dir("features")
    yield f"s3://features/caches{query}"
    server.stop()


def test_a_cache_in_s3_is_that_on_disk(
    s3: str,
    prepare_small: Prepare,
    interrupted_build: Interrupt,
    small_cache: Path,
    without_ray: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    interrupted_build(s3)
    calls: list[tuple[str, int, int]] = []
    cache = prepare_small(s3, progress=lambda *call: calls.append(call))
    assert calls == [("features", 1, 2), ("features", 2, 2)]
    assert read_manifest(cache) == read_manifest(small_cache)  # the files' hashes, too
    assert verify(cache) == verify(small_cache)
    torch.testing.assert_close(load(cache).target.features_ID, load(small_cache).target.features_ID, rtol=0, atol=0)
    assert torch.equal(load_target_labels(cache), load_target_labels(small_cache))
    assert np.array_equal(mapped(cache, "source", tmp_path), mapped(small_cache, "source", tmp_path / "other"))
    list_(s3)
    assert f"{cache}: folder:" in capsys.readouterr().out
    calls.clear()
    assert prepare_small(s3, progress=lambda *call: calls.append(call)) == cache and calls == []
    assert locate(s3).names(recursive=True)[0].startswith("folder-")  # no shard is left
    with pytest.raises(UserError, match="is no feature cache: it has no manifest.json"):
        load(s3)


def test_unreadable_images_are_listed_and_left_out(
    prepare_small: Prepare, small_folder: Path, tmp_path: Path, without_ray: None
) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "pets"))
    (folder / "source" / "bear" / "1.png").write_bytes(b"no image")
    (folder / "target" / "bed" / "0.png").write_bytes(b"")

    def build(**options: Any) -> Path:
        return prepare_small(tmp_path / "cache", benchmark=f"folder:{folder}", **options)

    with pytest.raises(UserError, match=r"^2 of 32 images cannot be read \(max_rejected allows 0.10%\): source/bear"):
        build()
    calls: list[tuple[str, int, int]] = []
    cache = build(max_rejected=0.1, progress=lambda *call: calls.append(call))
    assert calls == [("features", 2, 2)]  # the shards were kept
    features = load(cache)
    assert features.rejected == 2
    assert "source/bear/1.png" not in features.source.keys.to_pylist()
    assert "target/bed/0.png" not in features.target.keys.to_pylist()
    assert features.source_labels_I.tolist() == [c for c in range(4) for _ in range(4 - (c == 2))]
    assert load_target_labels(cache).tolist() == [c for c in range(4) for _ in range(4 - (c == 3))]
    assert features.source.features_ID.shape == (15, 192)
    rows = pq.read_table(cache / "rejected.parquet").to_pylist()
    assert [(row["key"], row["domain"], row["reason"]) for row in rows] == [
        ("source/bear/1.png", "source", "no image format that is known"),
        ("target/bed/0.png", "target", "empty file"),
    ]
    assert read_manifest(cache).rejected == 2
    with pytest.raises(UserError, match="2 of 32 images cannot be read"):  # what is there already is judged as well
        build()
    with pytest.raises(UserError, match="^max_rejected must be a share of the images, 0 to 1; got 2"):
        build(max_rejected=2)


def test_no_image_is_hashed_twice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.benchmarks import get_benchmark

    hashed: list[Path] = []
    prepare_module = image_contents.__globals__
    sha256 = prepare_module["file_sha256"]
    monkeypatch.setitem(prepare_module, "file_sha256", lambda path: hashed.append(path) or sha256(path))
    monkeypatch.setitem(prepare_module, "HASHES_PER_REPORT", 1)
    images = get_benchmark(f"folder:{folder}").images

    def read() -> Any:
        hashed.clear()
        return image_contents(images, locate(tmp_path), "hashes.parquet")

    read()
    first = read()
    assert len(hashed) == 32  # written just now: they might change again unnoticed
    for path in images["path"].to_pylist():
        os.utime(path, (1e9, 1e9))
    read()
    assert read().equals(first) and hashed == []
    changed = Path(images["path"][5].as_py())
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert not read().equals(first) and hashed == [changed]
    (tmp_path / "hashes.parquet").write_bytes(b"damaged")
    read()
    assert len(hashed) == 32


class Accelerator:
    """Stands before an encoder's image tower: batches take the time and the memory it says."""

    def __init__(self, encoder: Encode, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
        self.batches, self.clock, self.fits = list[int](), 0.0, fits
        self.tower = encoder._model.get_image_features
        monkeypatch.setattr(encoder._model, "get_image_features", self)
        monkeypatch.setattr(clip_features.time, "perf_counter", lambda: self.clock)

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        images = len(pixel_values)
        self.batches.append(images)
        if images > self.fits:
            raise torch.OutOfMemoryError
        self.clock += 1 + 0.1 * images + (images > 64) * 0.2 * images  # past 64, out of some cache
        return self.tower(pixel_values=pixel_values)


@pytest.mark.parametrize(("fits", "best"), [(1000, 64), (63, 32), (16, 16), (5, 4), (0, 1)])
def test_the_probed_batch_is_the_fastest_that_fits(fits: int, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encode(find_checkpoint(CLIP), threads=1)
    Accelerator(encoder, monkeypatch, fits)
    assert encoder.probe() == best


def test_a_batch_that_does_not_fit_is_halved_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).standard_normal((50, 3, 48, 48), dtype=np.float32)
    encoder = Encode(find_checkpoint(CLIP), threads=1, batch=32)
    expected, _ = encoder.images(pixels)
    accelerator = Accelerator(encoder, monkeypatch, fits=10)
    features, _ = encoder.images(pixels)
    encoder.images(pixels[:9])
    assert accelerator.batches == [32, 16, 8, 8, 8, 8, 8, 8, 2, 8, 1]
    np.testing.assert_allclose(features.astype(np.float32), expected.astype(np.float32), rtol=0, atol=1e-3)
    accelerator.fits = 0
    unit = {"shard": "", "kind": "image", "rows": 50, "reasons": [""] * 50, "inputs": pixels}
    assert encoder(unit)["fatal"].startswith("icons2emoji/clip: one image at a time is more than the GPU's mem")


def test_a_job_is_probed_once_and_keeps_its_batch(
    prepare_small: Prepare,
    interrupted_build: Interrupt,
    tmp_path: Path,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed: list[int] = []
    monkeypatch.setattr(clip_features, "_probe", lambda checkpoint, gpu: probed.append(1) or 16)
    monkeypatch.setattr(clip_features, "PROBED_IMAGES", 32)  # the small folder has just so many

    interrupted_build(tmp_path)
    assert read_manifest(prepare_small(tmp_path)).batch == 16
    assert probed == [1]


def test_two_builders_of_one_cache_in_s3_do_not_meet(
    s3: str, prepare_small: Prepare, small_cache: Path, without_ray: None
) -> None:
    others: list[Path | str] = []
    caches = (locate(s3) / "shared").shown

    def other_process(stage: str, done: int, total: int) -> None:
        """In the middle of a build another one goes on from its shards, seals the cache and removes them."""
        if done == 1 and not others:
            others.append("in work")
            others.append(prepare_small(caches))

    cache = prepare_small(caches, progress=other_process)
    assert others[1] == cache and verify(cache) == verify(small_cache)
    assert locate(caches).names(recursive=True)[0].startswith("folder-")  # no shard is left


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "CONNECT_S", 2.0)
    with pytest.raises(
        UserError, match="^address or RAY_ADDRESS must name a Ray that starts, got 127.0.0.1:1: "
    ) as error:
        start_ray("127.0.0.1:1")
    assert "\n" not in str(error.value)


def test_features_are_mapped_from_one_file_per_node(small_cache: Path, tmp_path: Path) -> None:
    features_ID = mapped(small_cache, "source", tmp_path)
    assert isinstance(features_ID, np.memmap) and not features_ID.flags.writeable
    assert features_ID.dtype == np.float16
    assert np.array_equal(features_ID, matrix(pq.read_table(small_cache / "source.parquet")["feature"]))
    (file,) = tmp_path.glob("*/*.npy")
    written = file.stat().st_mtime_ns
    mapped(small_cache, "source", tmp_path)
    assert file.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="has no source_tokens: it was built without tokens"):
        mapped(small_cache, "source_tokens", tmp_path)


def test_features_are_compared_with_the_checkpoint(small_cache: Path, tmp_path: Path) -> None:
    assert recompute(small_cache, clip=str(CLIP), samples=5) > 0.999
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    table = pq.read_table(cache / "target.parquet")
    wrong = feature_column(matrix(table["feature"])[::-1])
    write_table(table.set_column(table.num_columns - 1, "feature", wrong), cache / "target.parquet")
    manifest = read_manifest(cache)
    write_manifest(locate(cache), manifest.inputs, benchmark=manifest.benchmark, clip=manifest.clip)
    verify(cache)  # sealed, and yet wrong
    with pytest.raises(UserError, match="the feature of 'target/.*' is not what its checkpoint gives"):
        recompute(cache, clip=str(CLIP), samples=5)
    with pytest.raises(UserError, match="^clip must be a folder or a Hugging Face id"):
        recompute(cache, clip="no/clip", samples=5)


def test_actors_on_all_processors_leave_nobody_waiting(
    prepare_small: Callable[..., Path], ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large checkpoint has an actor on each CPU: a stage of its own for the images would wait for a CPU for ever."""

    def too_long(*_: object) -> None:
        raise TimeoutError("the job does nothing")

    monkeypatch.setattr(clip_features, "WORK_PER_ACTOR", 1)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(120)
    try:
        prepare_small(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_gpu_with_a_single_processor_beside_it_is_enough(small_folder: Path, tmp_path: Path) -> None:
    """An actor on a GPU takes no CPU: the stage that opens images would wait for it for ever."""
    code = f"""
import ray
from data_prep import FeatureOptions, prepare
ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)  # torch sees no GPU, Ray does
prepare(FeatureOptions(benchmark={f"folder:{small_folder}"!r}, clip={str(CLIP)!r}, cache_dir={str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150, cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.glob("folder-*/manifest.json"))) == 1
