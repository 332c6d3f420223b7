"""`tiny:player` has watched games as its policy will see them, and none that it will play."""

from __future__ import annotations

import importlib.util

import pytest

from actors.environments import Observation
from actors.tasks.nethack import FIRST_EVALUATION, NetHackGames
from actors.tiny import MODELS
from actors.tiny.character import EOS, IGNORED, dialogues, encode, logits_and_choices
from actors.tiny.player import FIRST_WATCHED, PlayerModel
from cluster.config import load
from cluster.types import Task

if importlib.util.find_spec("nle") is None or importlib.util.find_spec("minihack") is None:
    pytest.skip("the extra 'nethack' is not installed", allow_module_level=True)

RECIPE = "deploy/recipes/oni_minihack.toml"


def test_no_watched_game_is_played():
    tasks = NetHackGames.model_validate(load(RECIPE).tasks.options)
    assert all(t.meta["seed"] < FIRST_WATCHED for t in tasks.train())
    assert FIRST_WATCHED + PlayerModel().num_games < FIRST_EVALUATION


def test_it_watches_what_the_recipe_s_policy_will_see():
    recipe, model = load(RECIPE), PlayerModel()
    shown = recipe.rollout.environment.options
    assert (shown["format"], shown["radius"], shown["message_chars"]) == ("compact", model.radius, model.message_chars)
    assert recipe.tasks.options["games"] == [model.game]
    assert recipe.rollout.max_turns == model.turns
    assert recipe.model.path == "tiny:player"
    assert MODELS["player"] is PlayerModel


async def test_a_dialogue_is_what_the_environment_says_and_a_key_each():
    from actors.environments.nethack import NetHack

    model = PlayerModel(num_games=3)
    games = await model._watched()
    assert len(games) == 3
    environment = NetHack.model_validate({"format": "compact", "radius": 2, "message_chars": 16})
    for i, parts in enumerate(games):
        task = Task.of("x", "", game=model.game, seed=FIRST_WATCHED + i)
        episode = environment.play(task, "orig")
        step = await anext(episode)
        for (said, theirs), (key, ours) in zip(parts[::2], parts[1::2], strict=True):
            assert (theirs, ours) == (False, True)
            assert isinstance(step, Observation)
            assert said == step.messages[-1].content
            assert key in model.keys
            step = await episode.asend(key)
        await episode.aclose()
    tokens, chosen = dialogues(games)
    first, key = games[0][0][0], games[0][1][0]
    begun = [*encode(first), *encode(key), EOS]
    assert tokens[0, : len(begun)].tolist() == begun
    assert chosen[0, : len(begun)].tolist() == [False] * len(encode(first)) + [True, True]
    assert tokens.shape[1] <= load(RECIPE).engine.max_model_len


def test_it_is_made_and_learns_from_its_keys_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    model = PlayerModel(num_games=4, max_steps=2, hidden_size=32, intermediate_size=32, layers=1, batch_size=4)
    model.make(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens, chosen = dialogues([[("...\n", False), ("h", True), ("..@\n", False), ("e", True)]])
    _, labels = logits_and_choices(made, tokens, chosen)
    assert labels[labels != IGNORED].tolist() == [*encode("h"), EOS, *encode("e"), EOS]
