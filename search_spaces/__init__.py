"""Search spaces, one module each; each exports `SPACE`, and every knob says its range, scale, scope and why.

A *lane* knob may differ between the configurations that one pack trains together; a *static* knob changes tensor
shapes or the graph of operations, so all lanes of a pack share its value.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from data_prep.errors import UserError, nearest
from search_spaces.plugins import load_installed

if TYPE_CHECKING:  # names of spaces are needed before torch is
    from models.stacked import MethodConfig

Value = float | int | str | bool


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One searched hyperparameter."""

    name: str
    """Field of the method's configuration that the knob sets."""
    scope: Literal["lane", "static"]
    """Whether lanes of one pack may differ in it."""
    default: Value
    """Value tried first, and used where the knob is not active."""
    why: str
    """One line: its effect, and the reason for this range."""
    low: float | None = None
    """Smallest value (numeric knobs)."""
    high: float | None = None
    """Largest value (numeric knobs)."""
    log: bool = False
    """Sample on a logarithmic scale."""
    choices: tuple[Value, ...] | None = None
    """Values of a categorical knob."""
    when: tuple[str, tuple[Value, ...]] | None = None
    """Active only while the named (earlier, static) knob has one of these values."""

    def __post_init__(self) -> None:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError(f"knob {self.name}: give either choices or low and high")
        if self.choices is not None and self.default not in self.choices:
            raise ValueError(f"knob {self.name}: default must be one of {self.choices}, got {self.default!r}")
        if self.low is not None and self.high is not None:
            if not self.low <= float(self.default) <= self.high:
                raise ValueError(f"knob {self.name}: default must lie in [{self.low}, {self.high}], got {self.default}")
            if self.log and self.low <= 0:
                raise ValueError(f"knob {self.name}: a log scale needs low > 0, got {self.low}")

    @property
    def ends(self) -> tuple[Value, ...]:
        """Smallest and largest value of a numeric knob; () of a categorical one."""
        if self.low is None or self.high is None:
            return ()
        return (int(self.low), int(self.high)) if self.is_int else (self.low, self.high)

    @property
    def is_int(self) -> bool:
        """Whether values are whole numbers between `low` and `high`."""
        return isinstance(self.default, int) and self.choices is None


def learning_rate(*, low: float, high: float, default: float, why: str) -> Knob:
    """Return the knob of AdamW's peak learning rate, on a logarithmic scale."""
    return Knob(name="lr", scope="lane", low=low, high=high, log=True, default=default, why=why)


def weight_decay(
    *, high: float = 1e-2, default: float = 1e-4, why: str = "pulls what is trained back to its start"
) -> Knob:
    """Return the knob of AdamW's decoupled weight decay, from 1e-6 on a logarithmic scale."""
    return Knob(name="weight_decay", scope="lane", low=1e-6, high=high, log=True, default=default, why=why)


def weight(name: str, *, why: str) -> Knob:
    """Return the knob of a weight of which nothing is known: ten times smaller or larger than 1."""
    return Knob(name=name, scope="lane", low=0.1, high=10.0, log=True, default=1.0, why=why)


