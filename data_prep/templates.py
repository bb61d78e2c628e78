"""Prompt template sets by name, with their sources: data_prep/assets/templates.json."""

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data_prep.errors import UserError

TEMPLATES = Path(__file__).parent / "assets" / "templates.json"

LONGEST_TEMPLATE = 1000
"""Characters of a template: CLIP reads 77 tokens of a prompt."""


@cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """Return templates with one {} each, by the name of their set. The first of a set is its single template."""
    return {name: tuple(entry["templates"]) for name, entry in json.loads(TEMPLATES.read_text()).items()}


def find_templates(choice: str | Sequence[str]) -> tuple[str, ...]:
    """Return the set of that name (alone), or the user's own templates: one string with a {}, or several.

    Raises UserError for an unknown name (with the nearest valid one) and for a template without exactly one {}.
    """
    sets = template_sets()
    own = (choice,) if isinstance(choice, str) else tuple(choice)
    if len(own) == 1 and own[0] in sets:
        return sets[own[0]]
    if not own:
        raise UserError("must hold at least one template; got none", option="templates")
    for template in own:
        if not is_template(template):
            near = difflib.get_close_matches(template, sets, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            valid = ", ".join(sets)
            raise UserError(
                f"must be one of {valid}, or hold exactly one {{}}; got {template[:LONGEST_TEMPLATE]!r}{hint}",
                option="templates",
            )
    return own


def is_template(text: str) -> bool:
    """Return whether a text is short and holds one plain {}, and no other brace.

    Format strings can do more: `{0:>300000000}` makes a text of 300 MB, `{0.__class__}` reads attributes.
    """
    braces = text.count("{") + text.count("}")
    return text.count("{}") == 1 and braces == 2 and len(text) <= LONGEST_TEMPLATE
