"""An adapter as a folder: what `predict.py` needs to classify images, without Ray and without the feature cache.

    adapter.safetensors   the trained lane, and the text features of its classes and graph nodes
    config.json           method and configuration, checkpoint, templates, metrics, versions
    classes.csv           name, wnid ("-" outside WordNet) and whether the class was seen, in class order
    nodes.csv             wnid of every graph node
    README.md             the model card

Nothing in it is a pickle, and no file names another.

Suffixes: C classes, N graph nodes, D CLIP dimension, E edges, T texts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet
from data_prep.storage import Storage
from data_prep.wordnet import NOT_IN_WORDNET, resolve_wnids, wordnet
from data_prep.wordnet_graph import hypernym_graph
from study.leaderboard import Row, to_markdown
from study.methods import METHODS, Method
from study.protocol import TrialData

FORMAT = 1
"""Raised whenever older folders could not be read any more."""

TEXTS = ("name_features_CD", "node_features_ND", "class_node_C", "edges_E2", "seen_C")
"""The part of `TrialData` that an adapter keeps."""

EncodeTexts = Callable[[Sequence[str]], Tensor]
"""Texts -> CLIP features (T, D), L2-normalised."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One trained configuration and the texts it classifies by."""

    config: Any
    """The method's configuration, with the inference-time knobs it found."""
    seed: int
    """Seed of the refit whose weights these are."""
    data: TrialData
    """Class texts and graph; it holds no image."""
    names: tuple[str, ...]
    """(C,) class names."""
    wnids: tuple[str | None, ...]
    """(C,) WordNet ids."""
    node_wnids: tuple[str, ...]
    """(N,) WordNet ids of the graph's nodes."""
    templates: tuple[str, ...]
    """Prompt templates behind the text features."""
    clip: str
    """Name of the checkpoint."""
    clip_identity: dict[str, Any]
    """What its content was: see `data_prep.checkpoint`."""
    weights: dict[str, Tensor]
    """The lane's tensors (1, ...): parameters and inference-time knobs."""

    @property
    def method(self) -> Method:
        return METHODS[type(self.config)]

    def module(self, clip_path: str = "") -> Any:
        """The module, a pack of one lane; classes added since the training have their untrained values.

        `clip_path`: the checkpoint; methods with learned prompts need its text encoder.
        """
        data = replace(self.data, class_names=self.names, clip_path=clip_path)
        if "keys_KND" in self.weights:  # Tip-Adapter draws its cache from images: from exactly those, all of them
            keys, labels = self.weights["keys_KND"][0], self.weights["cache_labels_KN"][0]
            data = replace(data, source_features_ID=keys, source_labels_I=labels)
        everything_KI = torch.ones(1, len(data.source_labels_I), dtype=torch.bool)
        module = self.method.build([self.config], [self.seed], data.seen_C[None], everything_KI, data)
        module.set_lanes(self.weights)
        return module.eval()

    def with_classes(self, added: Sequence[tuple[str, str]], encode: EncodeTexts) -> "Adapter":
        """The same adapter with more classes, (name, wnid or "") each; unseen ones, like any class without images.

        Methods with a graph need their place in WordNet: an empty wnid is looked up. Raises `UserError`.
        """
        names = [name for name, _ in added]
        twice = [name for i, name in enumerate(names) if not name or name in (*self.names, *names[:i])]
        if twice:
            raise UserError(f"--classes must be names that are not there yet, got {twice[0]!r}")
        wnids: tuple[str | None, ...] = tuple(wnid or None for _, wnid in added)
        if self.method.uses_graph:
            wnids = resolve_wnids(names, [wnid for _, wnid in added], where="--classes as NAME=WNID")
            known = [wnid for wnid in wnids if wnid and wnid in self.wnids]
            if known:
                raise UserError(f"--classes must be new, {known[0]} is {self.names[self.wnids.index(known[0])]!r}")
        name_features_CD = normalize(self._encoded([[name] for name in names], encode), dim=-1)
        grown = self._with_nodes(names, wnids, encode)
        node_of = {node: i for i, node in enumerate(grown.node_wnids)}
        nodes = [node_of[wnid or f"class:{name}"] for name, wnid in zip(names, wnids, strict=True)]
        data = replace(
            grown.data,
            name_features_CD=torch.cat([self.data.name_features_CD, name_features_CD]),
            class_node_C=torch.cat([self.data.class_node_C, torch.tensor(nodes)]),
            seen_C=torch.cat([self.data.seen_C, torch.zeros(len(names), dtype=torch.bool)]),
        )
        return replace(grown, data=data, names=(*self.names, *names), wnids=(*self.wnids, *wnids))

    def _with_nodes(self, names: Sequence[str], wnids: Sequence[str | None], encode: EncodeTexts) -> "Adapter":
        """With nodes and edges for classes and the hypernyms of theirs that the graph lacks."""
        net = wordnet()
        hierarchy = hypernym_graph(net, [wnid for wnid in wnids if wnid in net.synsets])
        lemmas = {node: net.synsets[node].lemmas for node in sorted(hierarchy)}
        lemmas |= {f"class:{name}": (name,) for name, wnid in zip(names, wnids, strict=True) if wnid not in lemmas}
        lemmas = {node: words for node, words in lemmas.items() if node not in self.node_wnids}
        if not lemmas:
            return self
        node_wnids = (*self.node_wnids, *lemmas)
        index = {node: i for i, node in enumerate(node_wnids)}
        # the graph is closed under hypernyms: no old node is below a new one
        edges = [[index[child], index[parent]] for child, parent in sorted(hierarchy.edges) if child in lemmas]
        features_ND = self._encoded(list(lemmas.values()), encode)
        data = replace(
            self.data,
            node_features_ND=torch.cat([self.data.node_features_ND, normalize(features_ND, dim=-1)]),
            edges_E2=torch.cat([self.data.edges_E2, torch.tensor(edges, dtype=torch.int64).view(-1, 2)]),
        )
        return replace(self, data=data, node_wnids=node_wnids)

    def _encoded(self, words: Sequence[Sequence[str]], encode: EncodeTexts) -> Tensor:
        """Sum of the text features of every group of words in every template, one row per group."""
        texts = [[t.format(word) for word in group for t in self.templates] for group in words]
        features_TD = encode([text for group in texts for text in group])
        row_T = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(group) for group in texts]))
        return torch.zeros(len(texts), features_TD.shape[1]).index_add_(0, row_T, features_TD)


