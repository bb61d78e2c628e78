"""WordNet 3.0's nouns from the embedded Parquet file: synsets by wnid, and class names looked up as lemmas."""

import gc
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from data_prep.errors import UserError

NOUNS = Path(__file__).parent / "assets" / "wordnet_nouns.parquet"
NOT_IN_WORDNET = "-"  # stands in a class table in place of the wnid of a class that WordNet lacks
SHOWN_CANDIDATES = 8


class Synset(NamedTuple):  # 82,115 of them: a frozen dataclass takes a second longer
    """A noun sense of WordNet."""

    wnid: str
    """"n" and the 8-digit offset in WordNet 3.0."""
    name: str
    """NLTK's name of it, such as "dog.n.01"."""
    lemmas: tuple[str, ...]
    """Its words, commonest first, with spaces."""
    gloss: str
    """The definition, without examples."""
    hypernyms: tuple[str, ...]
    """Parents' wnids."""
    instance_hypernyms: tuple[str, ...]
    """Parents of an instance ("Paris" -> "city"), as wnids."""


class WordNet:
    """All noun synsets in memory (use `wordnet()` to share one)."""

    def __init__(self, path: Path = NOUNS) -> None:
        table = pq.read_table(path)
        metadata = table.schema.metadata
        self._exceptions: dict[str, list[str]] = json.loads(metadata[b"noun_exceptions"])
        self._rules: list[tuple[str, str]] = json.loads(metadata[b"noun_rules"])
        self.synsets: dict[str, Synset] = {}
        senses_of: dict[str, list[tuple[int, str]]] = {}
        columns = {name: table[name].to_pylist() for name in table.column_names}
        for i, wnid in enumerate(columns["wnid"]):
            self.synsets[wnid] = Synset(
                wnid=wnid,
                name=f"{columns['lemmas'][i][0].lower().replace(' ', '_')}.n.{columns['senses'][i][0]:02d}",
                lemmas=tuple(columns["lemmas"][i]),
                gloss=columns["gloss"][i],
                hypernyms=tuple(columns["hypernyms"][i]),
                instance_hypernyms=tuple(columns["instance_hypernyms"][i]),
            )
            for lemma, sense in zip(columns["lemmas"][i], columns["senses"][i], strict=True):
                senses_of.setdefault(lemma.lower(), []).append((sense, wnid))
        self._wnids_of = {lemma: tuple(wnid for _, wnid in sorted(senses)) for lemma, senses in senses_of.items()}

    def lookup(self, name: str) -> tuple[Synset, ...]:
        """Return the noun synsets that `name` may mean, commonest sense first; () if there is none.

        `_`, `+` and `-` may stand for spaces, accents do not matter, a plural finds its singular, and two words find
        the one that WordNet makes of them. The singular comes from WordNet's morphy, done here with NLTK's detachment
        rules and WordNet's exception list out of the Parquet file, because NLTK's own method needs the whole corpus on
        disk. Like NLTK's, an irregular form is not also taken apart by rule.
        """
        decomposed = unicodedata.normalize("NFKD", name.replace("’", "'").replace("_", " ").replace("+", " "))
        plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))  # "piñata" is "pinata"
        spoken = " ".join(plain.lower().split())
        forms = [spoken]
        if "-" in spoken:
            forms.append(" ".join(spoken.replace("-", " ").split()))
        for form in tuple(forms):
            singulars = self._exceptions.get(form)
            forms += singulars or [form.removesuffix(old) + new for old, new in self._rules if form.endswith(old)]
        wnids = dict.fromkeys(wnid for form in forms for wnid in self._wnids_of.get(form, ()))
        if not wnids:  # "wine glass" is "wineglass" there
            wnids = dict.fromkeys(wnid for form in forms for wnid in self._wnids_of.get(form.replace(" ", ""), ()))
        return tuple(self.synsets[wnid] for wnid in wnids)

    def path_to_root(self, wnid: str) -> tuple[str, ...]:
        """Return a synset and its ancestors up to the root, by the first parent of each; () for what is no synset."""
        path = []
        while wnid in self.synsets:
            path.append(wnid)
            synset = self.synsets[wnid]
            wnid = next(iter(synset.hypernyms + synset.instance_hypernyms), "")
        return tuple(path)

    def spelled(self, given: str) -> str:
        """Return a wnid, whichever way it is written: n02084071, 02084071, 2084071, N02084071, dog.n.01.

        What is none of these comes back as it is.
        """
        text = given.strip()
        if match := re.fullmatch(r"[nN]?-?(\d{5,8})(?:-?[nN])?", text):
            return f"n{int(match[1]):08d}"
        if match := re.fullmatch(r"(.+)\.[nN]\.(\d+)", text):
            senses = self._wnids_of.get(match[1].replace("_", " ").lower(), ())
            return senses[int(match[2]) - 1] if 0 < int(match[2]) <= len(senses) else text
        return text


