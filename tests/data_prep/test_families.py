"""Checkpoints of CLIP's relatives, tiny and random in their real file layouts: features are the library's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize

from data_prep import FeatureOptions, prepare
from data_prep.checkpoint import Checkpoint, find_checkpoint, load_model, logit_scale
from data_prep.clip_features import Encode, Preprocess
from data_prep.errors import UserError
from data_prep.feature_store import load
from models.prompts import FrozenTextEncoder

WORDS = ["a", "photo", "of", "anchor", "banana", "bear", "bed", ".", "drawing", "an", "image", "picture", "the"]
TEXTS = ["a photo of a bear.", "an anchor", "a drawing of the bed, and of a banana."]
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
VIT |= {"patch_size": 16}


def bert_tokenizer(folder: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 40, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def unigram_tokenizer(folder: Path, *, start: str | None, length: int) -> None:
    """As SigLIP's (an end token only) and XLM-RoBERTa's (start and end) are stored."""
    special = [t for t in ("<pad>", start, "</s>", "<unk>") if t]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    ids = [(t, tokenizer.token_to_id(t)) for t in special if t not in ("<pad>", "<unk>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A </s>" if start else "$A </s>", special_tokens=ids
    )
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"bos_token": start} if start else {})
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **tokens)
    fast.save_pretrained(folder)


def siglip2(folder: Path) -> None:
    text = {**BERT, "vocab_size": 20, "max_position_embeddings": 16, "projection_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=VIT)
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    unigram_tokenizer(folder, start=None, length=16)


def siglip(folder: Path) -> None:
    """The first SigLIP: the same model, with its tokenizer as a model of SentencePiece."""
    siglip2(folder)
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([f"{a} {b}" for a in WORDS for b in WORDS]),
        model_prefix=str(folder / "spiece"),
        vocab_size=20,
        model_type="char",
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    (folder / "spiece.vocab").unlink()
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16, "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def chinese_clip(folder: Path) -> None:
    config = transformers.ChineseCLIPConfig(
        text_config={**BERT, "vocab_size": 18}, vision_config=VIT, projection_dim=12
    )
    transformers.ChineseCLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ChineseCLIPImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)
    bert_tokenizer(folder)


def align(folder: Path) -> None:
    vision = {"image_size": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 32}
    vision |= {"hidden_act": "swish"}
    config = transformers.AlignConfig(text_config={**BERT, "vocab_size": 18}, vision_config=vision, projection_dim=32)
    transformers.AlignModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    transformers.EfficientNetImageProcessorPil(size=square, crop_size=square).save_pretrained(folder)
    bert_tokenizer(folder)


def metaclip_2(folder: Path) -> None:
    text = {**BERT, "vocab_size": 20, "max_position_embeddings": 20, "eos_token_id": 2, "projection_dim": 12}
    config = transformers.MetaClip2Config(
        text_config=text, vision_config={**VIT, "projection_dim": 12}, projection_dim=12
    )
    transformers.MetaClip2Model(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    unigram_tokenizer(folder, start="<s>", length=18)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "siglip": siglip,
    "siglip2": siglip2,
    "chinese_clip": chinese_clip,
    "align": align,
    "metaclip_2": metaclip_2,
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    FAMILIES[request.param](folder)
    return find_checkpoint(folder)


def encoded(checkpoint: Checkpoint, unit: dict[str, Any], rows: int) -> torch.Tensor:
    row = Encode(checkpoint, threads=1)(Preprocess(checkpoint)({"shard": "", "rows": rows, **unit}))
    assert not row["fatal"] and not any(row["reasons"])
    assert row["features"].shape == (rows, checkpoint.dimension)
    return torch.from_numpy(row["features"]).float()


@torch.no_grad()
def test_texts_and_images_are_encoded_as_the_library_encodes_them(checkpoint: Checkpoint) -> None:
    model: Any = load_model(checkpoint)
    assert model.config.model_type == checkpoint.model_type
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    padding = "max_length" if checkpoint.model_type == "siglip" else True  # as its documentation asks
    length = {"max_length": 16} if checkpoint.model_type == "siglip" else {}
    inputs = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt", **length)
    inputs = {name: inputs[name] for name in inputs if name != "token_type_ids"}
    if checkpoint.model_type == "siglip":
        inputs.pop("attention_mask", None)  # its tokenizer returns none
    expected = normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
    torch.testing.assert_close(encoded(checkpoint, {"kind": "text", "texts": TEXTS}, 3), expected, atol=2e-3, rtol=0)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(p) for p in pixels]
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, backend="pil")
    expected = normalize(model.get_image_features(**processor(images, return_tensors="pt")).pooler_output, dim=-1)
    unit = {"kind": "image", "path": [None, None], "data": images}
    torch.testing.assert_close(encoded(checkpoint, unit, 2), expected, atol=2e-3, rtol=0)


@torch.no_grad()
def test_a_text_s_feature_does_not_depend_on_its_neighbours(checkpoint: Checkpoint) -> None:
    together = encoded(checkpoint, {"kind": "text", "texts": TEXTS}, 3)
    alone = torch.cat([encoded(checkpoint, {"kind": "text", "texts": [text]}, 1) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_a_cache_is_built_and_its_scale_is_the_model_s(
    checkpoint: Checkpoint, small_folder: Path, tmp_path: Path, without_ray: None
) -> None:
    options = FeatureOptions(benchmark=f"folder:{small_folder}", clip=str(checkpoint.folder), cache_dir=tmp_path)
    features = load(prepare(options))
    assert features.source.features_ID.shape == (16, checkpoint.dimension)
    model: Any = load_model(checkpoint)
    scale = 1 / model.temperature if checkpoint.model_type == "align" else model.logit_scale.exp()
    assert features.logit_scale == pytest.approx(scale.item()) == pytest.approx(logit_scale(model))
    with pytest.raises(UserError, match="tokens must be left out: only CLIP's patches have features"):
        prepare(FeatureOptions(**{**vars(options), "tokens": True}))


def test_learned_prompts_need_clip(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=f"need the text tower of CLIP, got a {checkpoint.model_type} model"):
        FrozenTextEncoder.load(checkpoint.folder)


def test_a_missing_tower_and_another_kind_of_model_are_one_line(tmp_path: Path) -> None:
    siglip2(tmp_path)
    model: Any = transformers.SiglipModel.from_pretrained(tmp_path)
    model.text_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(model.config.to_json_string(use_diff=False))
    with pytest.raises(UserError, match="must hold an image tower, a text tower .* has no vision_model"):
        find_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}))
    with pytest.raises(UserError, match="model_type clip, siglip, .*; .* has model_type 'siglip2'"):
        find_checkpoint(tmp_path)


def test_a_tokenizer_whose_package_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siglip(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library\nmore")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(UserError, match="its tokenizer cannot be loaded: SiglipTokenizer requires the SentencePiece"):
        find_checkpoint(tmp_path)