def make_adapter(
    config: Any, seed: int, weights: dict[str, Tensor], data: TrialData, features: FeatureSet, clip: dict[str, Any]
) -> Adapter:
    """The adapter of one refitted lane. `clip`: identity of the checkpoint, from the cache's manifest."""
    return Adapter(
        config=config,
        seed=seed,
        data=_without_images(**{name: getattr(data, name) for name in (*TEXTS, "logit_scale", "fingerprint")}),
        names=features.classes.names,
        wnids=features.classes.wnids,
        node_wnids=features.graph.node_wnids,
        templates=features.templates,
        clip=features.clip,
        clip_identity=clip,
        weights=weights,
    )


def write_adapter(
    storage: Storage,
    folder: str,
    adapter: Adapter,
    *,
    row: Row,
    metrics: Mapping[str, float],
    provenance: Mapping[str, Any],
) -> None:
    """Write an adapter into a folder of the study. `row`: its line on the leaderboard, a mean over seeds; `metrics`:
    those of this very seed; `provenance`: seeds, rotation, options, versions. Raises `UserError`.
    """
    tensors = {name: getattr(adapter.data, name) for name in TEXTS}
    tensors |= {f"lane.{name}": value for name, value in adapter.weights.items()}
    config = {
        "format": FORMAT,
        "method": type(adapter.config).__name__,
        "config": asdict(adapter.config),
        "seed": adapter.seed,
        "clip": {"name": adapter.clip, "identity": adapter.clip_identity},
        "templates": adapter.templates,
        "logit_scale": adapter.data.logit_scale,
        "feature_fingerprint": adapter.data.fingerprint,
        "metrics": dict(metrics),
        "leaderboard": asdict(row),
        **provenance,
    }
    classes = {
        "name": adapter.names,
        "wnid": [wnid or NOT_IN_WORDNET for wnid in adapter.wnids],
        "seen": adapter.data.seen_C.int().tolist(),
    }
    contents = {
        "adapter.safetensors": save({name: value.contiguous() for name, value in tensors.items()}),
        "classes.csv": _csv(classes),
        "nodes.csv": _csv({"wnid": adapter.node_wnids}),
        "README.md": _card(adapter, row, metrics, provenance).encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),  # last: with it the adapter is complete
    }
    for name, content in contents.items():
        storage.write(f"{folder}/{name}", content)


