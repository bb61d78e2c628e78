"""The job that writes `assets/wordnet_nouns.parquet` from NLTK's WordNet 3.0 corpus.

Run once by us (`python -m data_prep wordnet`); everything else reads the Parquet file, so neither a corpus download nor
NLTK's five seconds of index building is needed at run time.

One row per noun synset, ordered by wnid. NLTK's noun rules and WordNet's irregular plurals travel in the file's
metadata: morphology needs the dictionary's own exception list, and one file is easier to keep consistent than two.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.errors import UserError
from data_prep.parquet import write_table
from data_prep.storage import locate

SCHEMA = pa.schema(
    [
        ("wnid", pa.string()),  # "n" + the 8-digit offset in WordNet 3.0's data.noun
        ("lemmas", pa.list_(pa.string())),  # spaces, not underscores
        ("senses", pa.list_(pa.int16())),  # sense number of this synset among each lemma's noun senses, 1 = commonest
        ("lexname", pa.string()),
        ("gloss", pa.string()),
        ("hypernyms", pa.list_(pa.string())),  # wnids
        ("instance_hypernyms", pa.list_(pa.string())),
    ]
)
# lexnames(5WN): Debian leaves this file out of wordnet-base, and NLTK does not start without it.
LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person "
    "noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state "
    "noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social "
    "verb.stative verb.weather adj.ppl"
).split()
LEXNAME_POS = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
DICTIONARY_FILES = [f"{kind}.{pos}" for kind in ("data", "index") for pos in ("noun", "verb", "adj", "adv")]
DICTIONARY_FILES += [f"{pos}.exc" for pos in ("noun", "verb", "adj", "adv")]


def build(out: Path, dictionary: Path | None = None) -> int:
    """Write the noun synsets to `out`; return their number.

    dictionary: a folder with WordNet 3.0's `data.noun`, `index.noun` and so on (Debian: package wordnet-base);
    None reads NLTK's own corpus, downloading it if it is missing.
    Raises UserError if the folder lacks a file or the corpus cannot be had.
    """
    with _scratch_on_nltk_path() as scratch:
        reader = _open_reader(dictionary, scratch)
        rows = [_row(synset) for synset in reader.all_synsets("n")]
        exceptions = {
            _spaced(form): [_spaced(base) for base in bases]
            for form, bases in sorted(reader._exception_map["n"].items())
        }
        rules = reader.MORPHOLOGICAL_SUBSTITUTIONS["n"]
    rows.sort(key=lambda row: row["wnid"])
    metadata = {"wordnet": "3.0", "noun_rules": json.dumps(rules), "noun_exceptions": json.dumps(exceptions)}
    folder = locate(out.parent, option="out")
    with folder.writer(out.name) as stream:
        write_table(pa.Table.from_pylist(rows, SCHEMA), stream, metadata=metadata, compression_level=19)
    return len(rows)


@contextmanager
def _scratch_on_nltk_path() -> Iterator[Path]:
    """Hold a temporary folder that NLTK may read: it opens no file outside its data path. Raises `UserError`."""
    try:
        import nltk
    except ImportError as error:
        raise UserError('wordnet needs nltk: pip install -e ".[wordnet]"') from error

    with tempfile.TemporaryDirectory() as scratch:
        nltk.data.path.insert(0, scratch)
        try:
            yield Path(scratch)
        finally:
            nltk.data.path.remove(scratch)


def _open_reader(dictionary: Path | None, scratch: Path) -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """Map nothing to other languages' WordNets: that needs an index.sense file, and nothing here uses it."""

    if dictionary is None:
        try:
            root = nltk.data.find("corpora/wordnet")
        except LookupError:
            if not nltk.download("wordnet", download_dir=str(scratch), quiet=True):
                raise UserError(
                    "must be a folder that holds data.noun: WordNet cannot be downloaded", option="dictionary"
                ) from None
            root = nltk.data.find("corpora/wordnet.zip/wordnet/")
        return Reader(root, None)
    for name in DICTIONARY_FILES:
        if not (dictionary / name).is_file():
            raise UserError(
                f"must hold WordNet 3.0's dictionary files; {dictionary} has no {name}", option="dictionary"
            )
        shutil.copy(dictionary / name, scratch)  # a copy, for NLTK follows no link out of its data path
    lines = [f"{i:02d}\t{name}\t{LEXNAME_POS[name.split('.')[0]]}\n" for i, name in enumerate(LEXNAMES)]
    (scratch / "lexnames").write_text("".join(lines))
    return Reader(str(scratch), None)


def _spaced(lemma: str) -> str:
    return lemma.replace("_", " ")


def _wnid(synset: Any) -> str:
    return f"n{synset.offset():08d}"


def _row(synset: Any) -> dict[str, Any]:
    reader = synset._wordnet_corpus_reader
    offsets = [reader._lemma_pos_offset_map[name.lower()]["n"] for name in synset.lemma_names()]
    return {
        "wnid": _wnid(synset),
        "lemmas": [_spaced(name) for name in synset.lemma_names()],
        "senses": [senses.index(synset.offset()) + 1 for senses in offsets],
        "lexname": synset.lexname(),
        "gloss": synset.definition(),
        "hypernyms": sorted(map(_wnid, synset.hypernyms())),
        "instance_hypernyms": sorted(map(_wnid, synset.instance_hypernyms())),
    }
