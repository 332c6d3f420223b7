"""docs/methods.md and its families' pages are what the sources say, and name nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from rewards.methods_reference import FAMILIES, METHODS, family_of
from tests.rewards.methods.test_recipes import RECIPES

ROOT = Path(__file__).parents[3]
INDEX = (ROOT / "docs" / "methods.md").read_text("utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")}
ROWS = [
    line.strip("| ").split(" | ")
    for family in FAMILIES
    for line in PAGES[family.name].splitlines()
    if line.startswith("| ") and not line.startswith("| method |")
]


def test_every_family_has_a_page_that_the_index_links_and_methods():
    assert PAGES.keys() == {family.name for family in FAMILIES}
    assert re.findall(r"\]\(methods/(\w+)\.md\)", INDEX) == [family.name for family in FAMILIES]
    assert {family_of(m) for m in METHODS} == set(FAMILIES)


def test_the_pages_have_every_method_with_code_that_its_files_define():
    assert sorted(row[0] for row in ROWS) == sorted(m.name for m in METHODS), "run python -m rewards.methods_reference"
    for name, _, _, code, _, recipe, test in ROWS:
        for file, defined in re.findall(r"`([^`]+)` (\w+)", code):
            assert re.search(rf"^(class|def) {defined}\b", (ROOT / file).read_text("utf-8"), re.M), f"{name}: {defined}"
        assert (ROOT / test.strip("`")).is_file(), name
        assert recipe == "–" or recipe.strip("`") in {r.stem for r in RECIPES}, name


def test_the_page_counts_the_lines_of_a_short_method():
    (row,) = [row for row in ROWS if row[0] == "IPO"]
    source = (ROOT / "learner" / "losses" / "sequence_losses" / "preference.py").read_text("utf-8")
    (body,) = re.findall(r"^class Ipo\b.*?(?=^\S|\Z)", source, re.S | re.M)
    assert int(row[4]) == len(body.strip().splitlines())


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
