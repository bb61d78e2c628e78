"""Change what a space searches, by settings or by a file.

A setting says what becomes of a field of the method's configuration, whether the space has searched it or not:

    lr=1e-3                    fixed, not searched
    lr=1e-4..1e-2:log          searched in a range; without :log on a linear scale
    adapter=memory,tokens      searched among these values
    rho=0.1..10:log@2          2 is tried first; without @ the space's default, or the middle where it lies outside

A file is Python that exports `SPACE`, or YAML:

    base: sre                  the space whose method it is
    knobs:                     all that is searched; the base's other knobs keep their defaults
      lr: {low: 1e-4, high: 1e-2, log: true, default: 1e-3, why: ..., when: {adapter: [memory]}}
    fixed:                     other fields of the configuration
      batch_size: 64
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from data_prep.errors import UserError, nearest
from search_spaces import Ablation, Knob, Space, Value, load, names
from search_spaces.plugins import PLUGINS, load_plugins

if TYPE_CHECKING:
    from models.stacked import MethodConfig

SUFFIXES = (".py", ".yaml", ".yml")
"""Ends of the names of files with a space."""

OF_FILE, OF_KNOB = ("base", "knobs", "fixed"), ("low", "high", "log", "choices", "default", "why", "when")


def find_space(given: str, settings: Sequence[str] = ()) -> Space | Ablation:
    """Return the space with this name or in this file, changed by settings. Raises `UserError`."""
    found = read_space(Path(given).expanduser()) if given.endswith(SUFFIXES) else load(given)
    if isinstance(found, Ablation):
        if settings:
            raise UserError(f"must come with the space of a method, {given} is an ablation", option="set")
        return found
    return change(found, settings)


def change(space: Space, settings: Sequence[str]) -> Space:
    """Return a space with these settings in place of its own knobs. Raises `UserError` for what makes no sense."""
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not text:
            raise UserError(f"must be NAME=VALUE, NAME=LOW..HIGH or NAME=A,B; got {setting!r}", option="set")
        text, _, default = text.partition("@")
        options: dict[str, Any] = {"default": default} if default else {}
        low, dots, high = text.removesuffix(":log").partition("..")
        if dots:
            options |= {"low": low, "high": high, "log": text.endswith(":log")}
        elif "," in text:
            options["choices"] = [part.strip() for part in text.split(",")]
        elif not default:
            space = _fixed(space, name, text, "set")
            continue
        else:
            raise UserError(f"must be a range or values where @ says the first one; got {setting!r}", option="set")
        space = _searched(space, name, options, "set")
    return space


def describe(space: Space) -> tuple[str, ...]:
    """Return what a space searches and fixes, as settings that make it of its base."""
    _, fixed = _made_of(space)
    return (*map(_setting, space.knobs), *(f"{name}={as_text(value)}" for name, value in sorted(fixed.items())))


def as_settings(space: Space) -> tuple[str, ...]:
    """Return the settings that make a space of the one that has its name. Raises `UserError` where none do."""
    base = load(space.name)
    settings = describe(space)
    if isinstance(base, Space):
        searched = {knob.name for knob in space.knobs}
        given = {setting.partition("=")[0] for setting in settings}
        left_out = [k for k in base.knobs if k.name not in searched | given]
        settings = (*settings, *(f"{k.name}={as_text(k.default)}" for k in left_out))
        made = [replace(knob, why="") for knob in change(base, settings).knobs]
        if made == [replace(knob, why="") for knob in space.knobs]:
            return settings
    raise UserError(f"needs a name of its own; {space.name} is another space", option="space")


def read_space(file: Path) -> Space | Ablation:
    """Read the space in a file. Raises `UserError`."""
    if not file.is_file():
        raise UserError(f"must be a name or a file that is there; got {file}", option="space")
    if file.suffix == ".py":
        (module,) = load_plugins([str(file)], option="space")
        found = getattr(module, "SPACE", None)
        if not isinstance(found, Space | Ablation):
            raise UserError(f"must be a file that exports SPACE, a Space; {file} has {found!r}", option="space")
        space = found.space if isinstance(found, Ablation) else found
        makes, _ = _made_of(space)
        if module.__name__ not in (type(space.config()).__module__, getattr(makes, "__module__", "")):
            del PLUGINS[module.__name__]  # ranges alone: no worker needs the file
        return found
    return _from_yaml(file)


def to_yaml(space: Space) -> str:
    """Return the YAML of a space. Raises `UserError` where no name stands for its method."""
    import yaml

    if space.name not in names():
        raise UserError(f"must be a space with a name, to be the base of another; got {space.name}", option="space")
    knobs: dict[str, Any] = {}
    for k in space.knobs:
        of_range = {"low": k.low, "high": k.high, "log": k.log}
        values: dict[str, Any] = {"choices": list(k.choices)} if k.choices else of_range
        when = {} if k.when is None else {"when": {k.when[0]: list(k.when[1])}}
        knobs[k.name] = {**values, "default": k.default, **when, "why": k.why}
    content = {"base": space.name, "knobs": knobs, "fixed": dict(_made_of(space)[1])}
    head = (
        f"# What is searched of {space.method}. Change it, then: python study/run.py --space FILE.yaml\n"
        "# Knobs that are left out keep their defaults. Other fields of the configuration may be knobs, or fixed.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)


def _from_yaml(file: Path) -> Space:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"must be YAML; {file}: {' '.join(str(error).split())}", option="space") from error
    content = _mapping(content, OF_FILE, str(file))
    if not isinstance(content.get("base"), str):
        raise UserError(f"must say its base, such as base: sre; {file} does not", option="space")
    base = load(content["base"])
    if isinstance(base, Ablation):
        raise UserError(f"must have a method's space as its base; {file} has {content['base']}", option="space")
    knobs = _mapping(content.get("knobs", {}), None, f"{file}: knobs")
    space = base
    for knob in base.knobs:
        if knob.name not in knobs:
            space = _fixed(space, knob.name, as_text(knob.default), "space")
    for name, value in _mapping(content.get("fixed", {}), None, f"{file}: fixed").items():
        space = _fixed(space, name, as_text(value), "space")
    for name, value in knobs.items():
        options = {"choices": value} if isinstance(value, list) else _mapping(value, OF_KNOB, f"{file}: {name}")
        space = _searched(space, name, options, "space")
    return space


def _mapping(given: object, keys: Sequence[str] | None, where: str) -> dict[str, Any]:
    """Return the entries of a YAML mapping. Raises `UserError` for others than `keys`."""
    if not isinstance(given, dict):
        raise UserError(f"must have names with values; {where} has {given!r}", option="space")
    for key in given:
        if keys and key not in keys:
            found = f"{str(key)!r}{nearest(str(key), keys)}"
            raise UserError(f"must have {', '.join(keys)}; {where} has {found}", option="space")
    return {str(key): value for key, value in given.items()}


def _fixed(space: Space, name: str, text: str, option: str) -> Space:
    """Return the space with a field that has one value; knobs that depend on it are active always, or never."""
    value = _parsed(space, name, text, option)
    kept = []
    for knob in space.knobs:
        if knob.name == name or (knob.when and knob.when[0] == name and value not in knob.when[1]):
            continue
        kept.append(replace(knob, when=None) if knob.when and knob.when[0] == name else knob)
    changed = replace(space, config=functools.partial(space.config, **{name: value}), knobs=tuple(kept))
    _try(changed, {}, name, value, option)
    return changed


def _searched(space: Space, name: str, options: Mapping[str, Any], option: str) -> Space:
    """Return the space with a knob for a field, in the place of the one it has had."""
    kind = _kind(space, name, option)
    before = next((knob for knob in space.knobs if knob.name == name), None)
    default = before.default if before else getattr(space.config(), name)
    values: dict[str, Any] = {"low": None, "high": None, "log": False, "choices": None}
    if "choices" in options:
        if not isinstance(options["choices"], list) or not options["choices"]:
            raise UserError(f"must have values to choose from for {name}; got {options['choices']!r}", option=option)
        choices = tuple(_parsed(space, name, as_text(choice), option) for choice in options["choices"])
        values["choices"] = tuple(dict.fromkeys(choices))
        middle, inside = choices[0], default in choices
    else:
        if kind not in (int, float):
            raise UserError(f"must have values to choose from, not a range, for {name}", option=option)
        if missing := [end for end in ("low", "high") if end not in options]:
            raise UserError(f"must have low and high, or choices; {name} has no {missing[0]}", option=option)
        low, high = (_parsed(space, name, as_text(options[end]), option) for end in ("low", "high"))
        log = options.get("log", False)
        if not low < high or (log and low <= 0):  # type: ignore[operator]  # numbers
            rule = "above 0 and below the highest, on a log scale" if log else "below the highest"
            raise UserError(f"must have a lowest value {rule}, for {name}; got {low} and {high}", option=option)
        centre = math.sqrt(float(low) * float(high)) if log else (float(low) + float(high)) / 2
        middle, inside = round(centre) if kind is int else centre, low <= default <= high  # type: ignore[operator]
        values |= {"low": low, "high": high, "log": bool(log)}
    when = before.when if before else None
    if given := options.get("when"):
        on, active = next(iter(_mapping(given, None, f"{name}: when").items()))
        earlier = [k.name for k in space.knobs if k.scope == "static" and k.name != name]
        if len(given) > 1 or on not in earlier:
            rule = f"must depend on one static knob before it ({', '.join(earlier)})"
            raise UserError(f"{rule}; {name} depends on {', '.join(map(str, given))}", option=option)
        active = [_parsed(space, on, as_text(a), option) for a in (active if isinstance(active, list) else [active])]
        when = (on, tuple(active))
    try:
        knob = Knob(
            name=name,
            scope="lane" if name in space.config().LANE_KNOBS else "static",
            default=_parsed(space, name, as_text(options["default"]), option)
            if "default" in options
            else (default if inside else middle),
            why=str(options.get("why") or (before.why if before else "searched by whoever runs the study")),
            when=when,
            **values,
        )
    except ValueError as error:
        raise UserError(f"must make a knob that can be drawn: {error}", option=option) from error
    places = {k.name: k for k in space.knobs} | {name: knob}
    made, fixed = _made_of(space)
    others = {field: value for field, value in fixed.items() if field != name}  # it may have been fixed before
    config = functools.partial(made, **others) if name in fixed else space.config
    changed = replace(space, knobs=tuple(places.values()), config=config)
    for value in knob.choices or (knob.low, knob.high):
        _try(changed, {name: value}, name, value, option)
    return changed


def _try(space: Space, params: Mapping[str, Any], name: str, value: object, option: str) -> None:
    """Make a configuration. Raises `UserError` where the method refuses the value."""
    try:
        space.config(**{**space.defaults(), **params})
    except ValueError as error:
        raise UserError(
            f"must be a value that {space.method} takes; {name}={as_text(value)}: {error}", option=option
        ) from error


def _kind(space: Space, name: str, option: str) -> Any:
    """Return the type of a field of a space's configuration. Raises `UserError` with the nearest name."""
    config = space.config()
    found = [f.name for f in fields(config)]
    if name not in found:
        searched = ", ".join(knob.name for knob in space.knobs)
        raise UserError(
            f"must name a knob of {space.method} ({searched}), or another field of its configuration; "
            f"got {name!r}{nearest(name, found)}",
            option=option,
        )
    return get_type_hints(type(config))[name]


