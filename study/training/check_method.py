"""Check a method against the laws that packs rest on; what is broken is said in words. No Ray in here.

The data are random features of the embedded checkpoint's dimension: 12 classes, 96 labelled images, 40 unlabelled ones.

Suffixes: K lanes, I source images, T target images, C classes, D CLIP dimension.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import find_checkpoint
from models.stacked import MethodConfig
from search_spaces import Space, Value
from study.protocol.trial_data import TrialData, seen_classes, trainable_images
from study.training.pack import Pack

CLASSES, IMAGES, TARGETS, FOLDS, EPOCHS = 12, 96, 40, 2, 2
TOLERANCE = 1e-2
"""Largest deviation of a lane's logits, 50 times cosines, in a pack from those alone: products of other shapes round
otherwise (seen: 0.0024, through a text encoder)."""


def check_method(space: Space) -> list[str]:
    """Return what is wrong with the method of a space, a line each; nothing where it may join a study."""
    return list(_found(space, random_data(space)))


def random_data(space: Space) -> TrialData:
    """Return trial data of random unit features; nine of the twelve classes are seen."""
    stream = torch.Generator().manual_seed(0)
    checkpoint = find_checkpoint(ASSETS / "clip")  # for methods that learn prompts through a text encoder

    def unit(rows: int) -> Tensor:
        return normalize(torch.randn(rows, checkpoint.dimension, generator=stream), dim=-1)

    seen, texts_CD = CLASSES * 3 // 4, unit(CLASSES)
    labels_I = torch.arange(IMAGES) % seen
    return TrialData(
        source_features_ID=normalize(texts_CD[labels_I] + unit(IMAGES), dim=-1),
        source_labels_I=labels_I,
        held_out_I=torch.arange(IMAGES) % 5 == 0,
        target_features_TD=unit(TARGETS),
        seen_C=torch.arange(CLASSES) < seen,
        fold_C=torch.where(torch.arange(CLASSES) < seen, torch.arange(CLASSES) % FOLDS, -1),
        name_features_CD=texts_CD,
        node_features_ND=torch.cat([texts_CD, unit(1)]),
        class_node_C=torch.arange(CLASSES),
        edges_E2=torch.tensor([[c, CLASSES] for c in range(CLASSES)]),
        logit_scale=50.0,
        fingerprint=f"check of {space.name}",
        class_names=tuple(f"class {c}" for c in range(CLASSES)),
        clip_path=str(checkpoint.folder),
    )


def _found(space: Space, data: TrialData) -> Iterator[str]:
    config = space.config(**space.defaults())
    others = [_ends(space, high=False), _ends(space, high=True)]
    configs = [replace(config, **{**of_lane, "batch_size": 16}) for of_lane in ({}, *others)]  # type: ignore[type-var]
    if odd := sorted(space_lanes(space) ^ (config.LANE_KNOBS & {k.name for k in space.knobs})):
        yield f"{', '.join(odd)}: scope of the knob and LANE_KNOBS must agree on what lanes may differ in"
    try:
        pack = _pack(configs, [0, 1, 2], data)
    except Exception as error:
        yield f"the module cannot be built: {_where(error)}"
        return
    lanes = pack.module.lanes()
    short = [name for name, tensor in lanes.items() if tensor.ndim == 0 or len(tensor) != len(configs)]
    if short:
        yield f"{', '.join(short)}: the first axis must be the lanes, {len(configs)} here"
        return
    try:
        logits = _logits(pack, data)
    except Exception as error:
        yield f"logits fails: {_where(error)}"
        return
    if logits.shape != (len(configs), TARGETS, CLASSES):
        yield f"logits must be lanes x images x classes, {len(configs)} x {TARGETS} x {CLASSES}; got {_shape(logits)}"
        return
    if pack.module.embed(data.target_features_TD) is not None and not pack.takes_head:
        yield "embed is for heads, and none is tried: the configuration needs a field `head`, and logits obeys it"
    yield from _losses(pack, data)
    try:
        yield from _laws(configs, data)
    except Exception as error:
        yield f"training fails: {_where(error)}"


def space_lanes(space: Space) -> set[str]:
    """Return the names of a space's lane knobs."""
    return {knob.name for knob in space.knobs if knob.scope == "lane"}


