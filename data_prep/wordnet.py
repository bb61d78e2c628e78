"""WordNet 3.0's nouns from the embedded Parquet file: synsets by wnid, and class names looked up as lemmas."""

import gc
import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

NOUNS = Path(__file__).parent / "assets" / "wordnet_nouns.parquet"
NOT_IN_WORDNET = "-"  # stands in a class table in place of the wnid of a class that WordNet lacks


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
