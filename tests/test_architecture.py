"""docs/development/architecture.md against the sources: folders, layers, functions of the pipeline, a token's road."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from tests import measures

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "development" / "architecture.md").read_text("utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(title: str) -> list[list[str]]:
    """Return the rows of a section's table, without its head."""
    rows = re.findall(r"^\|(.*)\|$", section(title), re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows[1:] if not row.startswith("---")]


def defined(file: str) -> set[str]:
    return {f.name for f in measures.functions(ast.parse((ROOT / file).read_text("utf-8")))}


def test_every_folder_of_sources_is_explained_and_every_explained_one_is_there():
    named = {row[0].strip("`") for row in cells("Folders")}
    folders = {str(file.parent) for file in measures.sources()}
    assert folders <= named
    assert all((ROOT / folder).is_dir() for folder in named)


def test_the_layers_are_those_of_the_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    head = re.findall(r"`(\w+)`", section("Layers").partition("|---")[0].rpartition("\n\n")[2])
    columns = list(zip(*cells("Layers"), strict=True))
    layers = {c["containers"][0]: c["layers"] for c in contracts if c["type"] == "layers"}
    assert set(head) == layers.keys()
    for package, column in zip(head, columns, strict=True):
        lines = [" | ".join(re.findall(r"`(\w+)`", cell)) for cell in column if cell]
        assert lines == layers[package]


def test_functions_of_the_pipelines_steps_are_in_the_files_that_the_page_names():
    found = re.findall(r"`([\w/]+\.py)` ((?:`\w+`(?:, )?)+)", section("The pipeline"))
    assert len(found) >= 12
    for file, names in found:
        assert set(re.findall(r"`(\w+)`", names)) <= defined(file), file


def test_the_files_on_the_road_exist_and_are_counted():
    rows = cells("From token to gradient")
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    files = [row[1].strip("`") for row in rows]
    assert len(set(files)) == len(files)
    assert all((ROOT / file).is_file() for file in files)


def test_places_for_additions_exist():
    for place in re.findall(r"`((?:actors|cluster|learner|rewards|tests)/[\w/.]+)`", section("Where to add something")):
        assert (ROOT / place).exists(), place


def test_no_module_imports_itself_by_way_of_others():
    assert measures.circle_of(measures.import_graph()) == []


def test_a_circle_is_found_and_a_diamond_is_none():
    assert measures.circle_of({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert set(measures.circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_an_import_inside_a_function_is_late_and_counts_once():
    tree = ast.parse("import os\ndef f():\n    import json\n    def g():\n        from cluster import errors\n")
    late = measures.late_imports(tree)
    assert len(late) == 2
    assert sorted(map(measures.is_of_ours, late)) == [False, True]


def test_an_import_inside_a_function_keeps_a_heavy_or_optional_library_away():
    assert measures.idle_late_imports() == []


def test_a_module_weighs_what_it_and_the_packages_around_it_import():
    weights = measures.Weights({"a": {"ray"}, "a.b": {"os", "c"}, "c": {"numpy.linalg"}, "d": {"wandb", "json"}})
    assert weights.of("a.b") == {"ray", "numpy"}
    assert (weights.of("c"), weights.of("d")) == ({"numpy"}, {"wandb"})
    assert (weights.of("torch.nn"), weights.of("json")) == ({"torch"}, set())
