"""SRE-CLIP Adapter's search space.

Ranges are neutral: what one would write down before seeing any data. A weight may be ten times smaller or larger than
1, a temperature of cosines lies between CLIP's own (1 / 100) and 1, AdamW's rate within a power of ten around 1e-3.
The default configuration is the middle of every range.
"""

from models.sre_clip import SREConfig
from search_spaces import Knob, Space, learning_rate, weight, weight_decay

SPACE = Space(
    name="sre",
    method="SRE-CLIP",
    config=SREConfig,
    benchmark="icons2emoji",
    criterion="consensus",
    # the quick ones (the others take minutes: --baselines LIST), and those that see the target images, as SRE-CLIP does
    baselines=("calibrated-stacking", "tip-adapter", "linear-probe", "zlap", "transclip", "inmap", "transductive-vote"),
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
            why="hops over WordNet; 0 leaves the residual projection alone, many make all classes alike",
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
        learning_rate(low=1e-4, high=1e-2, default=1e-3, why="how far training goes in its few hundred steps"),
        weight_decay(why="pulls the residual projection away from the identity too, so it is no free lunch"),
        weight("rho", why="how far the image adapter may move a feature of length one"),
        weight("residual_scale", why="CLIP's own prototype against the graph's correction of it"),
        weight("w_srs", why="soft labels from related classes; large values flatten the classifier"),
        weight("w_align", why="keeps class texts on their prototypes, unseen ones included"),
        weight("w_ent", why="confident target predictions; alone it collapses them onto a few classes"),
        weight("w_div", why="spreads target predictions over all classes: the counterweight of w_ent"),
        weight("w_bal", why="keeps unseen classes their share of the target"),
        Knob(
            name="relation_temperature",
            scope="lane",
            low=0.01,
            high=1.0,
            log=True,
            default=0.1,
            why="of cosines: at CLIP's own temperature only the class itself counts, at 1 all classes do",
        ),
        Knob(
            name="pseudo_label_threshold",
            scope="lane",
            low=0.0,
            high=1.0,
            default=0.5,
            why="confidence from which a target image teaches relations: all of them at 0, none at 1",
        ),
        Knob(
            name="target_temperature",
            scope="lane",
            low=0.5,
            high=2.0,
            log=True,
            default=1.0,
            why="softness of target predictions inside the unlabelled losses",
        ),
        Knob(
            name="unseen_prior",
            scope="lane",
            low=0.5,
            high=2.0,
            log=True,
            default=1.0,
            why="unseen share of target images relative to the unseen share of classes; unknown, so searched around 1",
        ),
    ),
)
