"""Images per second of the feature job against what its parts allow on the same cores.

The bound: as many processes as the job has actors, one thread each, decode images and encode ready tensors with the
same model and batch, measured side by side before and after the job; an image costs the sum of both. `whole` counts the
job's images over all of its time, the start of Ray and its actors included; `steady` those after the first shard. The
machine must be idle otherwise; `forward_cpu_ms` tells whether it was (it equals `forward_ms`).
The model has a ViT-B/32's image tower with random weights; images are JPEGs of 500 x 375 pixels.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.benchmarks.icons2emoji import ASSETS  # noqa: E402
from data_prep.checkpoint import Checkpoint, find_checkpoint  # noqa: E402
from data_prep.clip_features import IMAGES_PER_SHARD, Encode, Preprocess, encode  # noqa: E402
from data_prep.storage import locate  # noqa: E402


def write_checkpoint(folder: Path) -> Checkpoint:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 4096}
    CLIPModel(CLIPConfig(text_config=text | {"eos_token_id": 4095})).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "clip" / name, folder)
    settings = json.loads((ASSETS / "clip" / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return find_checkpoint(folder)


def write_images(folder: Path, images: int) -> pa.Table:
    """Smooth noise, which compresses as photographs do."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for i in range(images):
        pixels = rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i}.jpg"))
        Image.fromarray(pixels).resize((500, 375)).save(paths[-1], quality=90)
    return pa.table({"path": paths, "data": pa.nulls(images, pa.binary())})


def measure_parts(checkpoint: Checkpoint, paths: list[str], barrier: Any, results: Any) -> None:
    """Seconds per image of decoding and of encoding in this process, on the clock and of its CPU time."""
    preprocess, encoder = Preprocess(checkpoint), Encode(checkpoint, threads=1)
    unit = {"shard": "", "kind": "image", "rows": len(paths), "texts": None, "path": paths, "data": [None] * len(paths)}
    preprocess(unit | {"rows": 1, "path": paths[:1], "data": [None]})  # its import
    barrier.wait()
    laps = [(time.perf_counter(), time.process_time())]
    row = preprocess(unit)
    laps.append((time.perf_counter(), time.process_time()))
    encoder.images(row["inputs"])
    laps.append((time.perf_counter(), time.process_time()))
    results.put(np.diff(laps, axis=0) / len(paths))


def parts(checkpoint: Checkpoint, paths: list[str], processes: int) -> np.ndarray:
    """Rows: decode, forward. Columns: seconds per image, of CPU time per image; means over processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    arguments = (checkpoint, paths[:IMAGES_PER_SHARD], barrier, results)
    running = [context.Process(target=measure_parts, args=arguments) for _ in range(processes)]
    for process in running:
        process.start()
    costs = np.mean([results.get() for _ in running], axis=0)
    for process in running:
        process.join()
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("feature_throughput.json"))
    args = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(Path(scratch) / "clip")
        images = write_images(Path(scratch) / "images", args.images)
        before = parts(checkpoint, images["path"].to_pylist(), args.cpus)
        times: list[float] = []
        started = time.perf_counter()
        ray.init(num_cpus=args.cpus, include_dashboard=False, log_to_driver=False)
        encode(
            images,
            ["a photo"],
            checkpoint,
            locate(Path(scratch) / "shards"),
            progress=lambda stage, done, total: times.append(time.perf_counter()),
        )
        whole = time.perf_counter() - started
        ray.shutdown()
        after = parts(checkpoint, images["path"].to_pylist(), args.cpus)
    (decode, decode_cpu), (forward, forward_cpu) = (before + after) / 2
    bound = args.cpus / (decode + forward)
    shards = -(-args.images // IMAGES_PER_SHARD) + 1  # one of text
    steady = (len(times) - 2) / shards * args.images / (times[-1] - times[1])
    result = {
        "images": args.images,
        "cpus": args.cpus,
        "decode_ms": round(1e3 * decode, 2),
        "forward_ms": round(1e3 * forward, 2),
        "decode_cpu_ms": round(1e3 * decode_cpu, 2),
        "forward_cpu_ms": round(1e3 * forward_cpu, 2),
        "forward_cpu_ms_before_after": [round(1e3 * float(costs[1, 1]), 2) for costs in (before, after)],
        "bound_images_per_s": round(bound, 1),
        "whole_images_per_s": round(args.images / whole, 1),
        "steady_images_per_s": round(steady, 1),
        "whole_ratio": round(args.images / whole / bound, 3),
        "steady_ratio": round(steady / bound, 3),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
