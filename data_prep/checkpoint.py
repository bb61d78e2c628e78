"""Checkpoints of CLIP and its relatives: find one by folder or Hugging Face id, identify its content, load the model.

A relative is a dual encoder that transformers loads with `get_image_features` and `get_text_features`: SigLIP and
SigLIP 2 (of one resolution), MetaCLIP, Chinese-CLIP, ALIGN; or one in OpenCLIP's own format (`openclip.py`). What
differs between them is in `FAMILIES`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import UserError
from data_prep.parquet import file_sha256
from data_prep.storage import reason

if TYPE_CHECKING:
    from torch import nn

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
CONTENT_PATTERNS = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.model")
CLIP = "clip"
"""Model type of CLIP itself, which MetaCLIP has as well."""
OPEN_CLIP = "open_clip"
"""What a model in OpenCLIP's own format is called here; many repositories hold the format of transformers as well."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
POINTER = b"version https://git-lfs.github.com/"
"""How a file begins that Git LFS has not downloaded."""
DEFAULT_CROP = 224
"""Pixels of CLIP's image processor where its file states none."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of one `model_type` take texts and images."""

    weights: tuple[str, ...]
    """Beginnings of the names of their weights: there must be some of each."""
    padding: Literal["longest", "max_length"] = "longest"
    """To what a text is padded; SigLIP was trained with all of them at full length."""
    masked: bool = True
    """Whether the text tower is told which tokens are padding. CLIP's is causal, and SigLIP's was trained without."""
    fixed_size: bool = True
    """Whether the image tower takes images of one size only."""
    dimension_key: tuple[str, ...] = ("projection_dim",)
    """Where config.json states the dimension of the features."""
    dimension: int = 512
    """It, where config.json leaves it out."""


_TOWERS = ("vision_model.", "text_model.")
_PROJECTED = (*_TOWERS, "visual_projection.", "text_projection.", "logit_scale")
FAMILIES = {
    CLIP: Family(weights=_PROJECTED, masked=False),
    "siglip": Family(
        weights=(*_TOWERS, "logit_scale", "logit_bias"),
        padding="max_length",
        masked=False,
        dimension_key=("vision_config", "hidden_size"),
        dimension=768,
    ),
    "metaclip_2": Family(weights=_PROJECTED),
    "chinese_clip": Family(weights=_PROJECTED),
    "align": Family(weights=(*_TOWERS, "text_projection.", "temperature"), fixed_size=False, dimension=640),
    OPEN_CLIP: Family(weights=("visual.", "logit_scale"), masked=False),
}
"""By `model_type`. SigLIP 2 of one resolution calls itself siglip; siglip2 is its form for any resolution."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A CLIP model on disk, not loaded."""

    name: str
    """Hub id, or the last two parts of the folder's path."""
    folder: Path
    """Where its files are; all nodes of a cluster must see it."""
    identity: dict[str, Any]
    """What its content is: hub id and revision, or the SHA-256 of its files; and the processor's settings."""
    model_type: str
    """Key of `FAMILIES`; "" where there is no model, but a file of class texts' features."""
    dimension: int
    """Of its features."""

    @property
    def family(self) -> Family:
        """How it takes texts and images."""
        return FAMILIES[self.model_type]

    @property
    def weight_bytes(self) -> int:
        """Size of its weights on disk; the cost of an image grows with it."""
        return sum(path.stat().st_size for path in _weight_files(self.folder, self.model_type))


def find_checkpoint(clip: str | Path) -> Checkpoint:
    """Locate a checkpoint folder or hub id (downloaded on first use) without loading it.

    Raises UserError if there is no such folder or id, or it is not a CLIP model.
    """
    folder = Path(clip).expanduser()
    return _in_folder(folder.resolve(), clip) if folder.is_dir() else _on_hub(str(clip), _download(str(clip)))


def find_pinned_checkpoint(repo: str, revision: str, *, download: bool) -> Checkpoint:
    """Locate one revision of a hub repository that a file, and not the user, names.

    `download`: whether it may be downloaded if it is not on this machine. Raises UserError as `find_checkpoint` does.
    """
    try:
        return _on_hub(repo, _download(repo, revision=revision, local=True))
    except UserError as error:
        if not download:
            rule = "must be given, or its download allowed (allow_download)"
            raise UserError(
                f"{rule}: the adapter needs {repo} of the Hugging Face hub, revision {revision}, "
                "which is not on this machine",
                option="clip",
            ) from error
    return _on_hub(repo, _download(repo, revision=revision))


