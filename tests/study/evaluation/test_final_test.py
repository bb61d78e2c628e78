"""The final evaluation under the three rules of who competes for a test image, by hand on six images."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from study.evaluation import final_test as evaluation
from study.evaluation.final_test import Evaluation, Scored, average_rotations, select
from study.evaluation.leaderboard import Entry, Score
from study.protocol.task import AmongTarget, WithinHalves
from study.protocol.trial_data import TrialData
from study.training.pack import Division

SEEN_C = torch.tensor([c not in (2, 7, 11) for c in range(12)])
LABELS_T = torch.tensor([0, 0, 0, 1, 2, 7])
PREDICTED_1T = torch.tensor([[0, 0, 2, 2, 2, 0]])  # joint: 2 of 3, 0 of 1 | 1 of 1, 0 of 1
DIVISION = Division(
    lead_KI=torch.tensor([[3.0, 2.0, -1.0, -2.0, -3.0, 1.0]]),
    seen_KI=torch.tensor([[0, 0, 0, 3, 4, 0]]),
    unseen_KI=torch.tensor([[2, 2, 2, 2, 2, 7]]),
)


def evaluate(
    features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch, **rules: object
) -> tuple[Evaluation, Scored]:
    monkeypatch.setattr(evaluation, "load_target_labels", lambda *_: LABELS_T)
    data = replace(data, target_features_TD=data.target_features_TD[:6], **rules)
    known = SimpleNamespace(**vars(features), clip="tiny", partial="")
    done = Evaluation(Path(), known, data, "pseudo-unseen")  # type: ignore[arg-type]
    return done, done.score(
        Entry(method="Method", config_id="m-0", score=Score(criterion="h", value=0.5)), PREDICTED_1T, DIVISION
    )


def test_all_classes_compete(features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    _, scored = evaluate(features, data, monkeypatch)
    row = scored.row
    assert (row.test_known_micro, row.test_unknown_micro) == (0.5, 0.5)
    assert row.test_seen_mean == pytest.approx((2 / 3 + 0) / 2) and row.test_unseen_mean == 0.5
    assert row.test_h_mean == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))


def test_images_on_the_other_side_are_counted_without_labels(
    features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = evaluate(features, data, monkeypatch)
    done.baseline_everywhere_1T = torch.tensor([[0, 1, 0, 3, 7, 0]])  # seen, seen, seen, seen, unseen, seen
    entry = Entry(method="Method", config_id="m-0")
    for predictions_ST, share in ((PREDICTED_1T, 2 / 6), (torch.cat([PREDICTED_1T, done.baseline_1T]), 1 / 6)):
        assert done.score(entry, predictions_ST, DIVISION).row.test_other_side == pytest.approx(share)
    assert done.score(entry, done.baseline_1T, DIVISION).row.test_other_side == 0


def test_base_to_novel_is_accuracy_over_images_within_each_half(
    features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, scored = evaluate(features, data, monkeypatch, competing=WithinHalves())
    assert scored.predictions_ST.tolist() == [[0, 0, 0, 3, 2, 7]]  # the best of the image's own half
    row = scored.row
    assert (row.test_known_micro, row.test_unknown_micro) == (0.75, 1.0)
    assert (row.test_seen_mean, row.test_unseen_mean) == (0.75, 1.0)
    assert row.test_h_mean == pytest.approx(2 * 0.75 / 1.75)
    for zero_shot in done.zero_shot("h"):
        assert torch.equal(SEEN_C[zero_shot.predictions_ST[0]], SEEN_C[LABELS_T])
    ensemble = done.zero_shot("h")[1].row
    assert (ensemble.h_gain, ensemble.h_gain_lo, ensemble.h_gain_hi) == (0, 0, 0)


def test_cross_dataset_is_accuracy_over_images_among_the_targets_classes(
    features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = evaluate(features, data, monkeypatch, competing=AmongTarget(~SEEN_C))
    for zero_shot in done.zero_shot("h"):
        assert not SEEN_C[zero_shot.predictions_ST].any()
    monkeypatch.setattr(evaluation, "load_target_labels", lambda *_: torch.tensor([2, 2, 2, 7, 7, 11]))
    done = Evaluation(Path(), done.features, done.data, "pseudo-unseen")
    row = done.score(
        Entry(method="Method", config_id="m-0", score=Score(criterion="h", value=0.5)),
        torch.tensor([[2, 2, 7, 7, 2, 2]]),
        DIVISION,
    ).row
    assert (row.test_known_micro, row.test_seen_mean) == (None, None)
    assert row.test_unknown_micro == row.test_h_mean == pytest.approx(0.5)  # 3 of 6 images; per class it were 0.39


def test_rows_are_compared_with_the_methods_own(
    features: SimpleNamespace, data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, ours = evaluate(features, data, monkeypatch)
    better = torch.tensor([[0, 0, 0, 1, 2, 0]])
    other = done.score(
        Entry(method="Baseline", config_id="b-0", score=Score(criterion="h", value=0.4)), better, DIVISION
    )
    rows = {s.row.method: s.row for s in select([ours, other], done, "Method")}
    assert rows["Method"].h_behind is None
    gain = rows["Method"].test_h_mean - rows["Baseline"].test_h_mean  # type: ignore[operator]
    assert gain < 0 and rows["Baseline"].h_behind == pytest.approx(gain, abs=1e-6)
    assert rows["Baseline"].h_behind_lo <= gain <= rows["Baseline"].h_behind_hi  # type: ignore[operator]
    mean = {r.method: r for r in average_rotations([(done, select([ours, other], done, "Method"))] * 2, "Method")}
    assert mean["Baseline"].h_behind == pytest.approx(gain, abs=1e-6) and mean["Method"].h_behind is None
