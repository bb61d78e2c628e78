"""The Ray Data job that turns images and texts into CLIP features.

Work is cut into shards, each a fixed run of rows of one list: a shard is preprocessed as one batch, encoded as one
batch by a pool of actors, and kept as one Parquet file. Fixed batches make the features independent of scheduling, and
a restart computes only the shards that have no file yet.

Features are computed in float32 for small checkpoints and under bfloat16 autocast for large ones, where the device has
it: on a ViT-B/32 that doubles the images per second of a CPU core, on the embedded 7 M parameters it saves 0.3 s of
the whole job and moves 12 of 3,060 zero-shot predictions.

With a GPU, CPU workers decode and the actors encode. Without one Ray fuses both stages into the actors, as they ask for
the same resources: no pixel crosses a process boundary, and one import of transformers (seconds) is saved per core.

Shapes: I images, T texts, D CLIP dimension.
"""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.checkpoint import Checkpoint, load_model
from data_prep.errors import UserError
from data_prep.parquet import feature_column, matrix, write_table

IMAGES_PER_SHARD = 256  # 150 MB of float32 pixels at 224 px: about one Ray block
TEXTS_PER_SHARD = 512
UNITS_PER_ACTOR = 32  # a second actor costs 6 s of imports: worth it for more than some 8,000 images
BFLOAT16_PARAMETERS = 50_000_000
SHOWN_ERRORS = 5
Progress = Callable[[str, int, int], None]
"""progress(stage, shards done, shards in all)."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    image_features_ID: np.ndarray
    """float16 (I, D), L2-normalised before rounding."""
    text_features_TD: np.ndarray
    """float16 (T, D), likewise."""
    logit_scale: float
    """exp of the checkpoint's parameter."""
    precision: str
    """"float32" or "bfloat16": what the matrix products were computed in."""


def encode(
    images: pa.Table, texts: Sequence[str], checkpoint: Checkpoint, shards: Path, progress: Progress | None = None
) -> Encoded:
    """Features of every row of `images` (columns path and data, one of them null) and of every text.

    shards: folder of finished shards, which are not computed again; it must belong to these inputs alone.
    Ray must be initialised. Raises UserError naming the images that cannot be read (the rest is kept for the restart).
    """
    shards.mkdir(parents=True, exist_ok=True)
    # Sorted by length, a batch is padded little; class names and lemmas share texts.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    image_units, text_units = list(_image_units(images, shards)), list(_text_units(unique, shards))
    units = image_units + text_units
    todo = [unit for unit in units if not _is_finished(unit)]
    done = len(units) - len(todo)
    unreadable: list[str] = []
    report = progress or (lambda stage, done, total: None)
    report("features", done, len(units))
    for row in _run(todo, checkpoint):
        if row["fatal"]:
            raise UserError(row["fatal"])
        if row["errors"]:
            unreadable += row["errors"]
        else:
            table = pa.table({"feature": feature_column(row["features"])})
            metadata = {"logit_scale": repr(row["logit_scale"]), "precision": row["precision"]}
            write_table(table, Path(row["shard"]), metadata=metadata)
        done += 1
        report("features", done, len(units))
    if unreadable:
        more = f"; and {len(unreadable) - SHOWN_ERRORS} more" if len(unreadable) > SHOWN_ERRORS else ""
        shown = "; ".join(sorted(unreadable)[:SHOWN_ERRORS])
        raise UserError(f"{len(unreadable)} of {len(images)} images cannot be read: {shown}{more}")
    position = {text: t for t, text in enumerate(unique)}
    metadata = pq.read_metadata(units[-1]["shard"]).metadata
    return Encoded(
        image_features_ID=_gather(image_units),
        text_features_TD=_gather(text_units)[[position[text] for text in texts]],
        logit_scale=float(metadata[b"logit_scale"]),
        precision=metadata[b"precision"].decode(),
    )


