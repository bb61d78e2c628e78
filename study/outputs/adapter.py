"""Make an adapter that classifies images without Ray and without the feature cache, and add classes to it.

The adapter's folder (`adapter_files` writes and reads it):

    adapter.safetensors   the trained lane, and the text features of its classes and graph nodes
    config.json           method and configuration, checkpoint, templates, metrics, versions
    classes.csv           name, wnid ("-" outside WordNet) and whether the class was seen, in class order
    nodes.csv             wnid of every graph node
    README.md             the model card

Nothing in it is a pickle, and no file names another.

Suffixes: C classes, N graph nodes, D CLIP dimension, E edges, T texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet
from data_prep.word_senses import resolve_wnids
from data_prep.wordnet import NOT_IN_WORDNET, wordnet
from data_prep.wordnet_graph import hypernym_graph
from models.stacked import MethodConfig, StackedModule
from study.protocol.trial_data import TrialData
from study.training.methods import Method, method_of_config

TEXTS = ("name_features_CD", "node_features_ND", "class_node_C", "edges_E2", "seen_C")
"""Fields of `TrialData` that an adapter has."""

EncodeTexts = Callable[[Sequence[str]], Tensor]
"""Encodes texts as CLIP features (T, D), L2-normalised."""


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """One trained configuration and the texts it classifies by."""

    config: MethodConfig
    """Configuration of the method, inference-time knobs included."""
    seed: int
    """Seed of the refit whose weights these are."""
    data: TrialData
    """Class texts and graph, without images."""
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
    """Identity of the checkpoint's content: see `data_prep.checkpoint`."""
    weights: dict[str, Tensor]
    """The lane's tensors (1, ...): parameters and inference-time knobs."""
    seen_constant: float = 0.0
    """Subtracted from the logits of seen classes, of a calibrated row (Chao et al., 2016)."""

    def logits(self, module: StackedModule, images_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of image features (B, D), L2-normalised, by the adapter's `module`."""
        return module.logits(images_BD)[0] - self.seen_constant * self.data.seen_C.to(images_BD)

    @property
    def method(self) -> Method:
        """Method of the configuration."""
        return method_of_config(type(self.config))

    def module(self, clip_path: str = "") -> StackedModule:
        """Build the module, a pack of one lane; classes added since the training have their untrained values.

        `clip_path`: folder or hub id of the checkpoint; methods with learned prompts need its text encoder.
        """
        data = replace(self.data, class_names=self.names, template=self.templates[0], clip_path=clip_path)
        if "keys_KND" in self.weights:  # Tip-Adapter draws its cache from images: from exactly those, all of them
            keys, labels = self.weights["keys_KND"][0], self.weights["cache_labels_KN"][0]
            data = replace(data, source_features_ID=keys, source_labels_I=labels)
        if "target_KTD" in self.weights:  # a transductive method is fitted again, to the images it was fitted to
            data = replace(data, target_features_TD=self.weights["target_KTD"][0])
        all_images_KI = torch.ones(1, len(data.source_labels_I), dtype=torch.bool)
        module = self.method.build([self.config], [self.seed], data.seen_C[None], all_images_KI, data)
        if missing := sorted(module.lanes().keys() - self.weights.keys()):
            rule = "must be of this version: run its study again"
            raise UserError(f"{rule} (the file has no {missing[0]})", option="adapter")
        module.set_lanes(self.weights)
        return module.eval()

    def with_classes(
        self, added: Sequence[tuple[str, str]], encode: EncodeTexts, *, where: str = "classes as NAME=WNID"
    ) -> "TrainedAdapter":
        """Return the adapter with more classes, each a (name, wnid or ""): unseen ones, like any class without images.

        Methods with a graph need the place of each class in WordNet: an empty wnid is looked up. `where`: how users
        give wnids, for errors. Raises `UserError`.
        """
        names = [name for name, _ in added]
        taken = [name for i, name in enumerate(names) if not name or name in (*self.names, *names[:i])]
        if taken:
            raise UserError(f"must be names that are not there yet, got {taken[0]!r}", option="classes")
        unknown = "" if self.method.uses_graph else NOT_IN_WORDNET  # "": looked up
        wnids = resolve_wnids(names, [wnid.strip() or unknown for _, wnid in added], where=where)
        known = [wnid for wnid in wnids if wnid and wnid in self.wnids]
        if known:
            name = self.names[self.wnids.index(known[0])]
            raise UserError(f"must be new, {known[0]} is {name!r}", option="classes")
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

    def _with_nodes(self, names: Sequence[str], wnids: Sequence[str | None], encode: EncodeTexts) -> "TrainedAdapter":
        """Return the adapter with nodes and edges for classes and those of their hypernyms that the graph lacks."""
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
        """Return the sum of the text features of each group of words in all templates: (groups, D)."""
        texts = [[t.format(word) for word in group for t in self.templates] for group in words]
        features_TD = encode([text for group in texts for text in group])
        row_T = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(group) for group in texts]))
        return torch.zeros(len(texts), features_TD.shape[1]).index_add_(0, row_T, features_TD)


def make_adapter(
    config: MethodConfig,
    seed: int,
    weights: dict[str, Tensor],
    data: TrialData,
    features: FeatureSet,
    clip: dict[str, Any],
    seen_constant: float = 0.0,
) -> TrainedAdapter:
    """Make the adapter of one refitted lane.

    `clip`: identity of the checkpoint, from the cache's manifest. `seen_constant`: of a calibrated row.
    """
    return TrainedAdapter(
        config=config,
        seed=seed,
        data=without_images(**{name: getattr(data, name) for name in (*TEXTS, "logit_scale", "fingerprint")}),
        names=features.classes.names,
        wnids=features.classes.wnids,
        node_wnids=features.graph.node_wnids,
        templates=features.templates,
        clip=features.clip,
        clip_identity=clip,
        weights=weights,
        seen_constant=seen_constant,
    )


def without_images(**known: Any) -> TrialData:
    """Return `TrialData` with the fields `TEXTS`, logit_scale and fingerprint that are given, and with no image."""
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
