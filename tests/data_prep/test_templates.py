"""Template sets."""

import json

import pytest

from data_prep import UserError
from data_prep.templates import TEMPLATES, find_templates, template_sets


def test_sets_and_their_sources() -> None:
    sizes = {name: len(set(templates)) for name, templates in template_sets().items()}
    assert (sizes.pop("imagenet7"), sizes.pop("imagenet80")) == (7, 80)
    assert set(sizes.values()) == {1}
    assert all(t.count("{}") == 1 for templates in template_sets().values() for t in templates)
    sources = [entry["source"] for entry in json.loads(TEMPLATES.read_text()).values()]
    assert all("github.com" in source or "Radford" in source for source in sources)


def test_the_single_template_comes_first() -> None:
    assert find_templates("single") == ("a photo of a {}.",)
    assert find_templates("imagenet80")[0] == "a photo of a {}."
    assert set(find_templates("imagenet7")) < set(find_templates("imagenet80"))
    assert find_templates("texture") == ("{} texture.",)


def test_own_templates() -> None:
    assert find_templates("a sketch of a {}") == ("a sketch of a {}",)
    assert find_templates(["a {}.", "one {}."]) == ("a {}.", "one {}.")


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{} {x}", ""])
def test_a_template_needs_one_place_for_the_name(template: str) -> None:
    with pytest.raises(UserError, match="^templates must be one of single, .*, or hold exactly one {}; got"):
        find_templates(template)


def test_a_misspelt_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="got 'imagenet81'; did you mean 'imagenet80'"):
        find_templates("imagenet81")
