"""Opens an image file as a viewer shows it: in RGB, upright, transparent parts on white.

Everything that opens an image does so here: features, thumbnails, predictions. Of a file with several frames the first
one counts. Grey of 16 or 32 bits and floats become 8 bits: what is stored in 16 bits spans 0 to 65535; other integers
span 0 to 255, 0 to 65535 or what they hold, whichever is the first to hold them all; floats 0 to 1, 0 to 255 or what
they hold.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data_prep.storage import reason

DECODER = 2
"""Version of what this file does, part of every cache's fingerprint. 1 was Pillow's plain `convert("RGB")`."""
FRAMES = "frames"
"""Key of `Image.info` under which a decoded image says how many frames its file has."""
MOST_OBLONG = 100
"""Sides' largest ratio: the shorter one is resized to the model's, and the longer with it; a strip fills the memory."""


def decode(path: str | None, data: bytes | Image.Image | None) -> Image.Image | str:
    """Return the image of a file, of its content or of one opened already in RGB, or the reason why there is none."""
    try:
        if isinstance(data, Image.Image):
            return _oblong(data) or _shown(data)
        content = Path(path).read_bytes() if path else data
        if not content:
            return "empty file"
        with Image.open(io.BytesIO(content)) as image:
            if strip := _oblong(image):
                return strip
            shown = _shown(image)
            shown.info[FRAMES] = getattr(image, "n_frames", 1)
            return shown
    except UnidentifiedImageError:  # its own text names a memory address
        return "no image format that is known"
    except Image.DecompressionBombError:  # its own text speaks of an attack
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels: too large to be read"
    except Exception as error:  # Pillow raises a dozen unrelated types on damaged files
        return reason(error)[:200]


def _oblong(image: Image.Image) -> str:
    """Return why an image cannot be resized, by its sides; "" if it can be."""
    is_strip = max(image.size) > MOST_OBLONG * min(image.size)
    return f"{image.width} x {image.height} pixels: too oblong to be resized" if is_strip else ""


def _shown(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if upright.mode == "F" or upright.mode.startswith("I"):
        upright, profile = _eight_bits(upright), None
    alpha = None
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")  # palettes with one transparent colour, or with many; grey with alpha
        alpha, profile = rgba.getchannel("A"), profile if upright.mode in ("RGB", "RGBA", "P", "PA") else None
        upright = rgba.convert("RGB")
    elif upright.mode == "P":
        upright = upright.convert("RGB")
    colours = _in_srgb(upright, profile)
    if alpha is None:
        return colours
    ground = Image.new("RGB", colours.size, "white")
    ground.paste(colours, mask=alpha)
    return ground


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    is_float, sixteen = image.mode == "F", image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    spans = (65535.0,) if sixteen else (1.0, 255.0) if is_float else (255.0, 65535.0)
    fitting = [span for span in spans if low >= 0 and high <= span]
    low, span = (0.0, fitting[0]) if fitting else (low, max(high - low, 1e-12))
    return Image.fromarray(((values - low) / span * 255).round().astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the image in RGB; by its colour profile, if it has one that can be read."""
    if image.mode == "LAB":
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(given).lower():
                return _converted(image, given)
        except (
            OSError,
            ImageCms.PyCMSError,
        ):  # damaged, or of another colour space than the pixels: viewers pass over it
            pass
    return image.convert("RGB")


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None  # it is where the image is not converted in place
    return shown
