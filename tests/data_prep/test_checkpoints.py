"""Any CLIP in transformers format: sizes, widths, logit scale and end-of-text conventions of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data_prep import UserError
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import find_checkpoint, load_model
from data_prep.clip_features import Encode, Preprocess
from data_prep.feature_store import load, mapped, read_cache_table
from data_prep.parquet import matrix

KINDS = {
    "B/32-like": {"image": 64, "patch": 32, "dim": 64, "scale": 100.0, "eos": 4095},
    "B/16-like": {
        "image": 48,
        "patch": 16,
        "dim": 64,
        "scale": 100.0,
        "eos": 2,
    },  # OpenAI's: 2 stands for the highest id
    "L/14-like": {"image": 56, "patch": 14, "dim": 96, "scale": 100.0, "eos": 2},
    "LAION-like": {"image": 32, "patch": 8, "dim": 32, "scale": 57.3, "eos": 4095, "act": "gelu", "nested": True},
}


def write_checkpoint(folder: Path, image: int, patch: int, dim: int, scale: float, eos: int, **other: Any) -> Any:
    """A CLIP of random weights with the embedded one's tokenizer; returns the model."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": other.get("act", "quick_gelu")}
    config = CLIPConfig(
        text_config=tower
        | {"hidden_size": 48, "intermediate_size": 96, "vocab_size": 4096, "max_position_embeddings": 24}
        | {"eos_token_id": eos, "bos_token_id": 4094, "pad_token_id": 1},
        vision_config=tower | {"hidden_size": 40, "intermediate_size": 80, "image_size": image, "patch_size": patch},
        projection_dim=dim,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.logit_scale.data = torch.tensor(scale).log()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "clip" / name, folder)
    settings = json.loads((ASSETS / "clip" / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": image}, "crop_size": {"height": image, "width": image}}
    settings |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    if other.get("nested"):
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def test_curly_quotes_are_read_as_straight_ones(tmp_path: Path) -> None:
    """As the tokenizer of CLIP's authors does."""
    write_checkpoint(tmp_path / "clip", **KINDS["B/32-like"])  # type: ignore[arg-type]
    checkpoint = find_checkpoint(tmp_path / "clip")
    texts = ["a photo of a bull’s eye.", "a photo of a bull's eye.", "“bear”", '"bear"']
    features = Encode(checkpoint, threads=1)(
        Preprocess(checkpoint)({"shard": "", "rows": 4, "kind": "text", "texts": texts})
    )["features"]
    assert (features[0] == features[1]).all() and (features[2] == features[3]).all()
    assert (features[0] != features[2]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_patch_tokens_are_the_models_own(
    kind: str, prepare_small: Callable[..., Path], small_folder: Path, tmp_path: Path, without_ray: None
) -> None:
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    facts, clip = KINDS[kind], tmp_path / "models" / "clip"
    model = write_checkpoint(clip, **facts)  # type: ignore[arg-type]
    cache = prepare_small(tmp_path / "cache", clip=str(clip), tokens=True)
    features = load(cache)
    assert features.logit_scale == pytest.approx(facts["scale"], rel=1e-5)

    image = Image.open(small_folder / "source" / "bear" / "1.png").convert("RGB")
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-1] == facts["image"]
    text = CLIPTokenizer.from_pretrained(clip)(["a photo of a bear."], return_tensors="pt")
    with torch.inference_mode():
        image_D = model.get_image_features(pixel_values=pixels).pooler_output[0]
        text_D = model.get_text_features(**text).pooler_output[0]
        hidden_PH = model.vision_model(pixels).last_hidden_state[0, 1:]
        patches_PD = model.visual_projection(model.vision_model.post_layernorm(hidden_PH))
    row = features.source.keys.to_pylist().index("source/bear/1.png")

    def near(stored: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(stored, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=1e-3)

    near(features.source.features_ID[row], image_D)
    near(features.name_features_CPD[2, 0], text_D)
    tokens_IPD = mapped(cache, "source_tokens", tmp_path / "scratch")
    assert tokens_IPD.shape == (16, (facts["image"] // facts["patch"]) ** 2, facts["dim"])
    near(torch.from_numpy(np.array(tokens_IPD[row])).float(), patches_PD)
    assert read_cache_table(cache, "target_tokens")["key"].to_pylist() == features.target.keys.to_pylist()
    assert matrix(read_cache_table(cache, "target_tokens")["tokens"]).dtype == np.float16


@pytest.mark.parametrize("settings", [{"crop_size": 224}, {"crop_size": {"height": 48, "width": 64}}, {"size": 336}])
def test_a_processor_of_another_size_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    clip = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    content = json.loads((clip / "preprocessor_config.json").read_text())
    if "size" in settings:
        content |= {"do_center_crop": False}
    (clip / "preprocessor_config.json").write_text(json.dumps(content | settings))
    with pytest.raises(UserError, match="its image processor makes images of .* pixels, its model takes 48$"):
        find_checkpoint(clip)


def bin_only(clip: Path) -> None:
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()


def beside(name: str) -> Callable[[Path], None]:
    def change(clip: Path) -> None:
        bin_only(clip)
        save_file({"lora_A": torch.zeros(2, 2)}, clip / name)

    return change


def sharded(clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    names = {"model-1.safetensors": sorted(weights)[::2], "model-2.safetensors": sorted(weights)[1::2]}
    for file, part in names.items():
        save_file({name: weights[name] for name in part}, clip / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in names.items() for name in part}}
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))
    (clip / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change", [bin_only, beside("open_clip_model.safetensors"), beside("adapter_model.safetensors"), sharded]
)
def test_only_the_weights_that_are_loaded_count(change: Callable[[Path], None], tmp_path: Path) -> None:
    clip = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    size = find_checkpoint(clip).weight_bytes
    change(clip)
    checkpoint = find_checkpoint(clip)
    assert checkpoint.weight_bytes == pytest.approx(size, rel=0.01)
    assert load_model(checkpoint).config.projection_dim == 192


def rewritten(name: str, content: str) -> Callable[[Path], None]:
    return lambda clip: (clip / name).write_text(content) and None


def vocabulary_alone(clip: Path) -> None:
    vocabulary = json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"]
    (clip / "tokenizer.json").unlink()
    (clip / "vocab.json").write_text(json.dumps(vocabulary))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
SIZES = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewritten("model.safetensors", POINTER), "model.safetensors is a pointer of Git LFS: run git lfs pull there"),
        (rewritten("tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
        (rewritten("tokenizer.json", "{"), "tokenizer.json: Expecting"),
        (vocabulary_alone, "has vocab.json, but no merges.txt"),
        (
            rewritten("preprocessor_config.json", json.dumps({"image_mean": [0.5], **SIZES})),
            r"image_mean of its image processor must be 3 numbers, got \[0.5\]",
        ),
        (
            rewritten("preprocessor_config.json", json.dumps({"image_processor_type": "ViT", "size": 48})),
            "makes images of 224 pixels, its model takes 48",
        ),
    ],
)
def test_files_that_cannot_work_are_one_line(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    clip = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    change(clip)
    with pytest.raises(UserError, match=message) as error:
        find_checkpoint(clip)
    assert "\n" not in str(error.value)
