"""The recipe's keys: other tools' names lead to ours, every key is explained, and the page of them is up to date."""

from __future__ import annotations

import re
import tomllib

import pytest
from pydantic import PositiveInt

from cluster.commands import config_reference
from cluster.config import Section, dump, parse
from cluster.config.foreign_keys import FOREIGN_KEYS, translated
from cluster.config.run_config import RunConfig
from cluster.errors import ConfigError
from cluster.plugins import Plugin


def options(place: str):
    from actors.tasks.files import Files
    from learner.losses.policy_losses import LOSSES

    return {"tasks.options": Files, "learner.loss.options": LOSSES["clipped"]}[place].model_fields


@pytest.mark.parametrize("ours", sorted(set(FOREIGN_KEYS.values())))
def test_every_name_that_we_give_exists(ours):
    place, _, last = ours.rpartition(".")
    if place.endswith("options"):
        assert last in options(place)
        return
    section = RunConfig
    for part in place.removesuffix("[0]").split("."):
        section = config_reference._section_of(section.model_fields[part].annotation)
        assert section is not None
    assert last in section.model_fields


def test_another_tools_tree_is_searched_for_what_it_sets():
    assert translated("actor_rollout_ref", {"rollout": {"n": 5}}) == "Kanabo calls 'n' 'rollout.group_size'. "
    assert translated("nothing", {"of": {"them": 1}}) == ""


def sections(section):
    yield section
    for field in section.model_fields.values():
        if inner := config_reference._section_of(field.annotation):
            yield from sections(inner)


def test_every_key_is_explained():
    silent = [
        f"{s.__name__}.{n}"
        for s in sections(RunConfig)
        for n, f in s.model_fields.items()
        if not f.description and not config_reference._section_of(f.annotation)
    ]
    assert not silent


def options_of_the_page() -> list[list[str]]:
    """Rows of the page's tables of options: key, type, default, meaning."""
    found = [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in config_reference.page().splitlines() if line.startswith("| `")
    ]
    return [[cell.strip() for cell in row] for row in found if len(row) == 4]


def test_every_option_of_the_page_has_a_meaning():
    rows = options_of_the_page()
    assert len(rows) > 450
    assert [row[0] for row in rows if len(row[3]) < 10] == []


def test_every_type_of_the_page_is_in_the_words_of_toml():
    word = r'(text|integer|number|table|section|anything|true|false|"[^"]*"|-?\d+)'
    bound = r"( [<>≤≥] -?[\d.e+-]+,?)*"
    one = rf"(list of )*\(?{word}{bound}( \\\| {word}{bound})*\)?"
    pattern = re.compile(rf"{one}( \\\| {one})*")
    assert [row[:2] for row in options_of_the_page() if not pattern.fullmatch(row[1])] == []


def test_a_field_whose_default_alone_changes_keeps_its_meaning_and_annotations_keep_their_bounds():
    class Base(Plugin):
        share: float = 0.5
        """Of the whole."""

    class Other(Base):
        share: float = 0.1
        most: PositiveInt | None = None
        """Upper bound."""

    rows = [config_reference._row(name, field, Other) for name, field in Other.model_fields.items()]
    assert rows == [
        ("`share`", "number", "`0.1`", "Of the whole."), ("`most`", "integer > 0", "not set", "Upper bound."),
    ]  # fmt: skip


def test_the_page_of_keys_is_up_to_date():
    assert config_reference.PAGE.read_text("utf-8") == config_reference.page(), (
        "run python -m cluster.commands.config_reference"
    )


def test_the_page_has_types_bounds_defaults_and_meanings():
    class Inner(Section):
        share: float | None = None
        """Of the whole."""

    class Outer(Section):
        inner: dict[str, Inner] = {}
        size: int = 3

    text = "\n".join(config_reference._sections(Outer, "outer"))
    assert "| `size` | integer | `3` |" in text
    assert "## `[outer.inner]`" in text
    assert "| `share` | number | not set | Of the whole. |" in text


def test_several_faults_are_a_line_each():
    with pytest.raises(ConfigError) as caught:
        parse({"seed": -1, "learner": {"steps": 0}}, where="mine.toml")
    assert [line.split(" = ")[0] for line in str(caught.value).splitlines()] == [
        "mine.toml: seed",
        "mine.toml: learner.steps",
    ]


def test_a_dumped_recipe_is_the_same_recipe_without_its_password():
    config = parse({"seed": 3, "rewards": [{"use": "exact"}], "learner": {"betas": [0.8, 0.9]}})
    assert parse(tomllib.loads(dump(config))) == config
    guarded = parse({"seed": 3, "buffer": {"url": "redis://:secret@host:1/0"}})
    assert "secret" not in dump(guarded)
    assert "@host:1/0" in dump(guarded)
