"""Which classes compete for an image: how predictions are made among them, and how accuracy counts them.

Three kinds of task differ in nothing else:

- generalized zero-shot learning: all classes compete (`AllClasses`);
- base-to-novel (Zhou et al., 2022): an image is classified among the seen or among the unseen classes, whichever its
  own class belongs to (`WithinHalves`);
- cross-dataset: target images are classified among the target's classes (`AmongTarget`).

Inference-time knobs are swept in the same way in all three.

Suffixes: K lanes, S seeds, I images, T target images, C classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

Classify = Callable[[Tensor | None], Tensor]
"""Mask of classes (K, C) or (1, C), None for all -> predicted class (K, I) of every image among the mask's classes."""


class CompetingClasses(ABC):
    """The classes that compete for an image."""

    thresholded: ClassVar[bool]
    """Whether a threshold between seen and unseen classes decides: where both kinds compete for an image."""

    @abstractmethod
    def predict_labelled(self, classify: Classify, labels_I: Tensor, seen_KC: Tensor) -> Tensor:
        """Return the classes (K, I) predicted for labelled source images; `seen_KC`: each lane's seen classes."""

    @abstractmethod
    def predict_target(self, classify: Classify) -> Tensor:
        """Return the classes (K, T) predicted for target images whose labels are not known."""

    def predict_test(self, classify: Classify, labels_T: Tensor, seen_KC: Tensor) -> Tensor:
        """Return the classes (K, T) predicted for test images, with their labels where the task's rule needs them."""
        return self.predict_target(classify)

    def predict_divided(
        self, predictions_ST: Tensor, best_seen_ST: Tensor, best_unseen_ST: Tensor, own_seen_T: Tensor
    ) -> Tensor:
        """Return the test predictions (S, T) of a refit, which does not know the labels.

        `predictions_ST`: those of `predict_target`. `best_seen_ST`, `best_unseen_ST`: the best class of each kind.
        `own_seen_T`: bool, whether the image's own class is a seen one.
        """
        return predictions_ST

    def counted(self, predictions_ST: Tensor, labels_T: Tensor, seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predictions (S, T), labels (T,) and the mask of seen classes as mean class accuracy counts them."""
        return predictions_ST, labels_T, seen_C

    def to(self, device: torch.device | str) -> "CompetingClasses":
        """Return the same rule with its tensors on a device."""
        return self


@dataclass(frozen=True)
class AllClasses(CompetingClasses):
    """All classes compete: generalized zero-shot learning."""

    thresholded: ClassVar[bool] = True

    def predict_labelled(self, classify: Classify, labels_I: Tensor, seen_KC: Tensor) -> Tensor:
        return classify(None)

    def predict_target(self, classify: Classify) -> Tensor:
        return classify(None)


class _Apart(CompetingClasses):
    """Seen and unseen classes never compete for an image. Accuracy is over images, as published."""

    thresholded: ClassVar[bool] = False

    def predict_labelled(self, classify: Classify, labels_I: Tensor, seen_KC: Tensor) -> Tensor:
        return within_halves(classify, labels_I, seen_KC)

    def counted(self, predictions_ST: Tensor, labels_T: Tensor, seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count each half as one class: the mean over its classes is then the mean over its images."""
        half_T = (~seen_C[labels_T]).long()
        return torch.where(predictions_ST == labels_T, half_T, -1), half_T, torch.tensor([True, False])


@dataclass(frozen=True)
class WithinHalves(_Apart):
    """The classes of the image's own half compete: base-to-novel."""

    def predict_target(self, classify: Classify) -> Tensor:
        """Classify among all classes: the half of an image is known with its label only, see `predict_divided`."""
        return classify(None)

    def predict_test(self, classify: Classify, labels_T: Tensor, seen_KC: Tensor) -> Tensor:
        return within_halves(classify, labels_T, seen_KC)

    def predict_divided(
        self, predictions_ST: Tensor, best_seen_ST: Tensor, best_unseen_ST: Tensor, own_seen_T: Tensor
    ) -> Tensor:
        return torch.where(own_seen_T, best_seen_ST, best_unseen_ST)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class AmongTarget(_Apart):
    """The target's classes compete for target images: cross-dataset."""

    target_C: Tensor
    """Bool: the target's classes."""

    def predict_target(self, classify: Classify) -> Tensor:
        return classify(self.target_C[None])

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.target_C.to(device))


def competing_classes(*, halves: bool, target_C: Tensor | None) -> CompetingClasses:
    """Return the rule of a benchmark: its `halves` flag, and the mask of its target's classes if it has one."""
    if halves:
        return WithinHalves()
    return AllClasses() if target_C is None else AmongTarget(target_C)


def within_halves(classify: Classify, labels_I: Tensor, seen_KC: Tensor) -> Tensor:
    """Return the classes (K, I) of images, each among the seen or the unseen ones, whichever its own is of."""
    return torch.where(seen_KC[:, labels_I], classify(seen_KC), classify(~seen_KC))


def best_class(logits_KIC: Tensor, among_KC: Tensor | None = None) -> Tensor:
    """Return the class (K, I) of the largest logit, among the classes of a mask (K, C) or (1, C) if one is given."""
    if among_KC is not None:
        logits_KIC = logits_KIC.masked_fill(~among_KC[:, None], -math.inf)
    return logits_KIC.argmax(-1)
