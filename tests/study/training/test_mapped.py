"""Features that a node maps from the cache, in float16, train what float32 ones train."""

import pickle
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from data_prep.feature_store import mapped
from data_prep.manifest import SCHEMA_VERSION, write_manifest
from data_prep.parquet import feature_column, write_table
from data_prep.storage import locate
from models.baselines import CalibratedStackingConfig, CLIPAdapterConfig, TipAdapterConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from models.stacked import unit_features
from study.evaluation import final_test as evaluation
from study.evaluation.final_test import Evaluation
from study.protocol.trial_data import InCache, TrialData, in_cache, trial_data
from study.training.loop import TrainingOptions, train_pack
from study.training.refit import refit_pack

CONFIGS = [
    SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8, batch_size=16, lr=3e-3),
    PVAConfig(latent_dim=12, hidden=8, batch_size=32, tau=0.1),
    TipAdapterConfig(variant="F", shots=4, batch_size=32),
    CLIPAdapterConfig(width=8, batch_size=32),
    CalibratedStackingConfig(),
]


@pytest.fixture
def seen_only(features: SimpleNamespace) -> SimpleNamespace:
    """A source without images of unseen classes, as published benchmarks have it."""
    allowed_I = ~features.classes.unseen_RC[0][features.source_labels_I]
    features.source_labels_I = features.source_labels_I[allowed_I]
    features.source.split_I = features.source.split_I[allowed_I]
    features.source.features_ID = features.source.features_ID[allowed_I]
    return features


@pytest.fixture
def cache(seen_only: SimpleNamespace, tmp_path: Path) -> Path:
    """Its features on disk; in memory they become what `load` would read from there."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("source", "target"):
        domain = getattr(seen_only, name)
        stored_ID = domain.features_ID.half()
        write_table(pa.table({"feature": feature_column(stored_ID.numpy())}), folder / f"{name}.parquet")
        domain.features_ID = unit_features(stored_ID)  # as those of a small table
    write_manifest(locate(folder), {"schema_version": SCHEMA_VERSION})
    return folder


def large(features: SimpleNamespace, cache: Path) -> SimpleNamespace:
    """The same features as `load` gives those of large tables."""
    tables = {
        name: SimpleNamespace(**vars(getattr(features, name)) | {"features_ID": torch.from_numpy(mapped(cache, name))})
        for name in ("source", "target")
    }
    return SimpleNamespace(**vars(features) | tables)


def results(config: Any, data: TrialData) -> tuple[dict[str, Any], torch.Tensor]:
    (found,) = train_pack([config], seeds=[0], data=data, options=TrainingOptions(epochs=2))
    refitted = refit_pack([config], seeds=[0], data=data, epochs=2)
    return {k: v for k, v in asdict(found).items() if k != "train_seconds"}, refitted[0].predictions_ST


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_two_nodes_map_their_own_files_and_train_the_same(
    seen_only: SimpleNamespace, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, as_map = trial_data(seen_only, rotation=0, folds=3, seed=0), large(seen_only, cache)
    data_as_map = trial_data(as_map, rotation=0, folds=3, seed=0)
    sent = pickle.dumps(data_as_map.to_arrays() | in_cache(data_as_map, as_map, str(cache)))
    for node in ("a", "b"):
        monkeypatch.setenv("ZEROSWEEP_SCRATCH", str(tmp_path / node))
        there = TrialData.from_arrays(pickle.loads(sent))
        assert there.source_features_ID.dtype == there.target_features_TD.dtype == torch.float16
        assert len(list((tmp_path / node).rglob("*.npy"))) == 2
        for config in CONFIGS if node == "a" else CONFIGS[:1]:
            found, expected = results(config, there), results(config, data)
            assert found[0] == expected[0], config
            assert torch.equal(found[1], expected[1])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_only_large_tables_without_unseen_classes_are_mapped(seen_only: SimpleNamespace, cache: Path) -> None:
    as_map = large(seen_only, cache)
    data = trial_data(as_map, rotation=0, folds=3, seed=0)
    target = InCache(cache=str(cache), name="target")
    source = InCache(cache=str(cache), name="source")
    assert in_cache(data, as_map, str(cache)) == {"source_features_ID": source, "target_features_TD": target}
    as_map.classes.unseen_RC[0, 0] = True  # its images are in the source: a trial must not map them
    kept = trial_data(as_map, rotation=0, folds=3, seed=0)
    assert in_cache(kept, as_map, str(cache)) == {"target_features_TD": target}
    assert len(kept.source_features_ID) == len(data.source_features_ID) - 10
    assert in_cache(trial_data(seen_only, rotation=0, folds=3, seed=0), seen_only, str(cache)) == {}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_map_is_evaluated_like_features_in_memory(
    seen_only: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "load_target_labels", lambda *_: seen_only.target_labels)
    rows = []
    for features in (seen_only, large(seen_only, cache)):
        features.clip, features.partial = "toy", ""
        data = trial_data(features, rotation=0, folds=3, seed=0)
        done = Evaluation(cache, features, data, "pseudo-unseen")  # type: ignore[arg-type]
        rows.append([scored.row for scored in done.zero_shot("h*mi")])
    assert rows[0] == rows[1] and len(rows[0]) == 3


@pytest.mark.parametrize("dim", [192, 512, 640, 768, 1000])
def test_casting_in_batches_is_casting_at_once(dim: int) -> None:
    stored = torch.nn.functional.normalize(torch.randn(3000, dim, generator=torch.Generator().manual_seed(0))).half()
    index = torch.randint(3000, (7, 33), generator=torch.Generator().manual_seed(1))
    assert torch.equal(unit_features(stored[index]), unit_features(stored)[index])
    assert torch.equal(torch.cat([unit_features(part) for part in stored.split(17)]), unit_features(stored))
    assert unit_features(stored).dtype == torch.float32
