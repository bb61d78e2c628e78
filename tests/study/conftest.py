"""A small, learnable task: twelve classes whose images lie around shifted versions of their text features, which are
the embedded checkpoint's.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from models.prompts import ClassTexts, FrozenTextEncoder, PromptLearner
from study.protocol.trial_data import TrialData, trial_data

CLIP = Path(__file__).parents[2] / "data_prep/assets/icons2emoji/clip"
NAMES = ("cat", "dog", "fountain pen", "pencil", "alarm clock", "watch", "ox", "cow", "car", "bus", "apple", "pear")
CLASSES, DIM, PER_CLASS = 12, 192, 10


@pytest.fixture(scope="session")
def name_features() -> torch.Tensor:
    """Text features (C, D) of the class names."""
    encoder = FrozenTextEncoder.load(CLIP)
    texts = ClassTexts(features_CD=torch.zeros(CLASSES, DIM), logit_scale=20.0, names=NAMES, encoder=encoder)
    return PromptLearner(texts, generators=[torch.Generator()])().detach()[0]


@pytest.fixture
def features(name_features: torch.Tensor) -> SimpleNamespace:
    """What `feature_store.load` returns, as far as the protocol reads it; `target_labels` beside it."""
    g = torch.Generator().manual_seed(0)
    names = name_features

    def domain(shift: float) -> torch.Tensor:
        noise = 0.115 * torch.randn(CLASSES, PER_CLASS, DIM, generator=g)
        offset = shift * torch.randn(DIM, generator=g) / 2
        return F.normalize(names[:, None] + noise + offset, dim=-1).flatten(0, 1)

    similarity = torch.full((CLASSES, CLASSES), 0.1)
    for c in range(0, CLASSES, 2):  # classes 0-1, 2-3, ... are close relatives
        similarity[c, c + 1] = similarity[c + 1, c] = 0.5
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    unseen = torch.zeros(2, CLASSES, dtype=torch.bool)
    unseen[0, [2, 7, 11]] = unseen[1, [0, 5, 8]] = True
    return SimpleNamespace(
        benchmark="toy",
        fingerprint="f00d",
        logit_scale=20.0,
        classes=SimpleNamespace(names=NAMES, unseen_RC=unseen, target_C=None),
        halves=False,
        templates=("a photo of a {}",),
        source=SimpleNamespace(features_ID=domain(0.0), split_I=torch.zeros(len(labels), dtype=torch.int8)),
        target=SimpleNamespace(features_ID=domain(0.25)),
        source_labels_I=labels,
        target_labels=labels,
        name_features_CPD=names[:, None].repeat(1, 2, 1),
        node_features_ND=torch.cat([names, F.normalize(names[::2] + names[1::2], dim=-1)]),
        graph=SimpleNamespace(
            class_node_C=torch.arange(CLASSES),
            edges_E2=torch.stack([torch.arange(CLASSES), CLASSES + torch.arange(CLASSES) // 2], dim=1),
            path_similarity_CC=similarity,
        ),
    )


@pytest.fixture
def data(features: SimpleNamespace) -> TrialData:
    return trial_data(features, rotation=0, folds=3, seed=0, clip_path=str(CLIP))


@pytest.fixture(scope="session")
def small_study(embedded_cache: Path, made_once: Callable[..., Path]) -> Path:
    """Folder of a finished study of the embedded benchmark."""
    from small import run

    def make(storage: Path) -> None:
        assert run(storage, embedded_cache, "--name", "small") == 0

    return made_once("résultats", make) / "small"  # Ray takes ASCII only in places


@pytest.fixture(scope="session")
def pva_study(embedded_cache: Path, made_once: Callable[..., Path]) -> Path:
    """Folder of a finished study with all that a report can show, run as in a notebook: swept knobs, a searched
    baseline and one without knobs; searched in a database."""
    from study import run_study

    small = {"configs": 4, "pack": 4, "epochs": 2, "folds": 2, "seeds": 2, "top": 2, "cpus_per_pack": 2}
    more = {
        "baselines": "calibrated-stacking,linear-probe",
        "price": 2.0,
        "log": "tensorboard",
        "refit_workers": 0,
        "quiet": True,
    }

    def make(storage: Path) -> None:
        where = {"storage": str(storage), "cache": str(embedded_cache.parent), "name": "pva"}
        where["ledger"] = f"sqlite:///{storage}/ledger.db"
        run_study(space="pva", benchmark="icons2emoji", **small, **where, **more)

    return made_once("report", make) / "pva"