def _losses(pack: Pack, data: TrialData) -> Iterator[str]:
    rows_KB = torch.stack([indices[:8] for indices in pack.source_indices])
    images_KBD, labels_KB = data.source_features_ID[rows_KB], data.source_labels_I[rows_KB]
    target = (data.target_features_TD[rows_KB % TARGETS],) if pack.method.uses_target else ()
    try:
        losses = pack.module.losses(images_KBD, labels_KB, *target)
        total_K = pack.module.total(losses)
    except Exception as error:
        yield f"losses or total fails: {_where(error)}"
        return
    for name, loss_K in {**losses, "total": total_K}.items():
        if loss_K.shape != (len(rows_KB),):
            yield f"loss {name} must be one number for each lane, {len(rows_KB)}; got {_shape(loss_K)}"
        elif not loss_K.isfinite().all():
            yield f"loss {name} must be finite for an untrained module; got {loss_K.tolist()}"
    params = dict(pack.module.named_parameters())
    if total_K.shape != (len(rows_KB),) or not params:  # training-free methods have none
        return
    grads = torch.autograd.grad(total_K[0], list(params.values()), allow_unused=True)
    idle = [name for name, grad in zip(params, grads, strict=True) if grad is None]
    mixed = [name for name, grad in zip(params, grads, strict=True) if grad is not None and grad[1:].any()]
    if idle:
        yield f"{', '.join(idle)}: the loss does not depend on it; register what is not trained as a buffer"
    if mixed:
        yield f"{', '.join(mixed)}: the loss of lane 0 depends on other lanes' values; sum nothing over lanes"


def _laws(configs: Sequence[MethodConfig], data: TrialData) -> Iterator[str]:
    seeds = [10, 11, 12]
    together = _trained(_pack(configs, seeds, data), data)
    again = _trained(_pack(configs, seeds, data), data)
    if not torch.equal(together, again):
        yield (
            "the same seeds must give the same module: draw weights from generators of the lanes' seeds, noise from "
            "models.noise"
        )
    for k, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
        (alone,) = _trained(_pack([config], [seed], data, first=k), data)
        if not torch.allclose(alone, together[k], atol=TOLERANCE, rtol=0):
            off = (alone - together[k]).abs().max()
            yield f"lane {k} in a pack must be the lane alone: its logits differ by {off:.3g}; sum nothing over lanes"
    kept = _pack(configs, seeds, data)
    kept.train_epoch()
    state = kept.state()
    kept.keep([2, 0])
    kept.train_epoch()
    if not torch.allclose(_logits(kept, data), together[[2, 0]], atol=TOLERANCE, rtol=0):
        yield "lanes that stay must not change when others leave: what differs between lanes needs register_lane"
    resumed = _pack(configs, seeds, data)
    resumed.restore(state)
    resumed.train_epoch()
    if not torch.equal(_logits(resumed, data), together):
        yield "a pack must go on from its checkpoint as if nothing had happened: keep no state outside of the lanes"
    joined, late = _pack(configs[:2], seeds[:2], data), _pack(configs[2:], seeds[2:], data, first=2)
    joined.join(late)
    if not torch.allclose(_trained(joined, data), together, atol=TOLERANCE, rtol=0):
        yield "lanes that join a pack must train as they would have alone"


def _pack(configs: Sequence[Any], seeds: Sequence[int], data: TrialData, *, first: int = 0) -> Pack:
    """Return a pack; lane k plays fold k, counted from `first`."""
    folds = [(first + k) % FOLDS for k in range(len(configs))]
    return Pack(
        configs,
        seeds=seeds,
        seen_KC=torch.stack([seen_classes(data, fold) for fold in folds]),
        trainable_KI=torch.stack([trainable_images(data, fold) for fold in folds]),
        data=data,
        epochs=EPOCHS,
    )


def _trained(pack: Pack, data: TrialData) -> Tensor:
    for _ in range(pack.epochs):
        pack.train_epoch()
    return _logits(pack, data)


def _logits(pack: Pack, data: TrialData) -> Tensor:
    """Return logits, of swept knobs at what is best for each lane on its own labelled images."""
    allowed_KI = pack.seen_KC[:, data.source_labels_I]
    pack.calibrate(data.source_features_ID, data.source_labels_I, allowed_KI, [[k] for k in range(len(pack.epoch))])
    return torch.cat(list(pack.predict(data.target_features_TD)), dim=1)


def _ends(space: Space, *, high: bool) -> Mapping[str, Value]:
    """Return one end of the ranges of all lane knobs."""
    ends = {knob.name: (knob.high if high else knob.low) for knob in space.knobs if knob.scope == "lane"}
    return {name: end for name, end in ends.items() if end is not None}


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _where(error: Exception) -> str:
    """Return an error with the line of the user's file that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
