"""`python -m data_prep`: build, list and check feature caches, build and ask the WordNet table."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from tyro.conf import OmitArgPrefixes

from data_prep.command_line import CONFIG, Optional
from data_prep.errors import UserError, run_command
from data_prep.options import FeatureOptions

# everything else is imported by the command that needs it: torch takes seconds, and --help needs none

console = Console()


def features(cache: OmitArgPrefixes[FeatureOptions]) -> None:
    """Encode a benchmark's images and texts with CLIP, unless the cache is already there.

    Examples:
      python -m data_prep features
      python -m data_prep features --benchmark folder:my_images --clip openai/clip-vit-base-patch32
    """
    from data_prep.cache_build import prepare
    from data_prep.manifest import read_manifest

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("features", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        def note(text: str) -> None:
            console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

        folder = prepare(cache, progress, note)
    manifest = read_manifest(folder)
    console.print(f"{folder}: {manifest.images - manifest.rejected} images", highlight=False, soft_wrap=True)
    if manifest.rejected:
        console.print(
            f"{manifest.rejected} images cannot be read: see rejected.parquet there", highlight=False, soft_wrap=True
        )
    for remark in manifest.remarks:
        console.print(remark, highlight=False, soft_wrap=True)


def build_wordnet(dictionary: Optional[Path] = None, out: Optional[Path] = None) -> None:
    """Build the table of WordNet 3.0's nouns. It comes with this package: only its maintainers need this.

    Args:
        dictionary: Folder with data.noun, index.noun and so on (Debian: apt install wordnet-base, /usr/share/wordnet).
            Left out, NLTK's corpus is read, and downloaded if missing.
        out: Parquet file to write; the package's own by default.
    """
    from data_prep.wordnet import NOUNS
    from data_prep.wordnet_build import build

    out = out or NOUNS
    console.print(f"{build(out, dictionary)} synsets -> {out}", soft_wrap=True)


def lookup(names: Annotated[tuple[str, ...], tyro.conf.Positional]) -> None:
    """Show the meanings of class names: the wnids to choose from for classes.csv.

    Args:
        names: Class names, such as: mouse "killer whale".
    """
    from data_prep.wordnet import wordnet

    for name in names:
        console.print(f"{name}:", markup=False)
        for synset in wordnet().lookup(name):
            words = ", ".join(synset.lemmas)
            console.print(f"  {synset.wnid}  {words}: {synset.gloss}", markup=False, highlight=False, soft_wrap=True)


def classes(
    path: Annotated[str, tyro.conf.Positional],
    unseen: tuple[str, ...] = (),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Write PATH/classes.csv for a folder of your own images: names of its class folders, a noun sense of each in
    WordNet (look at the column gloss, and at the other senses beside it), and which classes are seen.

    Args:
        path: Folder with CLASS/*, or with source/CLASS/*, target/CLASS/* and the like; or hf:PATH_OR_NAME.
        unseen: Names of the unseen classes, beside those that only the target has. By default every fourth in WordNet.
        seed: Deals other unseen classes.
        force: Write over a classes.csv that is there.
    """
    from data_prep.class_table import table_of, write_class_table
    from data_prep.wordnet import NOT_IN_WORDNET

    guesses = write_class_table(path, unseen=unseen, seed=seed, force=force)
    for guess in guesses:
        text = f"  {guess.name}: {guess.wnid}  {guess.gloss}"
        text += f"  ({guess.place} of {guess.senses})" if guess.senses > 1 else ""
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{table_of(path)}: look at the senses before you use it", markup=False, soft_wrap=True)
    if all(guess.wnid == NOT_IN_WORDNET for guess in guesses):
        console.print("no class is in WordNet: methods with a graph have no edges between these classes", markup=False)


def list_(cache_dir: str = ".cache") -> None:
    """List benchmarks, and the caches of a folder.

    Args:
        cache_dir: Folder or URI where caches are kept.
    """
    from data_prep.benchmarks import BENCHMARKS, OWN_DATA
    from data_prep.manifest import MANIFEST, read_manifest
    from data_prep.storage import locate

    console.print("benchmarks:", *BENCHMARKS, *(f"{prefix}<path>" for prefix in OWN_DATA), highlight=False)
    caches = locate(cache_dir, option="cache_dir")
    for name in caches.names(recursive=True):
        if not name.endswith(f"/{MANIFEST}"):
            continue
        cache = (caches / name.rpartition("/")[0]).shown
        try:
            manifest = read_manifest(cache)
            text = f"{manifest.benchmark}, {manifest.clip}, {manifest.images} images"
            text += f", partial: {manifest.partial}" if manifest.partial else ""
        except UserError as error:
            text = str(error)
        console.print(f"{cache}: {text}", markup=False, highlight=False, soft_wrap=True)


def verify(
    caches: Annotated[tuple[str, ...], tyro.conf.Positional],
    samples: int = 32,
    clip: Optional[str] = None,
    data_root: Optional[Path] = None,
) -> None:
    """Check every file of feature caches against their manifests, and a sample of features against the checkpoint.

    Args:
        caches: Cache folders or URIs.
        samples: Texts, and images of each domain, that are encoded again; 0 checks the files only.
        clip: Their checkpoint, where it is neither a hub id nor the benchmark's own.
        data_root: Where the data sets were unpacked.
    """
    from data_prep import feature_store
    from data_prep.recompute import recompute

    for cache in track(caches, description="verify", console=console, transient=True):
        files = feature_store.verify(cache)
        text = f"{cache}: {len(files)} files as written"
        if samples:
            lowest = recompute(cache, clip=clip, data_root=data_root, samples=samples)
            text += f", {samples} texts and {2 * samples} images as the checkpoint gives them (cosine {lowest:.5f})"
        console.print(text, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "features": features,
    "list": list_,
    "verify": verify,
    "classes": classes,
    "lookup": lookup,
    "wordnet": build_wordnet,
}


def _program() -> str:
    """Return what the user typed to get here."""
    return sys.argv[0] if sys.argv[0].startswith("zerosweep ") else "python -m data_prep"


def main() -> int:
    """Run a command and return its exit code."""
    return run_command(
        lambda: tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=_program(), description=__doc__, config=CONFIG)
    )


if __name__ == "__main__":
    sys.exit(main())
