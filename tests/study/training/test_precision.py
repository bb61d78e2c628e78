"""bfloat16 is chosen where it is faster at a pack's size and ranks alike, and its refusal says why."""

from dataclasses import replace

import pytest

from models.sre_clip import SREConfig
from study.protocol.trial_data import TrialData
from study.training import precision
from study.training.precision import bfloat16_keeps_ranking, bfloat16_speed_up, why_not_bfloat16

SMALL = SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8, batch_size=32, lr=1e-3)
FAR_APART = [replace(SMALL, lr=1e-5), replace(SMALL, lr=1e-2)]


def test_configurations_far_apart_rank_alike(data: TrialData) -> None:
    assert bfloat16_keeps_ranking(FAR_APART, seeds=[0, 0], data=data)


def test_both_precisions_are_timed_at_the_size_of_a_pack(data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, str]] = []
    pack_on_folds = precision.pack_on_folds

    def noted(configs: list[SREConfig], **options: object) -> object:
        built.append((len(configs), str(options["precision"])))
        return pack_on_folds(configs, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(precision, "pack_on_folds", noted)
    assert 0.01 < bfloat16_speed_up(SMALL, data=data, pack=3) < 100
    assert built == [(3, "float32"), (3, "bfloat16")]


def test_the_reason_against_it_is_said(data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"seeds": [0, 0], "data": data, "criterion": "h", "pack": 1}
    monkeypatch.setattr(precision, "bfloat16_speed_up", lambda *_, **__: 1.04)
    assert why_not_bfloat16(FAR_APART, **options) == (  # type: ignore[arg-type]
        "a step in bfloat16 is 1.04 times as fast, and should be 1.3 times"
    )
    monkeypatch.setattr(precision, "bfloat16_speed_up", lambda *_, **__: 1.5)
    assert why_not_bfloat16(FAR_APART, **options) == ""  # type: ignore[arg-type]
    monkeypatch.setattr(precision, "bfloat16_keeps_ranking", lambda *_, **__: False)
    assert why_not_bfloat16(FAR_APART, **options) == (  # type: ignore[arg-type]
        "2 configurations rank otherwise in bfloat16 after an epoch"
    )