class Preprocess:
    """A unit of work -> the model's input (pixels or token ids), or the reasons why images of it cannot be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._processor: Any = None
        self._tokenizer: Any = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"shard": unit["shard"], "kind": unit["kind"], "errors": [], "inputs": np.zeros(0)}
        if unit["kind"] == "text":
            row["inputs"] = self._tokens(list(unit["texts"]))
            return row
        decoded, row["errors"] = _decode(unit)
        if not row["errors"]:
            row["inputs"] = self._pixels(decoded)
        return row

    def _pixels(self, decoded: list[Any]) -> np.ndarray:
        if self._processor is None:
            # By name: without torchvision CLIPImageProcessor does not exist, and where it does it rounds differently.
            from transformers import CLIPImageProcessorPil

            self._processor = CLIPImageProcessorPil.from_pretrained(self.checkpoint.folder)
        return self._processor(decoded, return_tensors="np")["pixel_values"]

    def _tokens(self, texts: list[str]) -> np.ndarray:
        if self._tokenizer is None:
            from transformers import CLIPTokenizer

            self._tokenizer = CLIPTokenizer.from_pretrained(self.checkpoint.folder)
        # Padded to the longest only, and without a mask: the text tower is causal and pools at the first end token, so
        # what comes after that token cannot change the feature.
        encoding = self._tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        return encoding["input_ids"]


class Encode:
    """A preprocessed unit -> its normalised features. One per actor; the model is loaded once."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        import torch

        # Ray hands out CPUs by count only: an actor with more threads than CPUs fights with its neighbours.
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._fatal = ""
        try:
            self._model = load_model(checkpoint).to(self._device)  # type: ignore[arg-type]
        except UserError as error:  # as data: an exception in here reaches the user as pages of Ray's traceback
            self._fatal = str(error)
            return
        self._logit_scale = self._model.logit_scale.exp().item()
        large = sum(p.numel() for p in self._model.parameters()) >= BFLOAT16_PARAMETERS
        self._bfloat16 = large and _has_bfloat16(self._device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import torch

        inputs = row.pop("inputs")
        row |= {"fatal": self._fatal, "logit_scale": 0.0, "precision": "", "features": np.zeros((0, 1), np.float16)}
        if row["errors"] or self._fatal:
            return row
        row["logit_scale"], row["precision"] = self._logit_scale, "bfloat16" if self._bfloat16 else "float32"
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            batch = torch.from_numpy(np.array(inputs)).to(self._device)  # a copy: Ray's arrays are read-only
            if row["kind"] == "text":
                output = self._model.get_text_features(input_ids=batch)
            else:
                output = self._model.get_image_features(pixel_values=batch)
        features_BD = torch.nn.functional.normalize(output.pooler_output.float(), dim=-1)
        row["features"] = features_BD.half().cpu().numpy()
        return row


def _has_bfloat16(device: str) -> bool:
    """Whether bfloat16 products are faster here, not merely possible."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _run(units: list[dict[str, Any]], checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """Rows with shard, features, errors, fatal, logit_scale, precision, in any order."""
    if not units:
        return
    import ray.data

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = max(1, min(gpus or int(resources["CPU"]), len(units) // UNITS_PER_ACTOR))
    dataset = (
        ray.data.from_items(units, override_num_blocks=len(units))
        .map(Preprocess(checkpoint).__call__, num_cpus=1)
        .map(
            cast(Any, Encode),
            fn_constructor_args=(checkpoint, 1),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
    )
    # Its plan and its own progress bars are noise here: the caller shows progress in shards. (Not the logger
    # "ray.data": Ray configures that one anew for every run.)
    log = logging.getLogger("ray.data._internal")
    level = log.level
    log.setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield from dataset.iter_rows()
    finally:
        log.setLevel(level)


def _image_units(images: pa.Table, shards: Path) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), IMAGES_PER_SHARD):
        part = images.slice(start, IMAGES_PER_SHARD)
        unit = {
            "shard": str(shards / f"images-{start:08d}-{len(part)}.parquet"),
            "kind": "image",
            "rows": len(part),
            "texts": None,
        }
        yield unit | {name: part[name].to_pylist() for name in ("key", "path", "data")}


def _text_units(texts: Sequence[str], shards: Path) -> Iterator[dict[str, Any]]:
    for start in range(0, len(texts), TEXTS_PER_SHARD):
        part = list(texts[start : start + TEXTS_PER_SHARD])
        unit = {
            "shard": str(shards / f"texts-{start:08d}-{len(part)}.parquet"),
            "kind": "text",
            "rows": len(part),
            "texts": part,
        }
        yield unit | {"key": None, "path": None, "data": None}


def _is_finished(unit: dict[str, Any]) -> bool:
    try:
        return pq.read_metadata(unit["shard"]).num_rows == unit["rows"]
    except (OSError, pa.ArrowException):  # not there yet, or cut off by a crash
        return False


def _decode(unit: dict[str, Any]) -> tuple[list[Any], list[str]]:
    from PIL import Image

    decoded, errors = [], []
    for key, path, data in zip(unit["key"], unit["path"], unit["data"], strict=True):
        try:
            with Image.open(path or io.BytesIO(data)) as image:
                decoded.append(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # PIL's own text repeats the path or names a memory address: the key says enough.
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}"
            errors.append(f"{key} ({reason})")
    return decoded, errors


def _gather(units: list[dict[str, Any]]) -> np.ndarray:
    return np.concatenate([matrix(pq.read_table(unit["shard"])["feature"]) for unit in units])
