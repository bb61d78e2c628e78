"""The Ray Data job that turns images and texts into CLIP features.

Work is cut into shards, each a fixed run of rows of one list: a shard is preprocessed as one unit, encoded by a pool of
actors in batches of a fixed size, and committed as one Parquet file, which is never computed again. Fixed batches make
the features independent of scheduling, and a job that was killed loses only the shards in flight.

Features are computed in float32 for small checkpoints and under 16-bit autocast for large ones, where the device is
faster so: on a ViT-B/32 that doubles the images per second of a CPU core, on the embedded 7 M parameters it saves 0.3 s
of the whole job and moves 12 of 3,060 zero-shot predictions.

With GPUs, CPU workers decode and one actor per GPU encodes; Ray Data holds the decoders back when the object store
fills. Without GPUs each actor does both: no pixel crosses a process boundary, one import of transformers (seconds) is
saved per core, and decoders do not wait for CPUs that the actors hold.

Shapes: I images, T texts, D CLIP dimension, P image patches.
"""

import json
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.checkpoint import CLIP, OPEN_CLIP, Checkpoint, load_model, logit_scale
from data_prep.decode import FRAMES, decode
from data_prep.errors import UserError
from data_prep.parquet import feature_column, matrix, parquet_bytes
from data_prep.ray_session import own_ray, quiet_loggers
from data_prep.storage import Storage

