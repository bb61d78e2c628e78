"""Scores of configurations, by hand."""

import torch

from study.protocol.scores import class_accuracy

# --- what a trial may see -------------------------------------------------------------------------------------------


SEEN = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def test_class_accuracy_is_nan_without_images() -> None:
    accuracy = class_accuracy(LABELS[None], LABELS, 4)
    assert accuracy[0, :3].tolist() == [1, 1, 1] and accuracy[0, 3].isnan()
