"""Does selection hold on other people's drawings? Emoji of artists whose pictures the project does not have.

The project's images come from fifteen icon sets, and so do its choices. Here are OpenMoji's line drawings and four sets
of colour emoji by others, of the same 228 classes, as a user's folder. They are not part of the project: get and unpack
them, and install cairosvg, which draws OpenMoji's SVG.

    npm pack openmoji@17.0.0 emoji-datasource-apple@16.0.0 emoji-datasource-facebook@16.0.0
    npm pack @lobehub/fluent-emoji-3d@1.1.0
    for f in *.tgz; do mkdir -p packages/${f%-*.tgz} && tar xzf $f -C packages/${f%-*.tgz}; done
    pip install cairosvg && python tests/bench/other_artists.py packages      # sixteen studies, half an hour on 2 cores
"""

import argparse
import io
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from drawings import HEAD, SIZE, add_study_options, class_folder, leaderboards, line  # noqa: E402

from data_prep.benchmarks.icons2emoji import ASSETS  # noqa: E402
from study.evaluation.leaderboard_text import percent  # noqa: E402

Artist = Callable[[Path, str], Image.Image | None]
"""From the folder of packages and an emoji's code points, such as "1F436", to its picture."""


def openmoji(kind: str) -> Artist:
    """Return the artist of OpenMoji's colour or black pictures."""

    def picture(packages: Path, code: str) -> Image.Image | None:
        import cairosvg

        file = packages / "openmoji" / "package" / kind / "svg" / f"{code}.svg"
        if not file.exists():
            return None
        png = cairosvg.svg2png(bytestring=file.read_bytes(), output_width=SIZE, output_height=SIZE)
        return Image.open(io.BytesIO(png))

    return picture


def files(package: str, below: str, suffix: str) -> Artist:
    """Return the artist of a package of image files that are named by code points."""

    def picture(packages: Path, code: str) -> Image.Image | None:
        folder, name = packages / package / "package" / below, code.lower()
        spellings = (name, f"{name}-fe0f", name.replace("-fe0f", ""))
        found = [folder / f"{spelling}{suffix}" for spelling in spellings if (folder / f"{spelling}{suffix}").exists()]
        return Image.open(found[0]) if found else None

    return picture


APPLE = files("emoji-datasource-apple", "img/apple/64", ".png")
FACEBOOK = files("emoji-datasource-facebook", "img/facebook/64", ".png")
FLUENT_3D = files("lobehub-fluent-emoji-3d", "assets", ".webp")
TASKS: dict[str, tuple[str | list[Artist], list[Artist]]] = {
    "icons to OpenMoji in lines": ("icon", [openmoji("black")]),
    "emoji to OpenMoji in lines": ("emoji", [openmoji("black")]),
    "icons to colour emoji of four artists": ("icon", [openmoji("color"), APPLE, FACEBOOK, FLUENT_3D]),
    "colour emoji of three artists to OpenMoji in lines": ([APPLE, FACEBOOK, FLUENT_3D], [openmoji("black")]),
}
"""Who is labelled (a domain of the embedded benchmark, or artists), and who is not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the unpacked packages")
    add_study_options(parser, rotations=[0, 1, 2, 3])
    args = parser.parse_args()
    lines, means = [*HEAD], []
    for task, (labelled, drawn) in TASKS.items():
        folder = args.storage / f"artists-{re.sub(r'[^a-z]+', '-', task.lower())}"
        if not (folder / "target").exists():
            write_images(folder, labelled, drawn, args.packages)
        tables = leaderboards(folder, args)
        lines += [f"| {task}, {rotation} {line(table)}" for rotation, table in tables.items()]
        means.append(f"| {task} {mean_line(list(tables.values()))}")
    print(
        *lines,
        "",
        "| mean of the rotations | H of each row; intervals above 0, below 0 |",
        "|---|---|",
        *means,
        sep="\n",
    )


def mean_line(tables: list[pd.DataFrame]) -> str:
    """Return the mean H of each method's selected row, best first, and how often its gain is not 0."""
    chosen = pd.concat([table[table.selected | (table.n_seeds == 0)] for table in tables])
    means = chosen.groupby("method").test_h_mean.mean().sort_values(ascending=False)
    own = chosen[chosen.method == "SRE-CLIP"]
    best = statistics.fmean(t[t.method.str.startswith("SRE-CLIP")].test_h_mean.max() for t in tables)
    listed = ", ".join(f"{method} {percent(value)}" for method, value in means.items())
    return f"| {listed}; best SRE-CLIP {percent(best)}; {(own.h_gain_lo > 0).sum()}, {(own.h_gain_hi < 0).sum()} |"


def write_images(folder: Path, labelled: str | list[Artist], drawn: list[Artist], packages: Path) -> None:
    """Write source/CLASS/*, the labelled images, and target/CLASS/*, those of the artists."""
    names = pd.read_parquet(ASSETS / "classes.parquet").set_index("class_id").name
    embedded = pd.read_parquet(ASSETS / "images.parquet")
    if isinstance(labelled, str):
        for row in embedded[embedded.domain == labelled].itertuples():
            (class_folder(folder, "source", names[row.class_id]) / f"{row.Index}.png").write_bytes(row.image)
    emoji = list(codes(packages, embedded))
    for side, artists in (("source", [] if isinstance(labelled, str) else labelled), ("target", drawn)):
        for a, artist in enumerate(artists):
            for code, class_id in emoji:
                picture = artist(packages, code)
                if picture is not None:
                    picture.save(class_folder(folder, side, names[class_id]) / f"{a}-{code}.png")


def codes(packages: Path, embedded: pd.DataFrame) -> Iterator[tuple[str, int]]:
    """Yield the code points of the emoji that the embedded benchmark has, by their names, and their classes."""
    listed = json.loads((packages / "openmoji" / "package" / "data" / "openmoji.json").read_text(encoding="utf-8"))
    known = {_name(entry["annotation"]): entry["hexcode"] for entry in listed if _is_unicode(entry)}
    emoji = embedded[embedded.domain == "emoji"][["icon_name", "class_id"]].drop_duplicates()
    for row in emoji.itertuples():
        if _name(row.icon_name) in known:
            yield known[_name(row.icon_name)], row.class_id


def _is_unicode(entry: dict[str, str]) -> bool:
    return entry["group"] != "extras-openmoji" and not entry["skintone"]


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "")).strip("-")


if __name__ == "__main__":
    main()