IMAGES_PER_SHARD = 256  # 150 MB of float32 pixels at 224 px: about one Ray block
TEXTS_PER_SHARD = 512
WORK_PER_ACTOR = 450e6  # bytes of weights x shards: a further actor costs 6 s of imports, and less work is done by then
SHARDS_PER_GPU = 64  # 16,000 images: a further GPU comes in minutes, and less work is done by then
PROBED_IMAGES = 20_000  # with fewer images the batch is the shard: trying others would take longer than it can save
BATCHES = (16, 32, 64, 128, 256)
LARGE_PARAMETERS = 50_000_000
STRAIGHT = str.maketrans("‘’“”", "''\"\"")
"""Quotes as the tokenizer of CLIP's authors makes them (by ftfy): folders made on a Mac may have curly ones."""
PLAN = "plan.json"
Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): images hashed, then shards."""


@dataclass(frozen=True, kw_only=True)
class GivenTextFeatures:
    """Features of texts that exist already."""

    features: Mapping[str, np.ndarray]
    """(D,) of length 1, by text."""
    logit_scale: float
    """Multiplier of cosines."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The finished shards of a job."""

    reasons: tuple[str, ...]
    """(I,) why an image cannot be read; "" for those that can."""
    text_features_TD: np.ndarray
    """float16 (T, D), L2-normalised before rounding."""
    cut_texts: int
    """Different texts that are longer than the text tower reads: their ends are cut."""
    several_frames: int
    """Images of several frames, of which the first counts."""
    logit_scale: float
    """exp of the checkpoint's parameter."""
    precision: str
    """Type of the matrix products: float32, bfloat16 or float16."""
    batch: int
    """Images encoded at once."""
    shards: Storage
    """Where they are."""
    image_shards: tuple[tuple[int, str], ...]
    """First row and file of each shard of images: `image_table` reads it."""

    def image_table(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Read columns feature, float16 [D], and tokens, float16 [P * D]; zeros for unreadable images."""
        with self.shards.open(shard) as file:
            return pq.read_table(file, columns=list(columns)).replace_schema_metadata(None)


def encode(
    images: pa.Table,
    texts: Sequence[str],
    checkpoint: Checkpoint,
    shards: Storage,
    *,
    encoded: bool = False,
    given_texts: GivenTextFeatures | None = None,
    tokens: bool = False,
    gpu: bool = False,
    progress: Progress | None = None,
) -> Encoded:
    """Encode every row of `images` (columns key, path and data, one of the last two null) and every text.

    shards: folder of finished shards, which are not computed again; it must belong to these inputs alone. encoded:
    `data` of the images are their features, float32 (see `Benchmark.holds_features`); only texts are encoded, and not
    even they where they are given. tokens:
    keep the features of image patches, too. gpu: encode on GPUs only, and wait for one if an autoscaler must start its
    node. Ray must be initialised. Raises UserError if the checkpoint fails, or a GPU that Ray counts is none.
    """
    # Sorted by length, a batch is padded little; class names and lemmas share texts.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    image_units, text_units = list(_image_units(images)), list(_text_units(unique))
    units, finished = image_units + text_units, set(shards.names())
    todo = [unit for unit in units if unit["shard"] not in finished]
    batch = _plan_batch(0 if encoded else len(images), checkpoint, shards, finished, gpu=gpu)
    report = progress or (lambda stage, done, total: None)
    if encoded:
        for unit in todo:
            if unit["kind"] == "image":
                _commit(_given_features(unit, checkpoint), shards)
        todo = [unit for unit in todo if unit["kind"] == "text"]
    if given_texts:
        for unit in todo:
            if unit["kind"] == "text":
                _commit(_given_texts(unit, given_texts), shards)
        todo = [unit for unit in todo if unit["kind"] == "image"]
    report("features", len(units) - len(todo), len(units))
    for done, row in enumerate(_run(todo, checkpoint, batch, tokens, gpu), start=len(units) - len(todo) + 1):
        if row["fatal"]:
            raise UserError(row["fatal"], option=row["option"])
        _commit(row, shards)
        report("features", done, len(units))
    position = {text: t for t, text in enumerate(unique)}
    features, reasons, cut, frames = [], list[str](), 0, 0
    for unit in units:
        with shards.open(unit["shard"]) as file:
            if unit["kind"] == "text":
                texts_table = pq.read_table(file)
                features.append(matrix(texts_table["feature"]))
                cut += int(texts_table.schema.metadata.get(b"cut", 0))
            else:
                table = pq.read_table(file, columns=["reason"])
                reasons += table["reason"].to_pylist()
                frames += int((table.schema.metadata or {}).get(b"frames", 0))
    return Encoded(
        reasons=tuple(reasons),
        text_features_TD=np.concatenate(features)[[position[text] for text in texts]],
        cut_texts=cut,
        several_frames=frames,
        logit_scale=float(texts_table.schema.metadata[b"logit_scale"]),
        precision=texts_table.schema.metadata[b"precision"].decode(),
        batch=batch,
        shards=shards,
        image_shards=tuple((unit["start"], unit["shard"]) for unit in image_units),
    )


def _given_features(unit: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the row of a unit whose images come with their features. Raises UserError for those of another model."""
    features_ID = np.stack([np.frombuffer(data, np.float32) for data in unit["data"]])
    if features_ID.shape[1] != checkpoint.dimension:
        raise UserError(
            f"must be the checkpoint of the features, which have {features_ID.shape[1]} dimensions; "
            f"{checkpoint.name} has {checkpoint.dimension}",
            option="clip",
        )
    length_I1 = np.linalg.norm(features_ID, axis=1, keepdims=True)
    finite_I1 = np.isfinite(length_I1)
    reasons = np.where(finite_I1, np.where(length_I1 > 0, "", "the feature is 0"), "the feature is not finite")
    scaled_ID = features_ID / np.where(finite_I1 & (length_I1 > 0), length_I1, 1)
    return _given_row(unit, np.where(reasons == "", scaled_ID, 0), reasons[:, 0].tolist())


def _given_texts(unit: dict[str, Any], given: GivenTextFeatures) -> dict[str, Any]:
    """Return the row of a unit whose texts come with their features."""
    features_TD = np.stack([given.features[text] for text in unit["texts"]])
    return _given_row(unit, features_TD, [""] * len(features_TD), given.logit_scale)


def _given_row(
    unit: dict[str, Any], features: np.ndarray, reasons: list[str], logit_scale: float = 0.0
) -> dict[str, Any]:
    """Return the row of a unit that nothing had to encode, as `Encode` would."""
    return {
        "shard": unit["shard"],
        "features": features.astype(np.float16),
        "reasons": reasons,
        "tokens": np.zeros((0, 1), np.float16),
        "logit_scale": logit_scale,
        "precision": "",
        "cut": 0,
        "frames": 0,
    }


def _plan_batch(images: int, checkpoint: Checkpoint, shards: Storage, finished: set[str], *, gpu: bool) -> int:
    """Return the job's batch: probed once, for features computed in other batches differ in the last bits."""
    if PLAN in finished:
        return int(json.loads(shards.read(PLAN) or b"")["batch"])
    batch = IMAGES_PER_SHARD
    if images >= PROBED_IMAGES:
        batch = _probe(checkpoint, gpu=gpu)
    shards.write(PLAN, json.dumps({"batch": batch}).encode())
    return batch


def _probe(checkpoint: Checkpoint, *, gpu: bool) -> int:
    """Run `Encode.probe` where the job will run: on one CPU thread or a GPU."""
    import ray

    @ray.remote
    def probe() -> int:
        encoder = Encode(checkpoint, threads=1)
        return encoder.probe() if not encoder.fatal else BATCHES[0]  # the job itself names the mistake

    gpus = 1 if gpu or ray.cluster_resources().get("GPU", 0) >= 1 else 0
    return ray.get(probe.options(num_cpus=1, num_gpus=gpus).remote())


def _commit(row: dict[str, Any], shards: Storage) -> None:
    columns = {"feature": feature_column(row["features"]), "reason": pa.array(list(row["reasons"]), pa.string())}
    if row["tokens"].size:
        columns["tokens"] = feature_column(row["tokens"])
    metadata = {"logit_scale": repr(row["logit_scale"]), "precision": row["precision"]}
    metadata |= {name: str(row[name]) for name in ("cut", "frames")}
    shards.write(row["shard"], parquet_bytes(pa.table(columns, metadata=metadata), streamed=True))


class Preprocess:
    """A unit of work -> the model's input (pixels or token ids), and the reasons why images of it cannot be read."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 1) -> None:
        self.checkpoint, self._threads = checkpoint, threads
        self._processor: Any = None
        self._tokenizer: Any = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {name: unit[name] for name in ("shard", "kind", "rows")} | {"cut": 0, "frames": 0}
        if unit["kind"] == "text":
            tokens, cut = self._tokens(list(unit["texts"]))
            return row | {"reasons": [""] * unit["rows"], "inputs": tokens, "cut": cut}
        with ThreadPoolExecutor(self._threads) as pool:  # Pillow lets other threads run while it decodes
            made = list(pool.map(self._pixels, unit["path"], unit["data"]))
        good = [pixels for pixels, _ in made if not isinstance(pixels, str)]
        return row | {
            "reasons": [pixels if isinstance(pixels, str) else "" for pixels, _ in made],
            "inputs": np.concatenate(good) if good else np.zeros(0, np.float32),
            "frames": sum(frames > 1 for _, frames in made),
        }

    def _pixels(self, path: str | None, data: Any) -> tuple[np.ndarray | str, int]:
        """Return the pixels (1, 3, size, size) of an image, or why there are none, and the frames of its file.

        One image at a time: those of a shard, as photographs are today, would fill 9 GB before they are resized.
        """
        image = decode(path, data)
        if isinstance(image, str):
            return image, 0
        if self._processor is None and self.checkpoint.model_type == OPEN_CLIP:
            from data_prep.openclip import OpenClipProcessor

            self._processor = OpenClipProcessor(self.checkpoint.folder)
        elif self._processor is None:
            # Pillow's: without torchvision the other does not exist, and where it does it rounds differently.
            from transformers import AutoImageProcessor, CLIPImageProcessorPil

            is_clip = self.checkpoint.model_type == CLIP  # files of old say no class, or one that is no more
            more: dict[str, Any] = {} if is_clip else {"backend": "pil"}
            kind = CLIPImageProcessorPil if is_clip else AutoImageProcessor
            self._processor = kind.from_pretrained(self.checkpoint.folder, **more)
        return self._processor(image, return_tensors="np")["pixel_values"], image.info.get(FRAMES, 1)

    def _tokens(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Return token ids (T, length), and how many texts are longer than the tower reads.

        With the mask of those that are no padding, (2, T, length), if the tower needs it.
        """
        family = self.checkpoint.family
        if self.checkpoint.model_type == OPEN_CLIP:
            from data_prep.openclip import OpenClipTokenizer

            self._tokenizer = self._tokenizer or OpenClipTokenizer(self.checkpoint.folder)
            return self._tokenizer(texts)
        if self._tokenizer is None:
            from transformers import AutoConfig, AutoTokenizer, CLIPTokenizer

            kind = CLIPTokenizer if self.checkpoint.model_type == CLIP else AutoTokenizer
            self._tokenizer = kind.from_pretrained(self.checkpoint.folder)
            config = AutoConfig.from_pretrained(self.checkpoint.folder).text_config
            self._longest = min(self._tokenizer.model_max_length, config.max_position_embeddings)
        if self.checkpoint.model_type == CLIP:
            texts = [text.translate(STRAIGHT) for text in texts]
        # CLIP's are padded to the longest only, and without a mask: the text tower is causal and pools at the first end
        # token, so tokens behind that one cannot change the feature.
        encoding = self._tokenizer(
            texts, padding=family.padding, truncation=True, max_length=self._longest, return_tensors="np"
        )
        ids, cut = encoding["input_ids"], 0
        if ids.shape[1] == self._longest:  # else nothing is cut
            cut = sum(len(whole) > self._longest for whole in self._tokenizer(texts, verbose=False)["input_ids"])
        return (np.stack([ids, encoding["attention_mask"]]) if family.masked else ids), cut


class Encode:
    """A preprocessed unit -> its normalised features. One per actor; the model is loaded once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        batch: int = IMAGES_PER_SHARD,
        tokens: bool = False,
        gpu: bool = False,
    ) -> None:
        import torch

        # Ray hands out CPUs by count only: an actor with more threads than CPUs fights with its neighbours.
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._name, self._batch, self._with_tokens = checkpoint.name, batch, tokens
        self.fatal, self._option = "", "clip"
        if gpu and self._device == "cpu":  # the hours that it would take on a CPU are not what was asked for
            self.fatal, self._option = f"{socket.gethostname()} has no CUDA, but Ray counts GPUs there", ""
            return
        try:
            self._model: Any = load_model(checkpoint).to(self._device)  # type: ignore[arg-type]
        except UserError as error:  # as data: an exception in here reaches the user as pages of Ray's traceback
            self.fatal = error.message
            return
        self._logit_scale, self._dimension = logit_scale(self._model), checkpoint.dimension
        large = sum(p.numel() for p in self._model.parameters()) >= LARGE_PARAMETERS
        self._precision = _fast_precision(self._device) if large else torch.float32

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import torch

        inputs, nothing = row.pop("inputs"), np.zeros((0, 1), np.float16)
        row |= {"fatal": self.fatal, "option": self._option}
        row |= {"logit_scale": 0.0, "precision": "", "features": nothing, "tokens": nothing}
        if self.fatal:
            return row
        row["logit_scale"], row["precision"] = self._logit_scale, str(self._precision).removeprefix("torch.")
        good = np.array([not reason for reason in row["reasons"]])
        row["features"] = np.zeros((row["rows"], self._dimension), np.float16)
        if row["kind"] == "text":
            row["features"][:] = self.texts(inputs)
        elif good.any():
            try:
                features, tokens = self.images(inputs)
            except torch.OutOfMemoryError:
                return row | {"fatal": f"{self._name}: one image at a time is more than the GPU's memory holds"}
            row["features"][good] = features
            if self._with_tokens:
                row["tokens"] = np.zeros((row["rows"], tokens.shape[1]), np.float16)
                row["tokens"][good] = tokens
        return row

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        """Encode token ids (T, length), or ids and mask (2, T, length): float16 (T, D)."""
        import torch

        given = torch.from_numpy(np.array(tokens)).to(self._device)
        named = {"input_ids": given} if given.dim() == 2 else {"input_ids": given[0], "attention_mask": given[1]}
        with torch.inference_mode(), self._autocast():
            output = self._model.get_text_features(**named)
        return _normalised(output.pooler_output)

    def images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode float32 pixels (I, 3, size, size): float16 (I, D) and, with tokens, (I, P * D).

        A batch that does not fit the GPU's memory is halved, and stays so for all that come after.
        """
        import torch

        parts: list[tuple[np.ndarray, np.ndarray]] = []
        start = 0
        while start < len(pixels):
            try:
                parts.append(self._batch_of_images(pixels[start : start + self._batch]))
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                self._batch //= 2
            else:
                start += len(parts[-1][0])
        features, tokens = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(tokens)

    def _batch_of_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        batch = torch.from_numpy(np.array(pixels))  # a copy: Ray's are read-only
        with torch.inference_mode(), self._autocast():
            output = self._model.get_image_features(pixel_values=batch.to(self._device))
            features = _normalised(output.pooler_output)
            if not self._with_tokens:
                return features, np.zeros((0, 1), np.float16)
            # into the space of the features as the first token is, by the pooled feature's own layers
            patches_BPH = self._model.vision_model.post_layernorm(output.last_hidden_state[:, 1:])
            return features, _normalised(self._model.visual_projection(patches_BPH)).reshape(len(batch), -1)

    def probe(self) -> int:
        """Return the batch size that encodes most images per second; one that is too large ends the search."""
        import torch

        size = self._model.config.vision_config.image_size
        rates: dict[int, float] = {}
        for batch in BATCHES:
            self._batch = batch
            pixels = np.zeros((batch, 3, size, size), np.float32)
            try:
                self.images(pixels)  # the first one also allocates
            except torch.OutOfMemoryError:
                break
            if self._batch < batch:
                break
            started = time.perf_counter()
            self.images(pixels)
            rates[batch] = batch / (time.perf_counter() - started)
        return max(rates, key=rates.__getitem__, default=self._batch)

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self._device, self._precision, enabled=self._precision != torch.float32)


