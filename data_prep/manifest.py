"""The manifest of a feature cache: its inputs and the hashes of its files. Without a manifest there is no cache."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.errors import UserError
from data_prep.scratch import features_sha256
from data_prep.storage import Storage, join, locate

SCHEMA_VERSION = 1  # raise it whenever the same inputs would give another cache: old caches are then not read
MANIFEST = "manifest.json"

CONTENT = "content_sha256"
"""Entry of the file that protects all others: the SHA-256 of them as canonical JSON."""

MAPPABLE = ("source.parquet", "target.parquet", "source_tokens.parquet", "target_tokens.parquet")
"""Files of features that `feature_store.mapped` maps."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The inputs of a cache, and the hashes of its files."""

    fingerprint: str
    """Hex SHA-256 of `inputs`."""
    inputs: dict[str, Any]
    """Facts on which the content depends, as JSON: see `cache_build.inputs_of`."""
    benchmark: str = ""
    """Name as `FeatureOptions` takes it."""
    clip: str = ""
    """Checkpoint: hub id, or the name of its folder."""
    logit_scale: float = 100.0
    """Multiplier of cosines, already exponentiated (100 for the released CLIPs)."""
    precision: str = ""
    """Type of the matrix products: float32, bfloat16 or float16."""
    batch: int = 0
    """Images encoded at once."""
    cut_texts: int = 0
    """Different texts that are longer than the text tower reads: their ends are cut."""
    several_frames: int = 0
    """Images of several frames, of which the first counts."""
    files: dict[str, str]
    """Hex SHA-256 of every other file, by name."""
    arrays: dict[str, str] = field(default_factory=dict)
    """Hex SHA-256 of the float16 features in files that are mapped, by name; empty in caches of earlier versions."""
    protected: bool = True
    """Whether the manifest states a hash of its own content; False for caches of earlier versions. Not in the file."""

    @property
    def checkpoint(self) -> dict[str, Any]:
        """Identity of the checkpoint's content, see `checkpoint.Checkpoint`."""
        return self.inputs["checkpoint"]

    @property
    def images(self) -> int:
        """Images of the benchmark, unreadable ones included."""
        return self.inputs["images"]["count"]

    @property
    def rejected(self) -> int:
        """Images left out because they cannot be read."""
        return self.inputs.get("rejected", {}).get("count", 0)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What its user should know of the features, in sentences."""
        said = {
            "texts are longer than the text tower reads: their ends are cut": self.cut_texts,
            "images have several frames: the first one counts": self.several_frames,
        }
        return tuple(f"{count} {text}" for text, count in said.items() if count)

    @property
    def partial(self) -> str:
        """The missing part of the published benchmark, in words; "" if it is complete."""
        return self.inputs.get("partial", "")


def fingerprint(inputs: dict[str, Any]) -> str:
    """Return the hex SHA-256 of `inputs` as canonical JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(
    folder: Storage,
    inputs: dict[str, Any],
    *,
    benchmark: str = "",
    clip: str = "",
    logit_scale: float = 100.0,
    precision: str = "",
    batch: int = 0,
    cut_texts: int = 0,
    several_frames: int = 0,
) -> None:
    """Seal `folder`: its manifest states the inputs, their fingerprint, and every Parquet file's SHA-256.

    Last of all it states the SHA-256 of all that.
    """
    files, arrays = {}, {}
    for name in folder.names():
        if name.endswith(".parquet"):
            with folder.open(name) as file:
                files[name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                if name in MAPPABLE:
                    file.seek(0)
                    arrays[name] = features_sha256(pq.ParquetFile(file, pre_buffer=False))
    manifest = Manifest(
        fingerprint=fingerprint(inputs),
        inputs=inputs,
        benchmark=benchmark,
        clip=clip,
        logit_scale=logit_scale,
        precision=precision,
        batch=batch,
        cut_texts=cut_texts,
        several_frames=several_frames,
        files=files,
        arrays=arrays,
    )
    names = [f.name for f in fields(Manifest) if f.name != "protected"]
    content = {name: getattr(manifest, name) for name in names}  # in this order: files are compared
    content[CONTENT] = fingerprint(content)
    folder.write(MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(cache: str | Path) -> Manifest:
    """Read the manifest of a complete cache.

    Raises UserError if there is none, it is unreadable, of another schema, or it was altered: its fingerprint is not
    that of its inputs, or its hash not that of its content. Caches of earlier versions have no such hash, and are read
    all the same: see `Manifest.protected`.
    """
    folder = locate(cache, option="")
    path = join(folder.shown, MANIFEST)
    try:
        content = folder.read(MANIFEST)
        if content is None:
            raise UserError(f"{cache} is no feature cache: it has no {MANIFEST}")
        stated = json.loads(content)
        own_hash = stated.pop(CONTENT, None)
        known = {f.name: stated[f.name] for f in fields(Manifest) if f.name in stated}
        manifest = Manifest(**known | {"protected": own_hash is not None})
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder and it is built again") from None
    if manifest.fingerprint != fingerprint(manifest.inputs):
        raise UserError(f"{path} was altered: its fingerprint is not that of its inputs; delete the folder")
    if own_hash not in (None, fingerprint(stated)):
        raise UserError(f"{path} was altered: its {CONTENT} is not that of its content; delete the folder")
    if manifest.inputs["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{cache} has schema {manifest.inputs['schema_version']}, this version reads {SCHEMA_VERSION}; delete it"
        )
    return manifest
