"""SRE-CLIP Adapter's search space.

Defaults are rounded from the selected configurations of studies of the embedded benchmark's four rotations
(README.md of this folder).
Ranges are those in which random configurations of that benchmark neither stood still nor fell apart.
"""

from models.sre_clip import SREConfig
from search_spaces import Knob, Space, learning_rate, weight_decay

SPACE = Space(
    name="sre",
    method="SRE-CLIP",
    config=SREConfig,
    benchmark="icons2emoji",
    criterion="h+mi",
    baselines=("calibrated-stacking", "tip-adapter", "linear-probe"),  # the others take minutes: --baselines LIST
    knobs=(
        Knob(
            name="adapter",
            scope="static",
            choices=("memory", "tokens"),
            default="memory",
            why="which attention bends the image feature: learned slots, or the feature's own slices",
        ),
        Knob(
            name="gcn_layers",
            scope="static",
            low=0,
            high=2,
            default=1,
            why="hops over WordNet; 0 leaves the residual projection alone, more than 2 over-smooths 200 classes",
        ),
        Knob(
            name="adjacency",
            scope="static",
            choices=("row", "symmetric", "identity"),
            default="row",
            when=("gcn_layers", (1, 2)),
            why="how neighbours are averaged; identity is the same network without a graph: the graph has to earn it",
        ),
        Knob(
            name="gcn_width",
            scope="static",
            choices=(64, 128, 256),
            default=128,
            when=("gcn_layers", (2,)),
            why="hidden width between two graph layers",
        ),
        learning_rate(
            low=2e-4,
            high=2e-3,
            default=5e-4,
            why="below it nothing moves in an adapter's few hundred steps, above it unseen accuracy goes first",
        ),
        weight_decay(
            high=1e-2,
            default=4e-5,
            why="pulls the residual projection away from the identity too, so it is no free lunch",
        ),
        Knob(
            name="rho",
            scope="lane",
            low=0.2,
            high=3.0,
            log=True,
            default=0.5,
            why="how far the image adapter may move a feature of length one",
        ),
        Knob(
            name="residual_scale",
            scope="lane",
            low=0.3,
            high=3.0,
            log=True,
            default=0.8,
            why="CLIP's own prototype against the graph's correction of it",
        ),
        Knob(
            name="w_srs",
            scope="lane",
            low=0.01,
            high=1.0,
            log=True,
            default=0.3,
            why="soft labels from related classes; large values flatten the classifier",
        ),
        Knob(
            name="w_align",
            scope="lane",
            low=0.05,
            high=2.0,
            log=True,
            default=0.4,
            why="keeps class texts on their prototypes, unseen ones included",
        ),
        Knob(
            name="w_ent",
            scope="lane",
            low=0.3,
            high=6.0,
            log=True,
            default=4.0,
            why="confident target predictions; alone it collapses them onto a few classes",
        ),
        Knob(
            name="w_div",
            scope="lane",
            low=1.0,
            high=15.0,
            log=True,
            default=8.0,
            why="spreads target predictions over all classes: the counterweight of w_ent",
        ),
        Knob(
            name="w_bal",
            scope="lane",
            low=0.3,
            high=10.0,
            log=True,
            default=1.5,
            why="keeps unseen classes their share of the target",
        ),
        Knob(
            name="relation_temperature",
            scope="lane",
            low=0.03,
            high=0.3,
            log=True,
            default=0.1,
            why="cosines of prototypes differ by tenths: below, only the class itself counts; above, all classes do",
        ),
        Knob(
            name="pseudo_label_threshold",
            scope="lane",
            low=0.1,
            high=0.9,
            default=0.4,
            why="confidence from which a target image teaches relations",
        ),
        Knob(
            name="target_temperature",
            scope="lane",
            low=0.7,
            high=1.5,
            log=True,
            default=1.0,
            why="softness of target predictions inside the unlabelled losses",
        ),
        Knob(
            name="unseen_prior",
            scope="lane",
            low=0.8,
            high=1.2,
            default=1.0,
            why="unseen share of target images relative to the unseen share of classes; unknown, so searched near 1",
        ),
    ),
)
