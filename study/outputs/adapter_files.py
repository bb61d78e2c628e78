"""Write and read the folder of an exported adapter."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load, save

from data_prep.errors import UserError, some_of
from data_prep.parquet import csv_bytes, read_csv
from data_prep.storage import Storage
from data_prep.templates import is_template
from data_prep.wordnet import NOT_IN_WORDNET
from search_spaces.plugins import load_installed
from study.evaluation.leaderboard import ORACLE, Row
from study.evaluation.leaderboard_text import to_markdown
from study.outputs.adapter import TEXTS, TrainedAdapter, without_images
from study.outputs.provenance import RefitRecord
from study.training.methods import configurations, method_of_config

ADAPTERS, SELECTED, ENSEMBLE = "adapters", "selected", "ensemble"
"""Folder of a study's adapters, and the names in it of the one that selection chose and of the ensemble, whose members
are in folders 1, 2, ...; the others are called by rank."""

TRANSDUCTIVE = (
    "Training and selection saw the unlabelled test images themselves (transductive): expect somewhat less on others."
)
INDUCTIVE = "Neither training nor selection saw the test images."
"""What a card says of a method that may see target images, and of one that may not."""

FORMAT = 1
"""Version of the folder's layout; a change that older folders do not survive raises it."""


def write_adapter(
    storage: Storage,
    folder: str,
    adapter: TrainedAdapter,
    *,
    row: Row,
    metrics: Mapping[str, float],
    record: RefitRecord,
) -> None:
    """Write an adapter into a folder of the study. Raises `UserError` if the storage cannot be written.

    `row`: the configuration's row of the leaderboard, a mean over seeds. `metrics`: test metrics of the adapter's own
    seed, none where no image has a label. `record`: how the refits were made.
    """
    tensors = {name: getattr(adapter.data, name) for name in TEXTS}
    tensors |= {f"lane.{name}": value for name, value in adapter.weights.items()}
    config = {
        "format": FORMAT,
        "method": type(adapter.config).__name__,
        "config": asdict(adapter.config),
        "seed": adapter.seed,
        "seen_constant": adapter.seen_constant,
        "clip": {"name": adapter.clip, "identity": adapter.clip_identity},
        "templates": adapter.templates,
        "logit_scale": adapter.data.logit_scale,
        "feature_fingerprint": adapter.data.fingerprint,
        "metrics": dict(metrics),
        "leaderboard": asdict(row),
        **record.to_json(),
    }
    classes = {
        "name": adapter.names,
        "wnid": [wnid or NOT_IN_WORDNET for wnid in adapter.wnids],
        "seen": adapter.data.seen_C.int().tolist(),
    }
    contents = {
        "adapter.safetensors": save(
            {name: value.contiguous() for name, value in tensors.items()},
            metadata={
                "format": "pt",
                "method": config["method"],
                "config_id": row.config_id,
                "clip": adapter.clip,
                "feature_fingerprint": adapter.data.fingerprint,
            },
        ),
        "classes.csv": csv_bytes(pa.table(classes)),
        "nodes.csv": csv_bytes(pa.table({"wnid": adapter.node_wnids})),
        "README.md": _card(adapter, row, metrics, record).encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),  # last: a folder with it is complete
    }
    for name, content in contents.items():
        storage.write(f"{folder}/{name}", content)


def read_adapters(storage: Storage) -> list[TrainedAdapter]:
    """Read the adapter in a folder, or the members of an ensemble, in its folders 1, 2, ... Raises `UserError`."""
    if storage.read("config.json") is not None or storage.read("1/config.json") is None:
        return [read_adapter(storage)]
    members = itertools.takewhile(lambda i: storage.read(f"{i}/config.json") is not None, itertools.count(1))
    return [read_adapter(storage / str(i)) for i in members]


def read_adapter(storage: Storage) -> TrainedAdapter:
    """Read the adapter in a folder. Raises `UserError` if there is none, or if it is damaged."""
    files = {name: storage.read(name) for name in ("config.json", "adapter.safetensors", "classes.csv", "nodes.csv")}
    missing = [name for name, content in files.items() if content is None]
    if missing:
        rule = f"must be a folder of <study>/adapters, {storage.shown} has no {missing[0]}"
        raise UserError(f"{rule}{_others(storage)}", option="adapter")
    try:
        config = json.loads(files["config.json"] or b"")
        if config["format"] != FORMAT:
            raise UserError(
                f"{storage.shown} has format {config['format']}, this version reads {FORMAT}", option="adapter"
            )
        for template in config["templates"]:
            if not is_template(template):
                raise UserError(
                    f"must have prompt templates with one {{}} each, {storage.shown} has {template[:100]!r}",
                    option="adapter",
                )
        tensors = load(files["adapter.safetensors"] or b"")
        classes, nodes = _columns(files["classes.csv"]), _columns(files["nodes.csv"])
        kind = _kind(config["method"], storage.shown)
        return TrainedAdapter(
            config=kind(**config["config"]),
            seed=config["seed"],
            data=without_images(
                **{name: tensors[name] for name in TEXTS},
                logit_scale=config["logit_scale"],
                fingerprint=config["feature_fingerprint"],
            ),
            names=tuple(classes["name"]),
            wnids=tuple(None if wnid == NOT_IN_WORDNET else wnid for wnid in classes["wnid"]),
            node_wnids=tuple(nodes["wnid"]),
            templates=tuple(config["templates"]),
            clip=config["clip"]["name"],
            clip_identity=config["clip"]["identity"],
            weights={name.removeprefix("lane."): t for name, t in tensors.items() if name.startswith("lane.")},
            seen_constant=float(config.get("seen_constant", 0.0)),  # older adapters have none
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException) as error:
        raise UserError(f"{storage.shown} is damaged: {type(error).__name__}: {error}", option="adapter") from error


