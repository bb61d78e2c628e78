"""Which classes compete for an image."""

import torch

from study.protocol.task import competing_classes, within_halves

# --- what a trial may see -------------------------------------------------------------------------------------------


SEEN = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def test_an_image_is_classified_within_its_own_half() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])  # two images, four classes
    seen_KC = torch.tensor([[True, True, False, False], [False, True, True, False]])

    def classify(among_KC: torch.Tensor) -> torch.Tensor:
        return torch.stack([logits.masked_fill(~among_C, -torch.inf).argmax(-1) for among_C in among_KC])

    assert within_halves(classify, torch.tensor([1, 3]), seen_KC).tolist() == [[0, 3], [2, 0]]


def classify(among_KC: torch.Tensor | None) -> torch.Tensor:
    """Return the first class of the mask for each of three images, class 9 where all compete."""
    return torch.full((1, 3), 9) if among_KC is None else among_KC.long().argmax(-1)[:, None].expand(-1, 3)


SEEN_1C = torch.tensor([[False, True, True, False]])
LABELS_3 = torch.tensor([1, 2, 3])


def test_all_classes_compete() -> None:
    rule = competing_classes(halves=False, target_C=None)
    assert rule.thresholded
    for predicted in (
        rule.predict_labelled(classify, LABELS_3, SEEN_1C),
        rule.predict_target(classify),
        rule.predict_test(classify, LABELS_3, SEEN_1C),
    ):
        assert predicted.tolist() == [[9, 9, 9]]
    counted = rule.counted(torch.tensor([[1, 2, 0]]), LABELS_3, SEEN_1C[0])
    assert [t.tolist() for t in counted] == [[[1, 2, 0]], [1, 2, 3], SEEN_1C[0].tolist()]


def test_base_to_novel_keeps_to_the_images_own_half() -> None:
    rule = competing_classes(halves=True, target_C=None)
    assert not rule.thresholded
    assert rule.predict_labelled(classify, LABELS_3, SEEN_1C).tolist() == [[1, 1, 0]]
    assert rule.predict_target(classify).tolist() == [[9, 9, 9]]  # an image without a label belongs to no half
    assert rule.predict_test(classify, LABELS_3, SEEN_1C).tolist() == [[1, 1, 0]]
    best_seen, best_unseen = torch.tensor([[1, 2, 1]]), torch.tensor([[0, 0, 3]])
    own_seen = torch.tensor([True, True, False])
    assert rule.predict_divided(torch.full((1, 3), 9), best_seen, best_unseen, own_seen).tolist() == [[1, 2, 3]]
    # accuracies are over images: each half counts as one class, a wrong prediction as none
    predictions, labels, seen_C = rule.counted(torch.tensor([[1, 1, 3]]), LABELS_3, SEEN_1C[0])
    assert (predictions.tolist(), labels.tolist(), seen_C.tolist()) == ([[0, -1, 1]], [0, 0, 1], [True, False])


def test_across_data_sets_the_targets_classes_compete() -> None:
    rule = competing_classes(halves=False, target_C=torch.tensor([False, False, False, True])).to("cpu")
    assert not rule.thresholded
    assert rule.predict_target(classify).tolist() == [[3, 3, 3]]
    assert rule.predict_test(classify, LABELS_3, SEEN_1C).tolist() == [[3, 3, 3]]
    assert rule.predict_labelled(classify, LABELS_3, SEEN_1C).tolist() == [[1, 1, 0]]  # source images, in their halves