@dataclass(frozen=True, kw_only=True)
class Space:
    """A method's searched knobs, in order (a conditional knob comes after the one it depends on)."""

    name: str
    """Name by which it is loaded."""
    method: str
    """Name shown on the leaderboard."""
    config: "Callable[..., MethodConfig]"
    """The method's configuration class; knobs are its keyword arguments."""
    knobs: tuple[Knob, ...]
    """All searched knobs."""
    benchmark: str
    """The embedded benchmark of the method's task, the default of a study."""
    criterion: Literal["consensus", "agreement", "h*mi", "h", "mi"]
    """What ranks configurations by default; all but h need a method that may look at unlabelled target images."""
    baselines: tuple[str, ...] = ()
    """Spaces of the baselines that stand beside the method."""

    def active(self, params: Mapping[str, Value]) -> tuple[Knob, ...]:
        """Return the knobs whose condition holds under `params` (which must hold the static knobs already chosen)."""
        return tuple(
            k for k in self.knobs if k.when is None or (k.when[0] in params and params[k.when[0]] in k.when[1])
        )

    def defaults(self) -> dict[str, Value]:
        """Return the default configuration's active knobs and their values."""
        every = {k.name: k.default for k in self.knobs}
        return {k.name: k.default for k in self.active(every)}

    def static_values(self) -> Iterator[tuple[Knob, dict[str, Value]]]:
        """Yield every choice of every static knob, and the ends of its range, beside the defaults of the others."""
        for knob in self.knobs:
            needed = {knob.when[0]: knob.when[1][0]} if knob.when else {}
            if knob.scope == "static":
                for value in knob.choices or knob.ends:
                    yield knob, {**self.defaults(), **needed, knob.name: value}

    def static(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Return the part of `params` that all lanes of a pack share."""
        return {k.name: params[k.name] for k in self.knobs if k.scope == "static" and k.name in params}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A method taken apart: the full configuration, and variants that each lack a part."""

    name: str
    """Name by which it is loaded."""
    space: Space
    """The method's space; knobs that a variant does not set keep the winner's or their default values."""
    variants: Mapping[str, Mapping[str, Value]]
    """What each variant changes in the configuration; the first one, the full method, changes nothing."""
    needs: Mapping[str, tuple[str, tuple[Value, ...]]] = field(default_factory=dict)
    """Knob, and its values, without which nothing would be left of a variant: a winner that has another value takes the
    default instead."""
    published: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """S, U and H in percent, as published for variants, on other data."""
    published_in: str = ""
    """Article and data behind `published`."""

    def method(self, variant: str) -> str:
        """Return a variant's name on the leaderboard."""
        return f"{self.space.method}: {variant}"

    def params(self, variant: str, winner: Mapping[str, Value]) -> dict[str, Value]:
        """Return a variant's knobs: the winner's, with what the variant changes and needs on top."""
        params = {**winner, **self.variants[variant]}
        needed, values = self.needs.get(variant, ("", ()))
        return params if not needed or params.get(needed) in values else {**params, needed: self._default(needed)}

    def _default(self, name: str) -> Value:
        return next(k.default for k in self.space.knobs if k.name == name)

    def researched(self, variant: str) -> Space:
        """Return a variant as a space of its own: its changes are fixed, all other knobs are searched again."""
        changes, position = self.variants[variant], list(self.variants).index(variant)
        needed, values = self.needs.get(variant, ("", ()))
        return replace(
            self.space,
            name=f"{self.name}-{position}",
            method=self.method(variant),
            config=partial(self.space.config, **changes),
            knobs=tuple(
                replace(k, low=None, high=None, choices=values) if k.name == needed else k
                for k in self.space.knobs
                if k.name not in changes
            ),
        )


REGISTERED: dict[str, Space] = {}
"""Spaces of other people's methods, by name."""

HELPERS = ("changes", "plugins")
"""Modules of this package that are no spaces."""


def register(space: Space) -> None:
    """Let `load` find the space of another method. Raises `UserError` where its name is that of a shipped one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", space.name) or space.name in shipped():
        taken = ", which is a shipped space" if space.name in shipped() else ""
        raise UserError(f"a space needs a name of its own, of letters, digits and . _ -; got {space.name!r}{taken}")
    REGISTERED[space.name] = space


def shipped() -> list[str]:
    """Return the names of all shipped spaces, without loading any."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def names() -> list[str]:
    """Return the names of all spaces that are shipped or registered."""
    return [*shipped(), *sorted(REGISTERED)]


def load(name: str, *, option: str = "space") -> Space | Ablation:
    """Load the space or ablation called `name`, and with it torch.

    `option`: Python name of the option that `name` comes from. Raises `UserError` with the nearest valid name if there
    is none.
    """
    if name not in names():
        load_installed()
    if name in REGISTERED:
        return REGISTERED[name]
    if name not in names():
        valid = names()
        raise UserError(f"must be one of {', '.join(valid)}; got {name!r}{nearest(name, valid)}", option=option)
    return importlib.import_module(f"search_spaces.{name.replace('-', '_')}").SPACE
