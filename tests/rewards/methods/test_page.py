"""docs/methods.md is what the sources say, and names nothing that is not there."""

from __future__ import annotations

from rewards.methods_reference import METHODS, PAGE, page
from tests.rewards.methods.test_recipes import RECIPES


def test_the_page_of_methods_is_up_to_date():
    assert PAGE.read_text("utf-8") == page(), "run python -m rewards.methods_reference"


def test_every_recipe_and_test_that_it_names_exists_and_no_recipe_is_left_out():
    named = {m.recipe for m in METHODS if m.recipe}
    assert named == {r.stem for r in RECIPES}
    missing = [m.test for m in METHODS if not m.test_file.is_file()]
    assert not missing


def test_a_tests_file_names_what_it_tests():
    """By the imported name, or by the name in the zoo that the recipe uses."""
    for method in METHODS:
        text = method.test_file.read_text("utf-8")
        names = [code.partition(":")[2] for code in method.code]
        assert any(n in text for n in names) or method.recipe in text or "SHAPERS" in text, method.name
