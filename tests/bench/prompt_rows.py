"""Learned prompts: classes written into shared rows (`models.prompts`) against one padded sequence per class.

A step is forward and backward of all class texts under one lane's context: on the embedded checkpoint with its 228
classes, and on a randomly initialised text tower of ViT-B/32's size with 64 of them. The plain way encodes every prompt
at the checkpoint's full length, as public code does. Features must agree. `python tests/bench/prompt_rows.py` prints a
ratio per checkpoint and writes `prompt_rows.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.benchmarks.icons2emoji import ASSETS  # noqa: E402
from models.prompts import ClassTexts, FrozenTextEncoder, PromptLearner  # noqa: E402


def vit_b32_tower() -> CLIPModel:
    """Random weights in ViT-B/32's shape; the embedded tokenizer's ids fit into its vocabulary."""
    text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12}
    text |= {"max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": None}
    vision = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))


def plain(prompts: PromptLearner) -> Tensor:
    """Text features (1, C, D): every prompt a sequence of its own, padded to the checkpoint's length."""
    encoder, eos = prompts.encoder, prompts.encoder.tokenizer.eos_token_id
    bos = encoder.tokenizer.bos_token_id
    rows, ends = [], []
    for ids in prompts.name_ids:
        rows.append(([bos] + [eos] * prompts.n_ctx + ids + [eos] * encoder.max_tokens)[: encoder.max_tokens])
        ends.append(prompts.n_ctx + len(ids))
    embedded = encoder.embed(torch.tensor(rows))
    context = prompts.context.expand(len(rows), -1, -1)
    tokens = torch.cat([embedded[:, :1], context, embedded[:, 1 + prompts.n_ctx :]], dim=1)
    position = torch.arange(encoder.max_tokens)
    hidden = tokens + encoder.tower.embeddings.position_embedding(position)
    mask = torch.zeros(len(position), len(position)).masked_fill(position[:, None] < position, -torch.inf)
    hidden = encoder.tower.encoder(inputs_embeds=hidden, attention_mask=mask.expand(len(rows), 1, -1, -1))[0]
    chosen = encoder.tower.final_layer_norm(hidden[torch.arange(len(rows)), torch.tensor(ends)])
    return F.normalize(encoder.projection(chosen), dim=-1)[None]


def seconds(features: Callable[[], Tensor], context: Tensor, repeats: int) -> float:
    """Fastest of some steps: the machine may be busy."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.autograd.grad(features().sum(), [context])
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("prompt_rows.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = tuple(pq.read_table(ASSETS / "classes.parquet").sort_by("class_id")["name"].to_pylist())
    embedded = FrozenTextEncoder.load(ASSETS / "clip")
    tower = vit_b32_tower()
    tower.text_model.config.eos_token_id = embedded.tokenizer.eos_token_id
    report = {}
    for what, encoder, classes in (
        ("embedded, 228 classes", embedded, names),
        ("ViT-B/32's size, 64 classes", FrozenTextEncoder(tower, embedded.tokenizer), names[:64]),
    ):
        width = encoder.projection.out_features
        texts = ClassTexts(
            features_CD=torch.zeros(len(classes), width), logit_scale=1.0, names=classes, encoder=encoder
        )
        prompts = PromptLearner(texts, generators=[torch.Generator()])
        with torch.no_grad():
            torch.testing.assert_close(prompts(), plain(prompts), atol=1e-5, rtol=0)
        slow = seconds(lambda p=prompts: plain(p), prompts.context, options.repeats)
        fast = seconds(lambda p=prompts: p(), prompts.context, options.repeats)
        report[what] = {"plain_s": slow, "rows_s": fast, "ratio": slow / fast}
        print(f"{what}: {slow / fast:.1f}x ({slow:.3f} s against {fast:.3f} s)")
    options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