def read_adapter(storage: Storage) -> Adapter:
    """The adapter in a folder. Raises `UserError` if it is none, or damaged."""
    files = {name: storage.read(name) for name in ("config.json", "adapter.safetensors", "classes.csv", "nodes.csv")}
    missing = [name for name, content in files.items() if content is None]
    if missing:
        raise UserError(f"--adapter must be a folder of <study>/adapters, {storage.shown} has no {missing[0]}")
    try:
        config = json.loads(files["config.json"] or b"")
        if config["format"] != FORMAT:
            raise UserError(f"--adapter {storage.shown} has format {config['format']}, this version reads {FORMAT}")
        tensors = load(files["adapter.safetensors"] or b"")
        classes, nodes = _table(files["classes.csv"]), _table(files["nodes.csv"])
        kind = {method.__name__: method for method in METHODS}[config["method"]]
        return Adapter(
            config=kind(**config["config"]),
            seed=config["seed"],
            data=_without_images(
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
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, SafetensorError, pa.ArrowException) as error:
        raise UserError(f"--adapter {storage.shown} is damaged: {type(error).__name__}: {error}") from error


def _without_images(**known: Any) -> TrialData:
    none_ID = torch.empty(0, known["name_features_CD"].shape[1])
    no_labels_I = torch.empty(0, dtype=torch.int64)
    return TrialData(
        source_features_ID=none_ID,
        source_labels_I=no_labels_I,
        held_out_I=no_labels_I.bool(),
        target_features_TD=none_ID,
        fold_C=no_labels_I,
        **known,
    )


def _csv(columns: Mapping[str, Any]) -> bytes:
    content = BytesIO()
    pa.csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), content)
    return content.getvalue()


def _table(content: bytes | None) -> dict[str, list[Any]]:
    strings = pa.csv.ConvertOptions(
        column_types={"name": pa.string(), "wnid": pa.string()}, null_values=[], strings_can_be_null=False
    )
    return pa.csv.read_csv(BytesIO(content or b""), convert_options=strings).to_pydict()


def _card(adapter: Adapter, row: Row, metrics: Mapping[str, float], provenance: Mapping[str, Any]) -> str:
    """The model card."""
    options = provenance["options"]
    _, _, table = to_markdown([row]).partition("\n\n")  # without its title
    seen = int(adapter.data.seen_C.sum())
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    select = f"`--select {row.select}`" + (": LOOKED AT TEST LABELS, an upper bound" if row.select == "oracle" else "")
    return f"""# {row.method} on {row.benchmark}

An adapter of CLIP `{adapter.clip}` for {len(adapter.names)} classes: {seen} seen, {len(adapter.names) - seen} unseen in
training (`classes.csv`). Configuration `{row.config_id}`, rank {row.rank} of its leaderboard.

```bash
python study/predict.py --adapter THIS_FOLDER IMAGE...
```

## Metrics

{table}
The line is a mean over {row.n_seeds} seeds, ± their deviation; the interval comes from a paired bootstrap over test
images against zero-shot CLIP. The weights are those of seed {adapter.seed}, which alone has
S {100 * metrics["test_seen_mean"]:.2f}, U {100 * metrics["test_unseen_mean"]:.2f}, H {100 * metrics["test_h"]:.2f}.

## Protocol

- Selected with {select}, {options["selection"]["folds"]} folds of seen classes; refitted on all seen classes with seeds
  {", ".join(map(str, provenance["seeds"]))} for {provenance["epochs"]} epochs; rotation {provenance["rotation"]}.
- Test images were scored once, after the choice.
- Features: fingerprint `{row.feature_fingerprint}`; templates {", ".join(f"`{t}`" for t in adapter.templates)}.
- Versions: {versions}.
"""
