"""The methods a study can train: which module belongs to a configuration, and how it is built from trial data.

Suffixes: K lanes, I source images, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import cast

from torch import Tensor

import search_spaces
from data_prep.errors import UserError
from models.baselines import (
    CalibratedStacking,
    CalibratedStackingConfig,
    CLIPAdapter,
    CLIPAdapterConfig,
    CoOp,
    CoOpConfig,
    LinearProbe,
    LinearProbeConfig,
    TipAdapter,
    TipAdapterConfig,
)
from models.heads import TransductiveVote, TransductiveVoteConfig
from models.prompts import ClassTexts, FrozenTextEncoder
from models.pva import PVA, PVAConfig
from models.sre_clip import SREClip, SREConfig
from models.stacked import MethodConfig, StackedModule
from models.transductive import InMaP, InMaPConfig, TransCLIP, TransCLIPConfig, ZLaP, ZLaPConfig
from search_spaces import Space, Value
from study.protocol.trial_data import TrialData

Build = Callable[[Sequence[MethodConfig], Sequence[int], Tensor, Tensor, TrialData], StackedModule]
"""(configurations, seeds, seen_KC, trainable_KI, data on the CPU) -> module of a lane per configuration."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a kind of configuration is trained."""

    build: Build
    """Makes the module of a pack."""
    uses_target: bool = False
    """Whether it learns from, and selection may look at, unlabelled target images; others never receive them."""
    uses_graph: bool = False
    """Whether it needs the classes' places in WordNet."""
    swept: tuple[str, ...] = ()
    """Inference-time knobs that the module's `sweep` finds exactly on the selection split: never sampled."""
    ours: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Values of knobs that the method's article does not have: the name of a row says them."""


def _sre(configs: Sequence[MethodConfig], seeds: Sequence[int], seen_KC: Tensor, _: Tensor, data: TrialData) -> SREClip:
    sre = cast("Sequence[SREConfig]", configs)
    return SREClip(sre, seeds=seeds, seen_KC=seen_KC, graph=data.graph, target_features_TD=data.target_features_TD)


def _on_texts(module: Callable[..., StackedModule]) -> Build:
    """Return a builder for methods that needs class texts beside the labelled images."""

    def build(
        configs: Sequence[MethodConfig], seeds: Sequence[int], seen_KC: Tensor, _: Tensor, data: TrialData
    ) -> StackedModule:
        return module(configs, seeds=seeds, base_KC=seen_KC, texts=_texts(data, configs[0]))

    return build


def _on_target(module: Callable[..., StackedModule]) -> Build:
    """Return a builder for methods that need class texts and the unlabelled target images."""

    def build(
        configs: Sequence[MethodConfig], seeds: Sequence[int], seen_KC: Tensor, _: Tensor, data: TrialData
    ) -> StackedModule:
        return module(configs, texts=_texts(data, configs[0]), target_features_TD=data.target_features_TD)

    return build


def _tip(
    configs: Sequence[MethodConfig], seeds: Sequence[int], seen_KC: Tensor, trainable_KI: Tensor, data: TrialData
) -> TipAdapter:
    return TipAdapter(
        cast("Sequence[TipAdapterConfig]", configs),
        seeds=seeds,
        base_KC=seen_KC,
        texts=_texts(data, configs[0]),
        cache_features_ID=data.source_features_ID,
        cache_labels_I=data.source_labels_I,
        cache_KI=trainable_KI,
    )


LEARNED = ("shared", "per_class")
"""Values of the field `prompts` that are learned through CLIP's own text tower."""


def learns_prompts(space: Space) -> bool:
    """Return whether configurations of a space go through CLIP's own text tower."""
    searched = [value for knob in space.knobs if knob.name == "prompts" for value in knob.choices or ()]
    return any(value in LEARNED for value in [getattr(space.config(), "prompts", None), *searched])


def _texts(data: TrialData, config: MethodConfig) -> ClassTexts:
    """Return the class texts, with the text encoder if the configuration learns prompts through it."""
    encoder = None
    if isinstance(config, PVAConfig | CoOpConfig) and config.prompts in LEARNED:
        encoder = _text_encoder(data.clip_path)
    return ClassTexts(
        features_CD=data.name_features_CD,
        logit_scale=data.logit_scale,
        names=data.class_names,
        encoder=encoder,
        template=data.template,
    )


