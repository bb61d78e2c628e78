"""PVA with context learned through the text encoder, as in its article: a configuration costs some twenty of `pva`."""

from dataclasses import replace

from search_spaces.pva import SPACE as PVA

SPACE = replace(
    PVA,
    name="pva-prompts",
    knobs=tuple(
        replace(
            knob,
            choices=("shared", "per_class"),
            default="shared",
            why="one context for all classes, or one each: novel classes keep the start of theirs",
        )
        if knob.name == "prompts"
        else knob
        for knob in PVA.knobs
    ),
)
