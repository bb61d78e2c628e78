"""Which noun sense a class name has: the names of a data set say it of each other.

Beside "tiger" and "zebra", "seal" is an animal; WordNet's own order has a stamp first. The classes are taken for draws
from WordNet's tree: a class goes from the root down to its sense, and takes a branch as often as the other classes do.
Senses and shares of branches are found in turn, by expectation maximisation (Dempster et al., 1977).

A class table may name the senses itself; `resolve_wnids` asks for those that are not plain.
"""

import math
from collections import Counter
from collections.abc import Sequence

from data_prep.errors import UserError
from data_prep.wordnet import NOT_IN_WORDNET, Synset, WordNet, wordnet

STRENGTH = 10.0
"""WordNet's own shares of branches count as much as so many classes (a Dirichlet prior at each node)."""
NEXT_SENSE = 0.8
"""How likely a sense is beside the one before it, in WordNet's order of frequency, before other names are looked at."""
ROUNDS = 10
SHOWN_CANDIDATES = 8

Shares = dict[str, float]
"""Of nodes of the tree: expected number of classes under each."""


def likely_senses(names: Sequence[str], net: WordNet) -> list[list[Synset]]:
    """Return each name's noun senses, most likely first; an empty list for a name that WordNet lacks."""
    synsets_under = Counter(node for wnid in net.synsets for node in net.path_to_root(wnid))
    senses = [net.lookup(name) for name in names]
    paths = [[net.path_to_root(sense.wnid) for sense in of_name] for of_name in senses]
    ranks = [[k * math.log(NEXT_SENSE) for k in range(len(of_name))] for of_name in senses]
    chances = [_normalised(of_name) for of_name in ranks]

    def log_chance(path: tuple[str, ...], classes: Shares, own: Shares) -> float:
        total = 0.0
        for child, parent in zip(path[:-1], path[1:], strict=True):
            prior = STRENGTH * synsets_under[child] / synsets_under[parent]
            under_child, under_parent = (classes[node] - own.get(node, 0.0) for node in (child, parent))
            total += math.log((under_child + prior) / (under_parent + STRENGTH))
        return total

    for _ in range(ROUNDS):
        own = [_classes_under(*of_name) for of_name in zip(paths, chances, strict=True)]
        classes: Shares = {}
        for of_name in own:
            for node, share in of_name.items():
                classes[node] = classes.get(node, 0.0) + share
        chances = [
            _normalised([rank + log_chance(path, classes, mine) for path, rank in zip(*of_name, strict=True)])
            for *of_name, mine in zip(paths, ranks, own, strict=True)
        ]
    return [
        [sense for _, sense in sorted(zip(chance, of_name, strict=True), key=lambda pair: -pair[0])]
        for chance, of_name in zip(chances, senses, strict=True)
    ]


def _classes_under(paths: Sequence[tuple[str, ...]], chances: Sequence[float]) -> Shares:
    """Return the nodes above a name's senses, and how likely the name is under each."""
    under: Shares = {}
    for path, chance in zip(paths, chances, strict=True):
        for node in path:
            under[node] = under.get(node, 0.0) + chance
    return under


def _normalised(logs: Sequence[float]) -> list[float]:
    largest = max(logs, default=0.0)
    weights = [math.exp(log - largest) for log in logs]
    return [weight / sum(weights) for weight in weights]


def one_each(likely: Sequence[Sequence[Synset]]) -> list[Synset | None]:
    """Return the likeliest sense of each name that no name before it has: a synset is one class's only."""
    taken: set[str] = set()
    found = []
    for senses in likely:
        sense = next((sense for sense in senses if sense.wnid not in taken), None)
        taken |= {sense.wnid} if sense else set()
        found.append(sense)
    return found


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
    likely, lines, first = likely_senses(names, net), list[str](), list[str]()
    free = one_each(likely)
    for place in places:
        name, senses, sense = names[place], likely[place], free[place]
        lines.append(f"  {name!r} {'is ambiguous' if senses else 'is no noun of WordNet'}")
        lines += [f"    {s.wnid}  {', '.join(s.lemmas)}: {s.gloss}" for s in senses[:SHOWN_CANDIDATES]]
        first.append(f"{name} {sense.wnid if sense else NOT_IN_WORDNET}")
    return "\n".join([*lines, f"The likeliest beside the other names: {', '.join(first)}"])


def check_unique(names: Sequence[str], wnids: Sequence[str | None], *, where: str) -> None:
    """Raise UserError where two classes share a wnid: one synset cannot be two classes."""
    first_with: dict[str, str] = {}
    for name, wnid in zip(names, wnids, strict=True):
        if wnid is not None and first_with.setdefault(wnid, name) != name:
            raise UserError(f"{where} must be unique; classes {first_with[wnid]!r} and {name!r} both have {wnid}")