class PreprocessAndEncode(Encode):
    """Both stages in one actor, where no GPU is."""

    def __init__(self, checkpoint: Checkpoint, *encoding: Any) -> None:
        super().__init__(checkpoint, *encoding)
        self._preprocess = Preprocess(checkpoint)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        return super().__call__(self._preprocess(unit))


def _normalised(features: Any) -> np.ndarray:
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1).half().cpu().numpy()


def _fast_precision(device: str) -> Any:
    """Return the type in which matrix products are fastest here, not merely possible."""
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16", False) else torch.float32


def _run(
    units: list[dict[str, Any]], checkpoint: Checkpoint, batch: int, tokens: bool, gpu: bool
) -> Iterator[dict[str, Any]]:
    """Yield rows with shard, features, tokens, reasons, fatal, option, logit_scale, precision, in any order."""
    if not units:
        return
    import ray.data

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    worth = int(len(units) * checkpoint.weight_bytes / WORK_PER_ACTOR)
    most = gpus or max(1, min(int(resources.get("CPU", 0)), len(units), worth))
    if gpu:  # an actor that waits asks the autoscaler for its GPU
        most = max(gpus, 1, len(units) // SHARDS_PER_GPU)
    # an actor starts again on another node, if there may be one; Ray would warn of that, in a line like an error's
    restarts: dict[str, Any] = {"max_restarts": 0} if own_ray() else {}
    with warnings.catch_warnings():  # of a name for it that Ray does not have yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset: ray.data.Dataset = ray.data.from_items(units, override_num_blocks=len(units))
        stage: Any = PreprocessAndEncode
        needs: dict[str, Any] = {"num_cpus": 1}
        if gpus or gpu:
            dataset, stage = dataset.map(Preprocess(checkpoint).__call__, num_cpus=1), Encode
            # no CPU: on a node with one for each GPU the first stage would wait for ever
            needs = {"num_cpus": 0, "num_gpus": 1}
        dataset = dataset.map(
            stage,
            fn_constructor_args=(checkpoint, 1, batch, tokens, gpu),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            **needs,
            **restarts,
        )
    # Its plan and its own progress bars are noise here: the caller shows progress in shards. (Not the logger
    # "ray.data": Ray configures that one again for every run.)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with quiet_loggers("ray.data._internal"):
        yield from dataset.iter_rows()


def _image_units(images: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), IMAGES_PER_SHARD):
        part = images.slice(start, IMAGES_PER_SHARD)
        unit = _unit("image", start, len(part))
        yield unit | {"texts": None} | {name: part[name].to_pylist() for name in ("path", "data")}


def _text_units(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(texts), TEXTS_PER_SHARD):
        part = list(texts[start : start + TEXTS_PER_SHARD])
        yield _unit("text", start, len(part)) | {"texts": part, "path": None, "data": None}


def _unit(kind: str, start: int, rows: int) -> dict[str, Any]:
    return {"shard": f"{kind}s-{start:08d}-{rows}.parquet", "kind": kind, "start": start, "rows": rows}