@lru_cache(maxsize=1)
def _text_encoder(clip_path: str) -> FrozenTextEncoder:
    """Return the text encoder, one for all packs of a process: it is frozen."""
    return FrozenTextEncoder.load(clip_path)


METHODS: dict[type[MethodConfig], Method] = {
    SREConfig: Method(
        build=_sre,
        uses_target=True,
        uses_graph=True,
        ours={"adjacency": ("identity",), "align": ("cosine",), "class_prior": ("estimated",)},
    ),
    PVAConfig: Method(build=_on_texts(PVA), swept=("tau", "residual_lambda"), ours={"score": ("relative",)}),
    CLIPAdapterConfig: Method(build=_on_texts(CLIPAdapter)),
    TipAdapterConfig: Method(build=_tip, swept=("alpha", "beta")),
    CoOpConfig: Method(build=_on_texts(CoOp)),
    LinearProbeConfig: Method(build=_on_texts(LinearProbe)),
    CalibratedStackingConfig: Method(build=_on_texts(CalibratedStacking), swept=("constant",)),
    ZLaPConfig: Method(build=_on_target(ZLaP), uses_target=True),
    TransCLIPConfig: Method(build=_on_target(TransCLIP), uses_target=True),
    InMaPConfig: Method(build=_on_target(InMaP), uses_target=True),
    TransductiveVoteConfig: Method(build=_on_target(TransductiveVote), uses_target=True),
}


def register(
    space: Space,
    *,
    build: Build,
    uses_target: bool = False,
    uses_graph: bool = False,
    swept: Sequence[str] = (),
    ours: Mapping[str, Sequence[Value]] | None = None,
) -> None:
    """Add a method of your own: `--space` finds it by the name of its space. models/README.md shows a whole one.

    build: (configurations, seeds, seen_KC, trainable_KI, data) -> module of a lane per configuration. uses_target:
    whether the method may see unlabelled target images; others never receive them. uses_graph: whether it needs the
    classes' places in WordNet. swept: fields that the module's `sweep` finds on the selection split. ours: values of
    fields that the method's article does not have, which the id of a row then says.
    Raises `UserError` where the space or its configuration cannot be used.
    """
    kind = type(space.config())
    if not is_dataclass(kind) or not {"LANE_KNOBS", "lr", "weight_decay", "batch_size"} <= set(dir(space.config())):
        raise UserError(
            f"{kind.__name__} must be a dataclass with LANE_KNOBS, batch_size, lr and weight_decay, as the "
            "configurations in models/ are"
        )
    search_spaces.register(space)
    own = {name: tuple(values) for name, values in (ours or {}).items()}
    if unknown := sorted(own.keys() - {f.name for f in fields(kind)}):
        raise UserError(f"ours must name fields of {kind.__name__}; it has no {unknown[0]}")
    method = Method(build=build, uses_target=uses_target, uses_graph=uses_graph, swept=tuple(swept), ours=own)
    kind.zerosweep_method = method  # type: ignore[attr-defined]  # travels with the class, also with a notebook's


def configurations() -> list[type[MethodConfig]]:
    """Return the configuration classes of all methods that are shipped or registered."""
    return [*METHODS, *(type(space.config()) for space in search_spaces.REGISTERED.values())]


def method_of_config(kind: type[MethodConfig]) -> Method:
    """Return the method that trains a kind of configuration. Raises `UserError` where there is none."""
    found = METHODS.get(kind) or getattr(kind, "zerosweep_method", None)
    if found is None:
        raise UserError(
            f"must be a space whose method is known; {kind.__name__} is not: its module must call study.register",
            option="space",
        )
    return found


def static_fields(config: MethodConfig) -> tuple[tuple[str, Value], ...]:
    """Return the fields of a configuration that all lanes of a pack must share, with their values."""
    return tuple((f.name, getattr(config, f.name)) for f in fields(config) if f.name not in config.LANE_KNOBS)


def method_of(space: Space) -> Method:
    """Return the method that trains the configurations of a space. Raises `UserError` where there is none."""
    return method_of_config(type(space.config()))
