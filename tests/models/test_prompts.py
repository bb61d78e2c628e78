"""Prompts through the truncated encoder against the checkpoint's own full-length text features."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from models.prompts import ClassTexts, FrozenTextEncoder, PromptLearner, base_cross_entropy

EMBEDDED = Path(__file__).parents[2] / "data_prep/assets/icons2emoji/clip"
NAMES = ("cat", "alarm clock", "hot air balloon", "fountain pen", "ox")


class WordTokenizer:
    """Stands in for a tokenizer: one id per word, start 49406, end 49407."""

    bos_token_id, eos_token_id = 49406, 49407

    def __init__(self, eos_token_id: int = 49407) -> None:
        self.eos_token_id = eos_token_id

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [1000 + sum(map(ord, word)) % 40000 for word in text.split()]
        return {"input_ids": [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids}

    def get_vocab(self) -> dict[str, int]:
        return {"start": 49406, "end": 49407}


def vit_b32_text_tower(eos_token_id: int = 49407, layers: int = 12) -> CLIPModel:
    torch.manual_seed(0)
    text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": layers}
    text |= {"max_position_embeddings": 77, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": eos_token_id}
    vision = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).eval()


def full_length_features(clip: CLIPModel, tokenizer: Any, texts: list[str], length: int) -> Tensor:
    """What the checkpoint itself says of texts padded to its full context."""
    ids = [tokenizer(t)["input_ids"] for t in texts]
    padded = torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in ids])
    with torch.no_grad():
        return F.normalize(clip.text_projection(clip.text_model(input_ids=padded).pooler_output), dim=-1)


@pytest.fixture(scope="module")
def encoder() -> FrozenTextEncoder:
    return FrozenTextEncoder.load(EMBEDDED)


def texts_of(encoder: FrozenTextEncoder, names: tuple[str, ...] = NAMES, dim: int = 192) -> ClassTexts:
    return ClassTexts(features_CD=torch.zeros(len(names), dim), logit_scale=20.0, names=names, encoder=encoder)


def computed_tokens(prompts: PromptLearner) -> int:
    """Tokens that the encoder gets to see for all classes and lanes."""
    counts: list[int] = []

    def count(_: Any, __: Any, inputs: dict[str, Tensor]) -> None:
        counts.append(inputs["inputs_embeds"].shape[:2].numel())

    hook = prompts.encoder.tower.encoder.register_forward_pre_hook(count, with_kwargs=True)
    with torch.no_grad():
        prompts()
    hook.remove()
    return sum(counts)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.mark.parametrize("template", ["a photo of a {}", "a {} icon"])
@pytest.mark.parametrize("per_class", [False, True])
def test_untrained_prompts_are_the_embedded_checkpoints_text_features(
    encoder: FrozenTextEncoder, template: str, per_class: bool
) -> None:
    clip = CLIPModel.from_pretrained(EMBEDDED, dtype=torch.float32)
    expected = full_length_features(clip, encoder.tokenizer, [template.format(n) for n in NAMES], 24)
    prompts = PromptLearner(
        texts_of(encoder), generators=generators(0, 1), template=template, per_class=per_class, classes_per_row=3
    )
    context = 0 if per_class else prompts.n_ctx
    tokens = 2 * (1 + context) + sum(len(n) + prompts.n_ctx - context for n in prompts.name_ids)
    assert computed_tokens(prompts) == 2 * tokens < 2 * len(NAMES) * 24 / 2  # two rows, two lanes; not full prompts
    for lane in prompts():
        torch.testing.assert_close(lane, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(prompts(torch.tensor([[3, 1]] * 2))[1], expected[[3, 1]], atol=2e-6, rtol=0)


def test_untrained_prompts_are_a_vit_b32s_text_features() -> None:
    clip, tokenizer = vit_b32_text_tower(), WordTokenizer()
    names = NAMES[:3]
    prompts = PromptLearner(texts_of(FrozenTextEncoder(clip, tokenizer), names, 512), generators=generators(0))
    assert computed_tokens(prompts) == 5 + 2 + 3 + 4  # of 3 x 77: start and context once, then names and their EOS
    for eos_token_id in (49407, 2):  # 2: as released; the model then pools at the largest id
        clip.text_model.eos_token_id = clip.text_model.config.eos_token_id = eos_token_id
        expected = full_length_features(clip, tokenizer, [f"a photo of a {n}" for n in names], 77)
        torch.testing.assert_close(prompts(), expected[None], atol=2e-6, rtol=0)
        FrozenTextEncoder(clip, tokenizer)


@pytest.mark.parametrize("per_class", [False, True])
def test_rows_and_recomputation_do_not_change_gradients(encoder: FrozenTextEncoder, per_class: bool) -> None:
    gradients = []
    for classes_per_row, activation_bytes in ((1, 0), (2, 2**30), (100, 0), (100, 2**30)):
        prompts = PromptLearner(
            texts_of(encoder),
            generators=generators(0, 1),
            classes_per_row=classes_per_row,
            activation_bytes=activation_bytes,
            per_class=per_class,
            init="noise",
        )
        weights = torch.linspace(-1, 1, 192)
        (gradient,) = torch.autograd.grad((prompts() @ weights).sum(), [prompts.context])
        gradients.append(gradient)
    assert gradients[0].abs().sum() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, atol=2e-5, rtol=1e-4)


def test_a_lane_does_not_depend_on_its_neighbours(encoder: FrozenTextEncoder) -> None:
    def features(*seeds: int) -> Tensor:
        return PromptLearner(texts_of(encoder), generators=generators(*seeds), init="noise", n_ctx=3)()

    torch.testing.assert_close(features(5, 6)[1], features(6)[0], atol=1e-6, rtol=0)


def test_the_encoder_is_no_part_of_the_lanes(encoder: FrozenTextEncoder) -> None:
    prompts = PromptLearner(texts_of(encoder), generators=generators(0, 1, 2), per_class=True)
    assert [tuple(p.shape) for p in prompts.parameters()] == [(3, 5, 4, 192)]
    prompts.keep(torch.tensor([2]))
    assert prompts().shape == (1, 5, 192)


def test_features_are_kept_until_the_context_changes(encoder: FrozenTextEncoder) -> None:
    prompts = PromptLearner(texts_of(encoder), generators=generators(0))
    with torch.no_grad():
        before = prompts()
        assert prompts() is before
        prompts.context.add_(1.0)
        assert not torch.allclose(prompts(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("cat", " ", "ox", "pen", "owl")}, "every class needs a name to be prompted with, got ' '"),
        ({"names": ("cat",)}, "a name for each of 5 classes, got 1 names"),
        ({"encoder": None}, "prompts need the text encoder"),
        ({"names": ("cat " * 30, *NAMES[1:])}, "prompts hold at most 24 tokens"),
    ],
)
def test_bad_texts(encoder: FrozenTextEncoder, change: dict[str, Any], message: str) -> None:
    texts = ClassTexts(**(vars(texts_of(encoder)) | change))
    with pytest.raises(ValueError, match=message):
        PromptLearner(texts, generators=generators(0))


@pytest.mark.parametrize("arguments", [{"template": "a photo"}, {"template": "{}"}, {"init": "noise", "n_ctx": 0}])
def test_bad_context(encoder: FrozenTextEncoder, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="template must contain|n_ctx must be at least 1"):
        PromptLearner(texts_of(encoder), generators=generators(0), **arguments)


def test_a_checkpoint_that_pools_at_another_token_is_refused() -> None:
    clip = vit_b32_text_tower(eos_token_id=333, layers=1)
    with pytest.raises(ValueError, match="must be the tokenizer's EOS 49407 .* got 333"):
        FrozenTextEncoder(clip, WordTokenizer())
    legacy = SimpleNamespace(**{**vars(clip)})
    legacy.text_model, legacy.text_projection = clip.text_model, clip.text_projection
    legacy.text_model.config.eos_token_id = 2  # takes the largest id, 49407
    with pytest.raises(ValueError, match="got 2: the feature would be read off token 49407"):
        FrozenTextEncoder(legacy, WordTokenizer(eos_token_id=5))


def test_base_cross_entropy_ignores_novel_columns() -> None:
    logits_KBC = torch.tensor([[[0.0, 0.0, 50.0]]])
    loss = base_cross_entropy(logits_KBC, torch.tensor([[0]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(loss, torch.tensor([2.0]).log())


@pytest.mark.parametrize(
    ("own", "given", "period", "start"),
    [
        ("a {} icon", "", False, "a {} icon"),
        ("a {} icon", "", True, "a {} icon."),
        ("a photo of a {}, a type of pet.", "", True, "a photo of a {}, a type of pet."),
        ("{} texture.", "", True, "a photo of a {} texture."),
        ("a {} icon", "the {}", True, "the {}"),
    ],
)
def test_learned_prompts_start_from_the_benchmarks_own(own: str, given: str, period: bool, start: str) -> None:
    texts = ClassTexts(features_CD=torch.zeros(1, 4), logit_scale=1.0, template=own)
    assert texts.starting_template(given, period=period) == start
