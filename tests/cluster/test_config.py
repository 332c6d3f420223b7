"""The recipe's keys: other tools' names lead to ours, every key is explained, and the page of them is up to date."""

from __future__ import annotations

import re
import tomllib

import pytest
from pydantic import PositiveInt

from actors.tasks import TASKS
from cluster.commands import config_reference
from cluster.config import Section, dump, parse
from cluster.config.foreign_keys import FOREIGN_KEYS, new_metric, translated, with_new_names
from cluster.config.loader import merged
from cluster.config.run_config import RunConfig
from cluster.errors import ConfigError
from cluster.plugins import Plugin, build
from rewards.aggregation.selectors import SELECTORS


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


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("run.stall_s", 3, "'run.stall_s' is now 'run.progress_timeout_s'. Rename the key."),
        (
            "rewards.0.when",
            "late",
            "'rewards[0].when' is now 'rewards[0].blocking': write blocking = false for 'late'.",
        ),
        ("rewards.0.when", "admit", "write blocking = true for 'admit'."),
        ("rewards.0.on_missing", "wait", "'rewards[0].on_missing' is now 'rewards[0].missing'. Rename the key."),
        ("reward_workers.min_valid", 1, "is now 'reward_workers.min_scored_rollouts'"),
        ("rollout.views", ["orig"], "'rollout.views' is now 'rollout.prompt_variants'"),
        ("distilled.oni.judge", "judge", "'distilled' is now 'reward_models'"),
        ("elastic.rollout.max_workers", 3, "'elastic' is now 'autoscaling'"),
        ("learner.terms", [], "'learner.terms' is now 'learner.sequence_losses'"),
        ("policies.b.learner.terms", [], "'policies.b.learner.terms' is now 'policies.b.learner.sequence_losses'"),
        ("learner.rehearsal.use", "spear", "'learner.rehearsal' is now 'learner.experience_replay'"),
    ],
)
def test_a_key_of_version_0_1_is_refused_with_its_new_name(key, value, said):
    tree = merged({"rewards": [{"use": "exact"}]}, {key: value})
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(tree)


@pytest.mark.parametrize(("old", "new"), [("num_heldout", "num_evaluation"), ("views", "prompt_variants")])
def test_an_option_of_version_0_1_is_refused_with_its_new_name(old, new):
    with pytest.raises(ConfigError, match=f"unknown option '{old}'. It is now '{new}'."):
        build(TASKS, "jsonl", {"path": "x.jsonl", old: 1}, "tasks")


def test_a_selectors_option_of_version_0_1_is_refused_with_its_new_name():
    with pytest.raises(ConfigError, match=re.escape("unknown option 'signal'. It is now 'reward'.")):
        build(SELECTORS, "best_worst", {"signal": "exact"}, "selectors[0]")


@pytest.mark.parametrize("value", [True, "drop", "0.0", []])
def test_what_a_missing_score_means_is_a_policy_or_a_number(value):
    with pytest.raises(ConfigError, match=r"rewards\[0\]\.missing"):
        parse({"rewards": [{"use": "exact", "missing": value}]})


def test_the_recipe_of_a_run_of_version_0_1_means_what_it_meant():
    tree = {
        "rewards": [
            {"use": "exact", "when": "admit", "on_missing": "wait"},
            {"use": "view_agreement", "when": "late", "on_missing": "drop_group", "missing": 0.0},
        ],
        "reward_workers": {"min_valid": 1},
        "rollout": {"views": ["orig", "b"]},
        "tasks": {"use": "jsonl", "options": {"path": "x", "heldout_path": "y", "num_heldout": 3, "views": {"b": "c"}}},
        "judges": {"judge": {"kind": "keyword"}},
        "distilled": {"oni": {"judge": "judge"}},
        "elastic": {"rollout": {"max_workers": 3}},
        "learner": {"terms": [{"use": "dpo"}], "rehearsal": {"use": "spear"}},
    }
    found = parse(with_new_names(tree))
    assert [(r.use, r.blocking, r.missing) for r in found.rewards] == [
        ("exact", True, "wait"), ("variant_agreement", False, 0.0),
    ]  # fmt: skip
    assert found.reward_workers.min_scored_rollouts == 1
    assert found.rollout.prompt_variants == ("orig", "b")
    assert found.tasks.options == {
        "path": "x", "evaluation_path": "y", "num_evaluation": 3, "prompt_variants": {"b": "c"},
    }  # fmt: skip
    assert (list(found.reward_models), found.autoscaling.rollout.max_workers) == (["oni"], 3)
    assert (found.learner.sequence_losses[0].use, found.learner.experience_replay.use) == ("dpo", "spear")
    selectors = with_new_names({"selectors": [{"use": "best_worst", "options": {"signal": "exact"}}]})
    assert selectors == {"selectors": [{"use": "best_worst", "options": {"reward": "exact"}}]}
    policies = with_new_names({"policies": {"b": {"learner": {"terms": []}}}})
    assert policies == {"policies": {"b": {"learner": {"sequence_losses": []}}}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("heldout/accuracy", "eval/accuracy"),
        ("b/policy/parity_max_nats", "b/policy/logprob_diff_max_nats"),
        ("distilled/oni_version", "reward_model/oni_version"),
        ("learner/cut_s", "learner/assemble_s"),
        ("reward/parity_mean", "reward/parity_mean"),
        ("buffer/num_heldout/x", "buffer/num_heldout/x"),
    ],
)
def test_metrics_of_version_0_1_are_read_under_their_new_names(old, new):
    assert new_metric(old) == new


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
