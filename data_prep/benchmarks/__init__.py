"""Benchmarks: which images, labels, classes and splits. One file each; nothing else knows a data set's layout."""

import difflib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_prep.benchmarks import coop, coop_splits, features, folder, hf, i2awa, i2webv, icons2emoji, transfer, xlsa17
from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.own_data import ROLES
from data_prep.errors import UserError

OWN_DATA: dict[str, Callable[[str, Path], Benchmark]] = {
    "folder:": folder.read,
    features.PREFIX: features.read,
    hf.PREFIX: hf.read,
}
"""Readers of a user's own data, by what the benchmark's name begins with: read(name, path)."""
Reader = Callable[[str, Path | None, bool], Benchmark]
"""read(name, data_root, allow_partial)"""
BENCHMARKS: dict[str, Reader] = {
    "icons2emoji": icons2emoji.read,
    icons2emoji.BACK: icons2emoji.read,
    icons2emoji.GZSL: icons2emoji.read,
    "i2awa": i2awa.read,
    "i2webv": i2webv.read,
    **dict.fromkeys(xlsa17.SETS, xlsa17.read),
    **dict.fromkeys(coop_splits.SETS, coop.read),
    **{f"{coop.CROSS}{key}": coop.read for key in coop_splits.SETS | coop_splits.VARIANTS if key != "imagenet"},
}


def get_benchmark(name: str, data_root: Path | None = None, *, allow_partial: bool = False) -> Benchmark:
    """Read the class table and image list of benchmark `name`; images themselves are opened later.

    name: a key of BENCHMARKS (CoOp's take options, see coop.py), "folder:<path>" for your own images or
    "features:<path>" for features of them (a relative path starts at `data_root`, if given), "hf:<path or name>" for a
    data set of Hugging Face's library, or "A->B" to train on A and test on B (see transfer.py). data_root: where the
    published data sets were unpacked; each benchmark's file states the layout. allow_partial: take the part of an
    incomplete data set that is there, and say so in `Benchmark.partial`.
    Raises UserError for an unknown name (with the nearest valid one) and for whatever is wrong with the data.
    """
    if transfer.ARROW in name:
        source, target = name.split(transfer.ARROW, 1)
        return _transfer(source, target, data_root, allow_partial)
    base, colon, options = name.partition(":")
    if base + colon in OWN_DATA:
        path = Path(options).expanduser()
        if data_root and (base + colon != hf.PREFIX or (data_root / str(path).split(ROLES)[0]).exists()):
            path = data_root / path
        bench = OWN_DATA[base + colon](name, path)
        _check_names(bench)
        return bench
    reader = BENCHMARKS.get(base)
    if reader and (reader is coop.read or not options):
        bench = reader(name, data_root, allow_partial)
        _check_names(bench)
        return bench
    valid = [*BENCHMARKS, *(f"{prefix}<path>" for prefix in OWN_DATA)]
    near = difflib.get_close_matches(name, [*BENCHMARKS, *OWN_DATA], n=1, cutoff=0.4)
    hint = f"; did you mean {next(v for v in valid if v.startswith(near[0]))!r}?" if near else ""
    raise UserError(f"must be one of {', '.join(valid)}; got {name!r}{hint}", option="benchmark")


def with_roles(benchmark: str, source: str | None, target: str | None) -> str:
    """Return the name of own data whose labelled and unlabelled parts are said. Raises UserError."""
    if source is None and target is None:
        return benchmark
    if source is None or target is None:
        option, other = ("source", "target") if source is None else ("target", "source")
        raise UserError(f"must be given together with --{other}; got none", option=option)
    if not benchmark.startswith(tuple(OWN_DATA)) or ROLES in benchmark or transfer.ARROW in benchmark:
        rule = f"must come with --benchmark {' or '.join(f'{prefix}PATH' for prefix in OWN_DATA)}"
        raise UserError(f"{rule}; got {benchmark}", option="source")
    return f"{benchmark}{ROLES}{source}{ROLES}{target}"


def _transfer(source: str, target: str, data_root: Path | None, allow_partial: bool) -> Benchmark:
    base, _, options = source.partition(":")
    published = f"{base}-to-{target}"
    if published in BENCHMARKS:  # ImageNet and its variants have layouts of their own
        return get_benchmark(f"{published}:{options}", data_root, allow_partial=allow_partial)
    if base in coop_splits.SETS:  # base-to-novel has shots of half of the classes only
        source = f"{base}:{','.join(filter(None, (options, 'classes=all')))}"
    read = partial(get_benchmark, data_root=data_root, allow_partial=allow_partial)
    bench = transfer.join(read(source), read(target))
    _check_names(bench)
    return bench


def _check_names(bench: Benchmark) -> None:
    """Raise UserError if two classes would be one graph node: by wnid or, outside WordNet, by name."""
    nodes = Counter(zip(bench.classes.wnids, bench.classes.names, strict=True))
    wnids = Counter(wnid for wnid in bench.classes.wnids if wnid)
    twice = [name for (wnid, name), count in nodes.items() if count > 1 or (wnid and wnids[wnid] > 1)]
    if twice:
        raise UserError(f"{bench.name}: classes must differ; 2 of them are {twice[0]!r}", option="benchmark")
