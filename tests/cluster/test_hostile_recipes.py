"""Whatever value stands in a recipe: it is accepted and written as it is, or refused in words."""

import pytest

from tests.cluster import hostile_recipes


def test_odd_values_in_recipes_are_accepted_or_refused_in_words():
    accepted, refused = hostile_recipes.read(0, 4000, build=False)
    assert accepted > 100
    assert refused > 2000


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_plugins_of_odd_recipes_are_built_or_refused_in_words():
    assert min(hostile_recipes.read(1, 100_000, build=True)) > 2000