def _in_folder(folder: Path, clip: str | Path) -> Checkpoint:
    """Return the checkpoint in a folder. Raises UserError if it is not a CLIP model. `clip`: how the user names it."""
    identity = {"files": {path.name: file_sha256(path) for path in _content_files(folder)}}
    return _checked("/".join(folder.parts[-2:]), folder, identity, clip)


def _on_hub(repo: str, folder: Path) -> Checkpoint:
    """Return a hub's checkpoint, downloaded into `folder`. Raises UserError if it is not a CLIP model."""
    identity = {"hub": repo, "revision": folder.name}  # the hub's own folders are named by revision
    return _checked(repo, folder, identity, repo)


def _checked(name: str, folder: Path, identity: dict[str, Any], clip: str | Path) -> Checkpoint:
    """Return the checkpoint if it is a whole CLIP model, as far as its files say. Raises UserError."""
    for path in _content_files(folder):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{clip}: {path.name} is a pointer of Git LFS: run git lfs pull there", option="clip")
    if (folder / OPEN_CLIP_CONFIG).is_file() and not _weight_files(folder):
        return _checked_open_clip(name, folder, identity, clip)
    config = _read_json(folder / "config.json", clip)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        kinds = ", ".join(kind for kind in FAMILIES if kind != OPEN_CLIP)
        raise UserError(
            f"must be a checkpoint with an image and a text tower (model_type {kinds}); {clip} has model_type {kind!r}",
            option="clip",
        )
    family = FAMILIES[kind]
    processors = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    for part, names in (("image processor", PROCESSOR_FILES), ("tokenizer", TOKENIZER_FILES)):
        if not any((folder / file).is_file() for file in names):
            raise UserError(f"must come with its {part}; {clip} has no {names[0]}", option="clip")
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json", clip)
    elif (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file():
        raise UserError(f"must come with its tokenizer; {clip} has vocab.json, but no merges.txt", option="clip")
    _check_towers(folder, str(kind), clip)
    settings = [_read_json(path, clip) for path in processors]
    _check_processor(config, settings, family, clip)
    if kind != CLIP:  # whose files are told apart above, without the seconds that this import takes
        _check_tokenizer(folder, clip)
    return Checkpoint(
        name=name,
        folder=folder,
        identity=identity | {"processor": settings},
        model_type=kind,
        dimension=_dimension(config, family),
    )


def _checked_open_clip(name: str, folder: Path, identity: dict[str, Any], clip: str | Path) -> Checkpoint:
    """Return the checkpoint in OpenCLIP's own format, as far as its files say. Raises UserError."""
    config = _read_json(folder / OPEN_CLIP_CONFIG, clip)
    try:
        dimension = int(config["model_cfg"]["embed_dim"])
        _ = config["model_cfg"]["vision_cfg"]["image_size"], config["model_cfg"]["text_cfg"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{clip}: {OPEN_CLIP_CONFIG} lacks {reason(error)} of its model", option="clip") from error
    _check_towers(folder, OPEN_CLIP, clip)
    try:  # seconds, which only such a checkpoint takes
        from data_prep.openclip import OpenClipProcessor, OpenClipTokenizer
    except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
        rule = "must be in the format of transformers, or come with open_clip_torch and a torchvision that fits torch"
        install = 'pip install -e ".[openclip]"'
        raise UserError(f"{rule} ({install}); {clip}: {reason(error)}", option="clip") from error
    try:
        OpenClipProcessor(folder)
        OpenClipTokenizer(folder)
    except Exception as error:  # as many types as files can be wrong
        raise UserError(
            f"{clip}: its image processor or tokenizer cannot be loaded: {reason(error)}", option="clip"
        ) from error
    return Checkpoint(
        name=name, folder=folder, identity=identity | {"processor": []}, model_type=OPEN_CLIP, dimension=dimension
    )


def load_model(checkpoint: Checkpoint) -> "nn.Module":
    """Load the model in float32, in eval mode.

    Raises UserError if weights are missing: transformers would fill a missing tower or projection with noise.
    """
    if checkpoint.model_type == OPEN_CLIP:
        from data_prep.openclip import OpenClipModel

        try:
            return OpenClipModel(checkpoint.folder)
        except Exception as error:  # a dozen unrelated types on damaged files
            raise UserError(f"{checkpoint.name} cannot be loaded: {reason(error)}", option="clip") from error
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights becomes the error below
    try:
        loaded: Any = AutoModel.from_pretrained(checkpoint.folder, dtype="float32", output_loading_info=True)
    except Exception as error:  # from_pretrained raises a dozen unrelated types on damaged files
        raise UserError(f"{checkpoint.name} cannot be loaded: {reason(error)}", option="clip") from error
    finally:
        logging.set_verbosity(verbosity)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"must hold an image tower, a text tower and both projections; "
            f"{checkpoint.name} lacks {len(missing)} weights such as {missing[0]}",
            option="clip",
        )
    return model.eval()


def logit_scale(model: Any) -> float:
    """Return the multiplier of a model's cosines. SigLIP's bias is left out: it is the same for all classes."""
    scale = model.logit_scale.exp() if hasattr(model, "logit_scale") else 1 / model.temperature
    return scale.item()


def _dimension(config: dict[str, Any], family: Family) -> int:
    *parts, key = family.dimension_key
    for part in parts:
        config = config.get(part) or {}
    return config.get(key, family.dimension)


def _check_processor(
    config: dict[str, Any], processors: list[dict[str, Any]], family: Family, clip: str | Path
) -> None:
    """Raise UserError where the processor makes images that the model does not take."""
    # CLIP's own defaults, which are left out of many files
    expected = (config.get("vision_config") or {}).get("image_size", DEFAULT_CROP)
    for settings in processors:
        settings = settings.get("image_processor", settings)
        crops = settings.get("do_center_crop", config["model_type"] == CLIP)
        size = settings.get("crop_size", DEFAULT_CROP) if crops else settings.get("size", expected)
        sides = set(size.values()) if isinstance(size, dict) else {size}
        if family.fixed_size and sides != {expected}:
            raise UserError(
                f"{clip}: its image processor makes images of {', '.join(map(str, sorted(sides)))} pixels, "
                f"its model takes {expected}",
                option="clip",
            )
        for name in ("image_mean", "image_std"):
            given = settings.get(name, [0.5] * 3)
            if not isinstance(given, list) or len(given) != 3:
                raise UserError(f"{clip}: {name} of its image processor must be 3 numbers, got {given}", option="clip")


def _check_tokenizer(folder: Path, clip: str | Path) -> None:
    """Raise UserError where the tokenizer cannot be loaded: some need a package that not everybody has."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # from_pretrained raises a dozen unrelated types
        raise UserError(f"{clip}: its tokenizer cannot be loaded: {reason(error)}", option="clip") from error


def _content_files(folder: Path) -> list[Path]:
    """Return the files that make a checkpoint, by name."""
    return sorted({path for pattern in CONTENT_PATTERNS for path in folder.glob(pattern)})


def _weight_files(folder: Path, kind: str = CLIP) -> list[Path]:
    """Return the files that the library loads: others may lie beside them, of adapters or of other libraries."""
    if kind == OPEN_CLIP:
        return [folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()][:1]
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return [folder / whole]
        try:
            parts = set(json.loads((folder / f"{whole}.index.json").read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        return [folder / part for part in sorted(parts)]
    return []


def _check_towers(folder: Path, kind: str, clip: str | Path) -> None:
    """Raise UserError where a tower or projection is missing: read from the files' headers, before any work starts."""
    from safetensors import SafetensorError, safe_open

    family, found = FAMILIES[kind], _weight_files(folder, kind)
    if not found:
        expected = OPEN_CLIP_WEIGHTS[0] if kind == OPEN_CLIP else "model.safetensors"
        raise UserError(f"must hold weights; {clip} has no {expected}", option="clip")
    files = [path for path in found if path.suffix == ".safetensors"]
    weights: set[str] = set()
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                weights.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{clip}: {path.name} is damaged: {error}", option="clip") from error
    missing = [prefix for prefix in family.weights if not any(name.startswith(prefix) for name in weights)]
    if files and missing:
        raise UserError(
            f"must hold an image tower, a text tower and both projections; {clip} has no {missing[0].rstrip('.')}",
            option="clip",
        )


def _download(repo: str, *, revision: str | None = None, local: bool = False) -> Path:
    """Return the folder of a hub's repository. `local`: only if it is on this machine. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def fetch(weights: str) -> Path:
        patterns = ["*.json", "*.txt", "*.model", weights]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=local))

    try:
        folder = fetch("model*.safetensors")
        # older repositories have torch's format only, others OpenCLIP's own
        for weights in ("pytorch_model*.bin", *OPEN_CLIP_WEIGHTS):
            if not any(file for end in ("safetensors", "bin") for file in folder.glob(f"*.{end}")):
                folder = fetch(weights)
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"must be a folder or a Hugging Face id that can be reached; got {repo!r}: {reason(error)}",
            option="clip",
        ) from error
    return folder


def _read_json(path: Path, clip: str | Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"must be a Hugging Face CLIP folder or id; {clip}: {path.name}: {error}", option="clip"
        ) from error
