"""Classify images with an exported adapter: `python study/predict.py --adapter STUDY/adapters/selected image.png`."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

from tyro.conf import Positional, UseAppendAction  # noqa: E402

from data_prep.command_line import parse, with_help  # noqa: E402
from data_prep.errors import UserError, run_command, some_of  # noqa: E402

if TYPE_CHECKING:
    from study.outputs.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
@with_help
class PredictOptions:
    """Classify images with an exported adapter; needs neither Ray nor the feature cache. Uses a GPU if there is one.

    Examples:
      python study/predict.py cat.png --adapter results/NAME/adapters/selected
      python study/predict.py photos/ --adapter results/NAME/adapters/selected --output predictions.csv
    """

    images: Positional[tuple[str, ...]] = ()
    """Image files, and folders: of a folder, all images below it."""
    list: Path | None = None
    """Text file (UTF-8) with a path on each line; - reads the standard input."""
    adapter: str
    """Folder or URI of an adapter: <study>/adapters/selected is the one that selection chose, <study>/adapters/ensemble
    all refits of the method, which vote, <study>/adapters/3 that of rank 3."""
    plugin: UseAppendAction[tuple[str, ...]] = ()
    """File or module with the adapter's method, where it is one of your own."""
    output: Path | None = None
    """File to write instead of printing: .csv (a row for each image and class), .json or .jsonl (an object for each
    image)."""
    clip: str | None = None
    """The checkpoint it was trained with, hub id or local folder; found by itself if it is embedded or was downloaded
    before."""
    allow_download: bool = False
    """Download the Hugging Face repository that the adapter names, in the revision that it names."""
    classes: str = ""
    """New classes that compete beside the adapter's own, separated by commas: NAME, or NAME=WNID where WordNet knows
    several things of that name."""
    top: int = 5
    """Classes shown for every image."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"must be at least 1, got {self.top}", option="top")
        if not self.images and self.list is None:
            raise UserError("IMAGES must be at least one file or folder, or a --list of them; got none")
        if self.output and self.output.suffix not in FORMATS:
            raise UserError(f"must end in {', '.join(FORMATS)}; got {self.output}", option="output")


def main(arguments: list[str] | None = None) -> int:
    """Print or write every image's classes; return 0 when done, 2 for a mistake in the options or files."""

    def predict() -> None:
        options = parse(PredictOptions, arguments)
        # torch takes seconds: --help does not wait for it
        from rich.console import Console
        from rich.progress import track

        from search_spaces.plugins import load_plugins
        from study.outputs.prediction import Adapter, find_images

        load_plugins(options.plugin)
        images = find_images([*options.images, *_listed(options.list)])
        adapter = Adapter.load(options.adapter, clip=options.clip, allow_download=options.allow_download)
        if options.classes:
            adapter = adapter.with_classes(*options.classes.split(","))
        unreadable = []
        console = Console(stderr=True)
        with _writer(options.output) as write:
            found = adapter.predictions(images, top=options.top)
            hidden = options.output is None or not console.is_terminal  # what is printed shows how far it is
            for prediction in track(found, "predict", len(images), console=console, transient=True, disable=hidden):
                write(prediction)
                if prediction.error:
                    unreadable.append(f"{prediction.image}: {prediction.error}")
        if unreadable:
            raise UserError(
                f"IMAGES must be readable, {len(unreadable)} of {len(images)} are not: {some_of(unreadable)}"
            )

    return run_command(predict)


def _listed(path: Path | None) -> list[str]:
    """Return the paths that a list names. Raises `UserError`."""
    if path is None:
        return []
    try:
        lines = (sys.stdin if str(path) == "-" else path.open(encoding="utf-8-sig")).read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"must be a text file in UTF-8; {path}: {error}", option="list") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"must name at least one image; {path} names none", option="list")
    return found


@contextmanager
def _writer(output: Path | None) -> "Iterator[Callable[[Prediction], object]]":
    """Open what takes the predictions, one by one. Each is there as soon as it is known. Raises `UserError`."""
    if output is None:
        yield lambda prediction: print(_line(prediction), flush=True)
        return
    try:
        # surrogates: names of files that are not UTF-8 are written as they are
        with output.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            with FORMATS[output.suffix](file) as write:
                yield write
    except OSError as error:
        raise UserError(f"must be a file that can be written; {output}: {error.strerror}", option="output") from error


def _line(prediction: "Prediction") -> str:
    shares = ", ".join(f"{name} {100 * p:.1f} %" for name, p in prediction.classes)
    return f"{prediction.image}: {shares or f'cannot be read: {prediction.error}'}"


@contextmanager
def _csv(file: IO[str]) -> "Iterator[Callable[[Prediction], object]]":
    from data_prep.parquet import plain_cell

    table = csv.writer(file)
    table.writerow(("image", "rank", "class", "probability", "error"))

    def write(prediction: "Prediction") -> None:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            table.writerow((plain_cell(prediction.image), rank, plain_cell(name), f"{probability:.6g}", ""))
        if prediction.error:
            table.writerow((plain_cell(prediction.image), "", "", "", prediction.error))

    yield write


@contextmanager
def _json(file: IO[str]) -> "Iterator[Callable[[Prediction], object]]":
    separators = iter("[")
    try:
        yield lambda prediction: file.write(f"{next(separators, ',')}\n{_object(prediction)}")
    finally:
        file.write(f"{next(separators, '')}\n]\n")  # after Ctrl-C as well: what is there can be read


@contextmanager
def _json_lines(file: IO[str]) -> "Iterator[Callable[[Prediction], object]]":
    yield lambda prediction: file.write(f"{_object(prediction)}\n")


def _object(prediction: "Prediction") -> str:
    classes = [{"name": name, "probability": round(p, 8)} for name, p in prediction.classes]
    entry = {"image": prediction.image, "classes": classes}
    return json.dumps(entry | ({"error": prediction.error} if prediction.error else {}), ensure_ascii=False)


FORMATS = {".csv": _csv, ".json": _json, ".jsonl": _json_lines}
"""How predictions are written, by the end of the file's name."""


if __name__ == "__main__":
    sys.exit(main())
