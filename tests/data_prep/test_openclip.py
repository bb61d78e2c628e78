"""Checkpoints in OpenCLIP's own format, tiny and random: features are the library's own. Needs open_clip_torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_families import TEXTS, encoded, unigram_tokenizer
from torch.nn.functional import normalize

from data_prep import FeatureOptions, prepare
from data_prep.checkpoint import Checkpoint, find_checkpoint, load_model, logit_scale
from data_prep.clip_features import Preprocess
from data_prep.errors import UserError
from data_prep.feature_store import load
from models.prompts import FrozenTextEncoder

TOWERS = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
MEAN_STD = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def write_config(folder: Path, **text: Any) -> None:
    model = TOWERS | {"text_cfg": TOWERS["text_cfg"] | text}  # type: ignore[operator]
    settings = {**MEAN_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": settings}))


def test_the_format_is_known_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 12}}')
    with pytest.raises(UserError, match="open_clip_config.json lacks 'vision_cfg' of its model"):
        find_checkpoint(tmp_path)
    write_config(tmp_path)
    with pytest.raises(UserError, match="must hold weights; .* has no open_clip_model.safetensors"):
        find_checkpoint(tmp_path)
    save_file({"visual.proj": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="must hold an image tower, .* has no logit_scale"):
        find_checkpoint(tmp_path)
    save_file({"visual.proj": torch.zeros(1), "logit_scale": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    monkeypatch.delitem(__import__("sys").modules, "data_prep.openclip", raising=False)
    with pytest.raises(UserError, match=r'or come with open_clip_torch .*\(pip install -e "\.\[openclip\]"\)'):
        find_checkpoint(tmp_path)


@pytest.fixture(scope="module", params=["own tokenizer", "tokenizer of transformers", "weights of torch"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("openclip")
    if request.param == "tokenizer of transformers":
        unigram_tokenizer(folder, start="<s>", length=18)
        write_config(folder, vocab_size=20, hf_tokenizer_name="other/tokenizer", tokenizer_kwargs={"clean": "lower"})
    else:
        write_config(folder)
    torch.manual_seed(0)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    weights = open_clip.CLIP(**config).state_dict()
    if request.param == "weights of torch":
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    else:
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return find_checkpoint(folder)


@torch.no_grad()
def test_texts_and_images_are_encoded_as_the_library_encodes_them(folder: Path, checkpoint: Checkpoint) -> None:
    import open_clip

    assert (checkpoint.model_type, checkpoint.dimension) == ("open_clip", 12) and checkpoint.weight_bytes > 10_000
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    expected = normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(encoded(checkpoint, {"kind": "text", "texts": TEXTS}, 3), expected, atol=2e-3, rtol=0)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(p) for p in pixels]
    expected = normalize(model.encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
    unit = {"kind": "image", "path": [None, None], "data": images}
    torch.testing.assert_close(encoded(checkpoint, unit, 2), expected, atol=2e-3, rtol=0)


def test_texts_that_are_cut_are_counted(checkpoint: Checkpoint) -> None:
    long = "a photo of a bear " * 5
    unit = {"shard": "", "kind": "text", "rows": 2, "texts": ["a photo of a bear.", long]}
    assert Preprocess(checkpoint)(unit)["cut"] == 1


def test_a_cache_is_built_and_its_scale_is_the_model_s(
    checkpoint: Checkpoint, small_folder: Path, tmp_path: Path, without_ray: None
) -> None:
    options = FeatureOptions(benchmark=f"folder:{small_folder}", clip=str(checkpoint.folder), cache_dir=tmp_path)
    features = load(prepare(options))
    assert features.source.features_ID.shape == (16, 12)
    assert features.logit_scale == pytest.approx(logit_scale(load_model(checkpoint))) == pytest.approx(1 / 0.07)


def test_what_goes_into_clip_s_text_tower_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="need the text tower of CLIP, got a OpenCLIP model"):
        FrozenTextEncoder.load(checkpoint.folder)


def test_missing_weights_are_one_line(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if "open_clip_" not in file.name or file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"visual.proj": torch.zeros(1), "logit_scale": torch.zeros(())}, tmp_path / "open_clip_model.safetensors")
    checkpoint = find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded: Error.* in loading state_dict"):
        load_model(checkpoint)