def _parsed(space: Space, name: str, text: str, option: str) -> Value:
    """Return a field's value from its text. Raises `UserError` where it is not of the field's type."""
    kind = _kind(space, name, option)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for of_kind in kinds:
        if get_origin(of_kind) is Literal:
            for choice in get_args(of_kind):
                if text == str(choice):
                    return choice
        elif of_kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        elif of_kind in (int, float):
            try:
                return of_kind(text)
            except ValueError:
                continue
        elif of_kind is str:
            return text
    choices = [str(c) for of_kind in kinds if get_origin(of_kind) is Literal for c in get_args(of_kind)]
    if choices:
        got = f"{text!r}{nearest(text, choices)}"
        raise UserError(f"must be one of {', '.join(choices)} for {name}; got {got}", option=option)
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    rule = " or ".join(words.get(of_kind, str(of_kind)) for of_kind in kinds)
    raise UserError(f"must be {rule} for {name}; got {text!r}", option=option)


def _setting(knob: Knob) -> str:
    if knob.choices is not None:
        return f"{knob.name}={','.join(map(as_text, knob.choices))}@{as_text(knob.default)}"
    return f"{knob.name}={as_text(knob.low)}..{as_text(knob.high)}{':log' if knob.log else ''}@{as_text(knob.default)}"


def as_text(value: object) -> str:
    """Return a value as settings have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _made_of(space: Space) -> tuple[Callable[..., "MethodConfig"], dict[str, Any]]:
    """Return what makes a space's configurations, and the fields that are fixed."""
    config = space.config
    return (config.func, config.keywords) if isinstance(config, functools.partial) else (config, {})