@cache
def wordnet() -> WordNet:
    """Return the embedded WordNet, loaded once per process."""
    collects = gc.isenabled()
    gc.disable()  # it would look for garbage among the new objects again and again: two thirds of the time
    try:
        return WordNet()
    finally:
        if collects:
            gc.enable()


def resolve_wnids(names: Sequence[str], wnids: Sequence[str], *, where: str) -> tuple[str | None, ...]:
    """Return the wnid of every class: the given one, else the only noun synset of that name, or None for a given "-".

    names, wnids: (C,), an empty wnid means "look it up". where: the file and column an override goes to.
    Raises UserError on unknown or duplicate wnids, and one that lists, for every ambiguous or missing name, the
    candidates with their glosses, the likeliest beside the other names first.
    """
    net = wordnet()
    resolved: list[str | None] = []
    open_places: list[int] = []
    for place, (name, given) in enumerate(zip(names, wnids, strict=True)):
        if given.strip():
            wnid = net.spelled(given)
            if wnid != NOT_IN_WORDNET and wnid not in net.synsets:
                raise UserError(
                    f"{where} must be a noun of WordNet 3.0, as n02084071 or dog.n.01; class {name!r} has {given!r}"
                )
            resolved.append(None if wnid == NOT_IN_WORDNET else wnid)
            continue
        candidates = net.lookup(name)
        if len(candidates) == 1:
            resolved.append(candidates[0].wnid)
            continue
        open_places.append(place)
    if open_places:
        raise UserError(
            f"{len(open_places)} of {len(names)} class names need a wnid in {where} "
            f"('{NOT_IN_WORDNET}' for a class that WordNet lacks):\n" + _questions(names, open_places, net)
        )
    check_unique(names, resolved, where=where)
    return tuple(resolved)


def _questions(names: Sequence[str], places: Sequence[int], net: WordNet) -> str:
    """Return the senses of the names at `places`, the likeliest first, and a line with the likeliest of each."""
    from data_prep.word_senses import likely_senses  # which reads WordNet from here

    likely, lines, first = likely_senses(names, net), list[str](), list[str]()
    for place in places:
        name, senses = names[place], likely[place]
        lines.append(f"  {name!r} {'is ambiguous' if senses else 'is no noun of WordNet'}")
        lines += [f"    {s.wnid}  {', '.join(s.lemmas)}: {s.gloss}" for s in senses[:SHOWN_CANDIDATES]]
        first.append(f"{name} {senses[0].wnid if senses else NOT_IN_WORDNET}")
    return "\n".join([*lines, f"The likeliest beside the other names: {', '.join(first)}"])


def check_unique(names: Sequence[str], wnids: Sequence[str | None], *, where: str) -> None:
    """Raise UserError where two classes share a wnid: one synset cannot be two classes."""
    first_with: dict[str, str] = {}
    for name, wnid in zip(names, wnids, strict=True):
        if wnid is not None and first_with.setdefault(wnid, name) != name:
            raise UserError(f"{where} must be unique; classes {first_with[wnid]!r} and {name!r} both have {wnid}")
