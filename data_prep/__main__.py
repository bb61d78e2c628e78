"""`python -m data_prep`: build, list and check feature caches, build and ask the WordNet table."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep import UserError, feature_store
from data_prep.benchmarks import BENCHMARKS, FOLDER_PREFIX
from data_prep.prepare import prepare
from data_prep.wordnet import NOUNS, wordnet

console = Console()


def features(
    benchmark: str = "icons2emoji",
    clip: str | None = None,
    data_root: Path | None = None,
    cache_dir: Path = Path(".cache"),
    rebuild: bool = False,
    allow_partial: bool = False,
    templates: tuple[str, ...] = (),
) -> None:
    """Encode a benchmark's images and texts with CLIP, unless the cache is already there.

    Examples:
      python -m data_prep features
      python -m data_prep features --benchmark folder:my_images --clip openai/clip-vit-base-patch32

    Args:
        benchmark: A name from `python -m data_prep list`, or folder:PATH with PATH/DOMAIN/CLASS/*.jpg and
            PATH/classes.csv. CoOp's sets take options: dtd:shots=16,seed=2.
        clip: Checkpoint folder or Hugging Face id; the benchmark's own if left out.
        data_root: Where the data sets were unpacked, and where a relative folder:PATH starts.
        cache_dir: Where caches are kept, one folder each, named by benchmark and fingerprint.
        rebuild: Build it even if it is there.
        allow_partial: Go on with what is there of an incomplete data set. The cache says that it is partial.
        templates: A template set (single, imagenet7, imagenet80, ...) or prompts with {}; the benchmark's own if left
            out.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("features", total=None)
        cache = prepare(
            benchmark=benchmark,
            clip=clip,
            data_root=data_root,
            cache_dir=cache_dir,
            rebuild=rebuild,
            allow_partial=allow_partial,
            templates=templates or None,
            progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
    console.print(cache, soft_wrap=True)


def build_wordnet(dictionary: Path | None = None, out: Path = NOUNS) -> None:
    """Build the table of WordNet 3.0's nouns. It comes with this package: only its maintainers need this.

    Args:
        dictionary: Folder with data.noun, index.noun and so on (Debian: apt install wordnet-base, /usr/share/wordnet).
            Left out, NLTK's corpus is read, and downloaded if missing.
        out: Parquet file to write.
    """
    from data_prep.wordnet_build import build

    console.print(f"{build(out, dictionary)} synsets -> {out}", soft_wrap=True)


def lookup(names: Annotated[tuple[str, ...], tyro.conf.Positional]) -> None:
    """Show what class names may mean: the wnids to choose from for classes.csv.

    Args:
        names: Class names, such as: mouse "killer whale".
    """
    for name in names:
        console.print(f"{name}:", markup=False)
        for synset in wordnet().lookup(name):
            words = ", ".join(synset.lemmas)
            console.print(f"  {synset.wnid}  {words}: {synset.gloss}", markup=False, highlight=False, soft_wrap=True)


def list_(cache_dir: Path = Path(".cache")) -> None:
    """List benchmarks and the caches there are.

    Args:
        cache_dir: Where caches are kept.
    """
    console.print("benchmarks:", *BENCHMARKS, f"{FOLDER_PREFIX}<path>", highlight=False)
    for manifest in sorted(cache_dir.glob(f"*/{feature_store.MANIFEST}")):
        try:
            facts = feature_store.read_manifest(manifest.parent)
            text = f"{facts['benchmark']}, {facts['clip']}, {facts['inputs']['images']['count']} images"
            partial = facts["inputs"].get("partial")
            text += f", partial: {partial}" if partial else ""
        except UserError as error:
            text = str(error)
        console.print(f"{manifest.parent}: {text}", markup=False, highlight=False, soft_wrap=True)


def verify(caches: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Check every file of feature caches against their manifests.

    Args:
        caches: Cache folders.
    """
    for cache in caches:
        files = feature_store.verify(cache)
        console.print(f"{cache}: {len(files)} files as written", highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "features": features,
    "list": list_,
    "verify": verify,
    "lookup": lookup,
    "wordnet": build_wordnet,
}


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m data_prep", description=__doc__)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
