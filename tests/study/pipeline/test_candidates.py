"""What stands on the leaderboard under which name."""

import pytest

import search_spaces
from models.heads import Head
from search_spaces import Space, Value
from study.pipeline.candidates import row_name


@pytest.mark.parametrize(
    ("space", "params", "head", "name"),
    [
        ("pva", {"score": "cosine"}, "none", "id"),
        ("pva", {"score": "relative"}, "none", "id-relative"),
        ("sre", {"adjacency": "symmetric"}, "none", "id"),
        ("sre", {"adjacency": "identity"}, "vote", "id-identity-vote"),
        ("sre", {"align": "cosine", "class_prior": "estimated"}, "inmap", "id-cosine-estimated-inmap"),
        ("linear-probe", {}, "none", "id"),
    ],
)
def test_a_row_says_what_the_article_of_its_method_has_not(
    space: str, params: dict[str, Value], head: Head, name: str
) -> None:
    found = search_spaces.load(space)
    assert isinstance(found, Space)
    assert row_name(found, "id", params, head) == name
