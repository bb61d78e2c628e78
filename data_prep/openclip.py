"""Checkpoints in OpenCLIP's own format, in the shape that transformers' models, image processors and tokenizers have.

Everything is done by open_clip_torch, an extra of its own: its torchvision must fit the torch that is installed.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

CONFIG = "open_clip_config.json"
"""As open_clip itself calls it."""


class OpenClipModel(nn.Module):
    """A model of open_clip with the methods of transformers' dual encoders that are used here."""

    def __init__(self, folder: Path) -> None:
        """Load the model in float32, in eval mode; OpenCLIP itself raises where weights are missing."""
        super().__init__()
        self.model = open_clip.create_model(f"local-dir:{folder}").eval()
        self.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=image_size(folder)))

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the multiplier of cosines. SigLIP's bias is left out: it is the same for all classes."""
        return self.model.logit_scale

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        """Encode pixels (I, 3, size, size): `pooler_output` (I, D)."""
        return SimpleNamespace(pooler_output=self.model.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor) -> SimpleNamespace:
        """Encode token ids (T, length): `pooler_output` (T, D)."""
        return SimpleNamespace(pooler_output=self.model.encode_text(input_ids))


class OpenClipProcessor:
    """The preprocessing that a folder states for inference: an image in, pixels out."""

    def __init__(self, folder: Path) -> None:
        settings = _config(folder).get("preprocess_cfg", {})
        self._transform = image_transform_v2(PreprocessCfg(**{**settings, "size": image_size(folder)}), is_train=False)

    def __call__(self, image: Image.Image, return_tensors: str = "np") -> dict[str, np.ndarray]:
        """Return `pixel_values` (1, 3, size, size)."""
        return {"pixel_values": self._transform(image)[None].numpy()}


class OpenClipTokenizer:
    """A folder's tokenizer, which pads every text to full length, and tells how many it cuts."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Return token ids (T, length), and the number of texts that are longer than that."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, SimpleTokenizer):
            lengths = [len(tokenizer.encode(text)) + 2 for text in texts]  # and a start and an end token
        else:
            cleaned = [tokenizer.clean_fn(text) for text in texts]
            lengths = [len(ids) for ids in tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]
        return tokenizer(texts).numpy(), sum(length > tokenizer.context_length for length in lengths)


def image_size(folder: Path) -> Any:
    """Return the sides in pixels of the images that the model of a folder takes."""
    return _config(folder)["model_cfg"]["vision_cfg"]["image_size"]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())
