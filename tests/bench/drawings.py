"""Does selection hold on images that shaped nothing? Drawings made of the embedded images, as a user's folder.

Makes a domain that the project does not have, line drawings or pencil shading: of the emoji, where icons are labelled,
and of the icons, where emoji are. Then it runs the study that a user would run on them, and prints what its choice is
worth. No drawing is of a labelled image.

    python tests/bench/drawings.py                       # line drawings; four studies, six minutes on 2 cores
    python tests/bench/drawings.py --style shading
"""

import argparse
import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.benchmarks.icons2emoji import ASSETS  # noqa: E402
from study import read_leaderboard, run_study  # noqa: E402
from study.evaluation.leaderboard_text import difference, percent  # noqa: E402

SIZE = 192
HEAD = [
    "| task | zero-shot | defaults | selected | gain | calibrated | consensus | ensemble | best baseline | best |",
    "|---|--:|--:|--:|---|--:|--:|--:|---|--:|",
]
DIRECTIONS = {"icons to drawn emoji": ("icon", "emoji"), "emoji to drawn icons": ("emoji", "icon")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=["lines", "shading"], default="lines")
    add_study_options(parser, rotations=[0, 1])
    args = parser.parse_args()
    lines = [*HEAD]
    for task, (labelled, drawn) in DIRECTIONS.items():
        folder = args.storage / f"drawings-{args.style}-{drawn}"
        if not (folder / "target").exists():
            write_images(folder, labelled, args.style)
        for rotation, table in leaderboards(folder, args).items():
            lines.append(f"| {task}, {rotation} {line(table)}")
    print(*lines, sep="\n")


def add_study_options(parser: argparse.ArgumentParser, rotations: list[int]) -> None:
    """Add what the studies of this benchmark and of other_artists.py can be told."""
    parser.add_argument("--rotations", type=int, nargs="+", default=rotations, help="which classes are unseen")
    parser.add_argument("--storage", type=Path, default=Path("results"), help="finished studies there are read")
    parser.add_argument("--cache", default=".cache")


def leaderboards(folder: Path, args: argparse.Namespace) -> dict[int, pd.DataFrame]:
    """Run a study on a folder of images for each choice of unseen classes; return the leaderboards."""
    tables = {}
    for rotation in args.rotations:
        name = f"{folder.name}-{rotation}"
        if not (args.storage / name / "leaderboard.parquet").exists():
            write_classes(folder, rotation)
            run_study(
                space="sre",
                benchmark=f"folder:{folder}",
                clip=str(ASSETS / "clip"),
                name=name,
                storage=str(args.storage),
                cache=args.cache,
            )
        tables[rotation] = read_leaderboard(args.storage / name)
    return tables


def line(table: pd.DataFrame) -> str:
    """Return a study's numbers as columns."""
    of_method, baseline = table.method.str.startswith("SRE-CLIP"), table.selected & (table.n_seeds > 0)
    own, refitted = table[table.selected & (table.method == "SRE-CLIP")].iloc[0], table.method == "SRE-CLIP"
    zero_shot, defaults, calibrated, consensus, ensemble = (
        table[table.method == method].test_h_mean.iloc[0]
        for method in (
            "CLIP zero-shot (ensemble)",
            "SRE-CLIP, defaults",
            "SRE-CLIP, calibrated",
            "SRE-CLIP, consensus",
            "SRE-CLIP, ensemble",
        )
    )
    best = table[~of_method & baseline].sort_values("test_h_mean").iloc[-1]
    columns = [
        percent(zero_shot),
        percent(defaults),
        percent(own.test_h_mean),
        difference(own.h_gain, own.h_gain_lo, own.h_gain_hi),
        percent(calibrated),
        percent(consensus),
        percent(ensemble),
        f"{best.method} {percent(best.test_h_mean)}",
        percent(max(calibrated, table[refitted].test_h_mean.max())),
    ]
    return f"| {' | '.join(columns)} |"


def write_images(folder: Path, labelled: str, style: str) -> None:
    """Write source/CLASS/*, the images of the labelled domain, and target/CLASS/*, drawings of the other's."""
    names = pd.read_parquet(ASSETS / "classes.parquet").set_index("class_id").name
    for row in pd.read_parquet(ASSETS / "images.parquet").itertuples():
        of_class = class_folder(folder, "source" if row.domain == labelled else "target", names[row.class_id])
        if row.domain == labelled:
            (of_class / f"{row.Index}.png").write_bytes(row.image)
        else:
            draw(row.image, style, np.random.default_rng(zlib.crc32(row.image))).save(of_class / f"{row.Index}.png")


def class_folder(root: Path, domain: str, name: str) -> Path:
    """Return the folder of a class's images, which is there then."""
    folder = root / domain / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_classes(folder: Path, rotation: int) -> None:
    """Write classes.csv, the classes of a rotation as the unseen ones."""
    classes = pd.read_parquet(ASSETS / "classes.parquet")
    seen = (classes.rotation != rotation).astype(int)
    classes[["name", "wnid"]].assign(seen=seen).to_csv(folder / "classes.csv", index=False)


def draw(png: bytes, style: str, rng: np.random.Generator) -> Image.Image:
    """Draw an image anew: its edges as wavering lines, or its brightness as hatching; turned and scaled a little."""
    image = Image.open(io.BytesIO(png)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = ndimage.gaussian_filter(np.asarray(image).astype(float), (2, 2, 0))
    steps = [ndimage.sobel(pixels[..., c], axis) for c in range(3) for axis in (0, 1)]
    edge = np.sqrt(np.square(steps).sum(0))
    ink = (edge > 0.25 * edge.max()).astype(float)
    if style == "shading":
        across = np.add.outer(np.arange(SIZE), np.arange(SIZE) * rng.uniform(0.5, 2.0))
        hatching = 0.5 + 0.5 * np.sin(across * 2 * np.pi / rng.uniform(7, 12))
        dark = 1 - pixels.mean(-1) / 255
        ink = np.maximum(0.6 * ink, np.clip(1.5 * dark, 0, 1) * hatching)
    ink = ndimage.map_coordinates(ink, _wavering(rng), order=1)
    pressure = 0.8 + 0.3 * np.tanh(10 * ndimage.gaussian_filter(rng.normal(size=ink.shape), 6))
    grey = 255 - np.clip(1.5 * ndimage.gaussian_filter(ink, 1.2) * pressure, 0, 1) * rng.uniform(150, 230)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def _wavering(rng: np.random.Generator) -> NDArray[np.floating]:
    """Return where each pixel of a drawing comes from (2, SIZE, SIZE): turned, scaled, and by an unsteady hand."""
    turn, scale, middle = rng.normal() * 0.12, rng.uniform(0.8, 1.05), SIZE / 2
    y, x = (np.mgrid[:SIZE, :SIZE] - middle) / scale
    hand = [70 * ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 14) for _ in range(2)]
    turned = [np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x]
    return np.stack(turned) + middle + np.stack(hand)


if __name__ == "__main__":
    main()