def _kind(name: str, where: str) -> type:
    """Return the configuration class of a method. Raises `UserError` where no module that is loaded has it."""
    if name not in {kind.__name__ for kind in configurations()}:
        load_installed()
    for kind in configurations():
        if kind.__name__ == name:
            return kind
    raise UserError(f"must name the file or module of {name}, the method of {where}", option="plugin")


def _others(storage: Storage) -> str:
    """Return the adapters beside a folder, in words: their names are ranks of the leaderboard, with gaps."""
    beside = replace(storage, root=storage.root.rpartition("/")[0])
    if not beside.root.endswith("/adapters"):  # anything may lie there
        return ""
    files = beside.names(recursive=True)
    found = [name.removesuffix("/config.json") for name in files if name.endswith("/config.json")]
    # an ensemble has its members in folders of its own
    names = sorted({name.partition("/")[0] for name in found}, key=lambda name: (len(name), name))
    return f"; beside it are {some_of(names)}" if names else ""


def _columns(content: bytes | None) -> dict[str, list[Any]]:
    """Return the columns of a CSV file; names and wnids are strings even where they look like numbers or nulls."""
    return read_csv(content or b"", strings=("name", "wnid")).to_pydict()


def _metadata(adapter: TrainedAdapter, row: Row, metrics: Mapping[str, float]) -> str:
    """Return the card's head, as the Hugging Face hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", row.benchmark).strip("-") or "own"
    hub = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)", row.benchmark)
    results = [
        EvalResult(
            task_type="zero-shot-image-classification",
            dataset_type=slug,
            dataset_name=row.benchmark,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(100 * metrics[key], 2),
        )
        for name, key in (("S", "test_seen_mean"), ("U", "test_unseen_mean"), ("H", "test_h"))
        if key in metrics
    ]
    data = ModelCardData(
        license="other",
        license_name="of-checkpoint-and-images",
        base_model=adapter.clip_identity.get("hub"),
        datasets=[hub[1]] if hub else None,
        library_name="zerosweep",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "adapter", "zero-shot", "domain-adaptation"],
        metrics=["accuracy"],
        model_name=row.config_id,
        eval_results=results or None,
    )
    return data.to_yaml()


def _card(adapter: TrainedAdapter, row: Row, metrics: Mapping[str, float], record: RefitRecord) -> str:
    """Return the model card."""
    _, _, table = to_markdown([row]).partition("\n\n")  # without its title
    seen = int(adapter.data.seen_C.sum())
    versions = ", ".join(f"{name} {version}" for name, version in record.run.environment.versions.items())
    folds, option = record.run.options.folds, f"`--select {row.select}`"
    warning = ": LOOKED AT TEST LABELS, an upper bound" if row.select == ORACLE else ""
    constant = (
        f"\n- {adapter.seen_constant:.4g} is subtracted from logits of seen classes." if adapter.seen_constant else ""
    )
    sees = TRANSDUCTIVE if method_of_config(type(adapter.config)).uses_target else INDUCTIVE
    return f"""---
{_metadata(adapter, row, metrics)}
---

# {row.method} on {row.benchmark}

An adapter of CLIP `{adapter.clip}` for {len(adapter.names)} classes: {seen} seen, {len(adapter.names) - seen} unseen in
training (`classes.csv`). Configuration `{row.config_id}`, rank {row.rank} of its leaderboard.

```bash
python study/predict.py --adapter THIS_FOLDER IMAGE...
```

The licences of CLIP's weights and of the images that it was trained on hold for this adapter, too.

## Metrics

{_measured(table, row, adapter.seed, metrics)}

## Protocol

- Selected with {option}{warning}, {folds} folds of seen classes; refitted on all seen classes with seeds
  {", ".join(map(str, record.seeds))} for {record.epochs} epochs; rotation {record.rotation}.
- {sees}{constant}
- {"Test labels were read once, after the choice." if metrics else "No target image had a label."}
- Features: fingerprint `{row.feature_fingerprint}`; templates {", ".join(f"`{t}`" for t in adapter.templates)}.
- Versions: {versions}.
"""


def _measured(table: str, row: Row, seed: int, metrics: Mapping[str, float]) -> str:
    if not metrics:
        return f"None: no target image had a label. The weights are those of seed {seed}."
    seen, unseen, h = (f"{100 * metrics[name]:.2f}" for name in ("test_seen_mean", "test_unseen_mean", "test_h"))
    return f"""{table}
The line is a mean over {row.n_seeds} seeds, ± their deviation; the interval comes from a paired bootstrap over test
images against zero-shot CLIP. The weights are those of seed {seed}, which alone has
S {seen}, U {unseen}, H {h}."""
