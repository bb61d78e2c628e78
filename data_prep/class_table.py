"""Write the class table of a folder of images: names, WordNet's senses, and which classes are seen."""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.benchmarks import hf
from data_prep.benchmarks.folder import class_places, holds_unlabelled
from data_prep.benchmarks.own_data import CLASSES, DOMAIN_NAMES, spoken
from data_prep.errors import UserError, nearest
from data_prep.word_senses import likely_senses, one_each
from data_prep.wordnet import NOT_IN_WORDNET, WordNet, wordnet

UNSEEN = 4
"""One class in so many is unseen."""
SHOWN_SENSES = 5


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class and the sense that its name is taken for."""

    name: str
    """Name of its folder, with spaces."""
    wnid: str
    """The likeliest noun sense that no class before it has; "-" outside WordNet."""
    senses: int
    """Noun senses of the name."""
    place: int = 0
    """Place of the sense among them, in WordNet's own order, from 1."""
    others: tuple[str, ...] = ()
    """The other senses, wnid and gloss."""
    gloss: str = ""
    """Definition of the sense."""

    @property
    def why(self) -> str:
        """Where the sense is from: its place among the name's senses, or why there is none."""
        if self.place:
            return f"{self.place} of {self.senses}"
        return "other classes have its senses" if self.senses else "not in WordNet"


def guess_senses(names: Sequence[str], net: WordNet) -> list[Guess]:
    """Return a sense for every name; each synset is one class's only."""
    of_names = likely_senses(names, net)
    found = []
    for name, likely, sense in zip(names, of_names, one_each(of_names), strict=True):
        others = tuple(f"{s.wnid} {s.gloss}" for s in likely if s is not sense)[:SHOWN_SENSES]
        if sense is None:
            found.append(Guess(name=name, wnid=NOT_IN_WORDNET, senses=len(likely), others=others))
            continue
        place = net.lookup(name).index(sense) + 1
        found.append(
            Guess(name=name, wnid=sense.wnid, senses=len(likely), place=place, gloss=sense.gloss, others=others)
        )
    return found


def deal_unseen(guesses: Sequence[Guess], net: WordNet, seed: int) -> set[str]:
    """Return the names of a quarter of the classes, spread over WordNet: every fourth in the order of its tree."""

    def place(guess: Guess) -> tuple[str, ...]:
        return (*reversed(net.path_to_root(guess.wnid)), guess.name)

    first = random.Random(seed).randrange(UNSEEN)
    in_order = [guess.name for guess in sorted(guesses, key=place)]
    return set(in_order[first::UNSEEN]) or {in_order[-1]}


def _only_in(domain: str, places: Mapping[str, set[str]]) -> set[str]:
    """Return the classes that one domain alone has, where the names of folders or splits say which that is."""
    return {name for name, of_class in places.items() if {DOMAIN_NAMES.get(p.lower()) for p in of_class} == {domain}}


def table_of(root: str | Path) -> Path:
    """Return where the class table of a folder, or of a data set "hf:...", is."""
    path = Path(str(root).removeprefix(hf.PREFIX))
    return hf.class_table(path) if str(root).startswith(hf.PREFIX) else path / CLASSES


def write_class_table(
    root: str | Path, *, unseen: Sequence[str] = (), seed: int = 0, force: bool = False
) -> list[Guess]:
    """Write the class table of a folder, or of a data set "hf:...", from the names of its classes.

    Unseen are the classes that the target alone has, and those of `unseen`; where there are none, a quarter is dealt.
    Return what was guessed. Raises UserError.
    """
    path = table_of(root)
    if path.exists() and not force:
        raise UserError(f"must be given to write over {path}, which is there", option="force")
    is_hf = str(root).startswith(hf.PREFIX)
    places = hf.class_places(str(root).removeprefix(hf.PREFIX)) if is_hf else class_places(Path(root))
    names = sorted(places)
    if len(names) < 2:
        raise UserError(f"must hold a folder for each of at least two classes; {root} has {len(names)}", option="path")
    unseen = [spoken(name) for name in unseen]
    unlabelled = not is_hf and holds_unlabelled(Path(root))
    if unlabelled:  # an unseen class may have no folder
        names = sorted({*names, *unseen})
    for name in unseen:
        if name not in names:
            raise UserError(f"must be classes of {root}; got {name!r}{nearest(name, names)}", option="unseen")
    guesses = guess_senses(names, wordnet())
    not_seen = set(unseen) | _only_in("target", places)
    if not not_seen:
        untested = set() if unlabelled else _only_in("source", places)
        not_seen = deal_unseen([guess for guess in guesses if guess.name not in untested] or guesses, wordnet(), seed)
    if len(not_seen) == len(names):
        raise UserError(f"must leave a seen class; got all {len(names)}", option="unseen")
    rows = [
        {
            "name": guess.name,
            "wnid": guess.wnid,
            "seen": int(guess.name not in not_seen),
            "guess": guess.why,
            "gloss": guess.gloss,
            "other senses": " | ".join(guess.others),
        }
        for guess in guesses
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return guesses
