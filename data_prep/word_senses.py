"""Which noun sense a class name has: the names of a data set say it of each other.

Beside "tiger" and "zebra", "seal" is an animal; WordNet's own order has a stamp first. The classes are taken for draws
from WordNet's tree: a class goes from the root down to its sense, and takes a branch as often as the other classes do.
Senses and shares of branches are found in turn, by expectation maximisation (Dempster et al., 1977).
"""

import math
from collections import Counter
from collections.abc import Sequence

from data_prep.wordnet import Synset, WordNet

STRENGTH = 10.0
"""WordNet's own shares of branches count as much as so many classes (a Dirichlet prior at each node)."""
NEXT_SENSE = 0.8
"""How likely a sense is beside the one before it, in WordNet's order of frequency, before other names are looked at."""
ROUNDS = 10

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
