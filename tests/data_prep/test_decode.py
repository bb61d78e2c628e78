"""One picture, in every mode and format that Pillow writes: it must look the same."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from data_prep.decode import decode


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def shown(content: bytes) -> np.ndarray:
    image = decode(None, content)
    assert isinstance(image, Image.Image) and image.mode == "RGB", image
    return np.asarray(image).astype(float)


GREY = np.tile(np.linspace(0.1, 0.9, 48), (32, 1))
"""A ramp from dark to bright."""


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.fromarray((GREY * 255).astype(np.uint8)), "PNG"),
        (Image.fromarray((GREY * 65535).astype(np.uint16)), "PNG"),
        (Image.fromarray((GREY * 65535).astype(np.uint16)), "TIFF"),
        (Image.fromarray((GREY * 65535).astype(np.int32)), "TIFF"),
        (Image.fromarray((GREY * 255).astype(np.int32)), "TIFF"),
        (Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        (Image.fromarray((GREY * 255).astype(np.float32)), "TIFF"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("LA"), "PNG"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("P"), "GIF"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB"), "BMP"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB").convert("CMYK"), "TIFF"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB").convert("CMYK"), "JPEG"),
        (Image.fromarray((GREY * 255).astype(np.uint8)), "WEBP"),
        (Image.fromarray((GREY * 65535).astype(np.uint16)), "PPM"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB").convert("YCbCr"), "TIFF"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGBA"), "JPEG2000"),
        (Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB"), "ICO"),
    ],
)
def test_grey_of_every_depth_is_the_same_picture(image: Image.Image, format: str) -> None:
    options = {"sizes": [(48, 32)]} if format == "ICO" else {}
    np.testing.assert_allclose(shown(saved(image, format, **options))[..., 1], GREY * 255, atol=6)


def test_stacks_of_values_that_fit_no_range_are_stretched() -> None:
    deep = Image.fromarray((GREY * 1e6 - 5e5).astype(np.int32))
    values = shown(saved(deep, "TIFF"))[0, :, 0]
    assert values[0] == 0 and values[-1] == 255 and (np.diff(values) >= 0).all()
    broken = GREY.astype(np.float32)
    broken[0, 0] = np.nan
    assert shown(saved(Image.fromarray(broken), "TIFF")).mean() == pytest.approx(127, abs=2)


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "GIF", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "TGA", {}),
        ("P", "PNG", {}),
    ],
)
def test_what_is_transparent_is_white(mode: str, format: str, options: dict) -> None:
    icon = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(icon).rectangle([16, 16, 47, 47], fill=(0, 0, 0, 255))
    given = icon.quantize(16, method=Image.Quantize.FASTOCTREE) if mode == "P" else icon.convert(mode)
    values = shown(saved(given, format, **options))
    assert values[4, 4].tolist() == [255, 255, 255]
    assert values[32, 32].tolist() == [0, 0, 0]


def test_one_transparent_colour_and_half_transparent_parts() -> None:
    keyed = Image.new("L", (8, 8), 0)
    keyed.putpixel((3, 3), 90)
    assert shown(saved(keyed, "PNG", transparency=0))[0, 0].tolist() == [255, 255, 255]
    assert shown(saved(keyed, "PNG", transparency=0))[3, 3].tolist() == [90, 90, 90]
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    assert shown(saved(red, "PNG", transparency=(200, 0, 0)))[0, 0].tolist() == [255, 255, 255]
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert shown(saved(half, "PNG"))[0, 0] == pytest.approx([127, 127, 127], abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photographs_are_upright(orientation: int, format: str) -> None:
    photo = Image.new("RGB", (40, 24), "white")
    ImageDraw.Draw(photo).rectangle([0, 0, 12, 8], fill="red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(photo, format, exif=exif)
    np.testing.assert_array_equal(
        shown(content), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    )
    assert shown(content).shape[:2] == ((24, 40) if orientation < 5 else (40, 24))


def test_colours_are_those_of_the_profile() -> None:
    grey = Image.fromarray((GREY * 255).astype(np.uint8)).convert("RGB")
    lab = ImageCms.profileToProfile(
        grey, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    np.testing.assert_allclose(shown(saved(lab, "TIFF"))[..., 1], GREY * 255, atol=4)
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()  # of another space than the pixels
    np.testing.assert_allclose(shown(saved(grey, "PNG", icc_profile=linear)), np.asarray(grey), atol=1)
    np.testing.assert_allclose(shown(saved(grey, "PNG", icc_profile=b"nonsense")), np.asarray(grey), atol=1)


def test_of_several_frames_the_first_is_shown() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        content = saved(frames[0], format, save_all=True, append_images=frames[1:])
        red = shown(content)[4, 4]
        assert red[0] > 240 and red[2] < 15, format


def test_what_cannot_be_shown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(None, b"") == "empty file"
    assert decode(None, b"no image") == "no image format that is known"
    assert decode(None, saved(Image.new("L", (500, 2)), "PNG")) == "500 x 2 pixels: too oblong to be resized"
    assert decode(None, Image.new("L", (2, 500))) == "2 x 500 pixels: too oblong to be resized"
    assert decode("/none/such.png", None) == "No such file or directory"
    content = saved(Image.new("L", (64, 64)), "PNG")
    assert isinstance(decode(None, content[: len(content) // 2]), str)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(None, content) == "more than 0 million pixels: too large to be read"
