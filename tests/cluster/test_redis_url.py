"""`buffer.url = "env:NAME"`: the password reaches the driver by its environment and nothing else."""

from __future__ import annotations

import pytest

from cluster import config
from cluster.driver import preflight
from cluster.errors import ConfigError


def settings_with(url: str) -> config.RunConfig:
    return config.parse({"buffer": {"url": url}})


def test_the_variable_is_read_when_it_is_needed_and_never_dumped(monkeypatch, redis_url):
    settings = settings_with("env:MY_REDIS")
    monkeypatch.setenv("MY_REDIS", redis_url)
    preflight.storage(settings)
    assert settings.buffer.resolved() == redis_url
    password = redis_url.split(":")[2].split("@")[0]
    assert 'url = "env:MY_REDIS"' in config.dump(settings)
    for text in (config.dump(settings), repr(settings), str(settings.model_dump(mode="json"))):
        assert password not in text


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_refused_before_anything_starts(monkeypatch, value):
    monkeypatch.delenv("MY_REDIS", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_REDIS", value)
    with pytest.raises(ConfigError, match="has no MY_REDIS"):
        preflight.storage(settings_with("env:MY_REDIS"))


@pytest.mark.parametrize("url", ["redis://:se/cret@host:6379/0", "http://:secret@host", "secret"])
def test_what_is_no_url_is_refused_without_showing_it(monkeypatch, url):
    monkeypatch.setenv("MY_REDIS", url)
    with pytest.raises(ConfigError) as refused:
        preflight.storage(settings_with("env:MY_REDIS"))
    assert "env:MY_REDIS" in str(refused.value)
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_other_urls_are_what_they_were():
    assert settings_with("redis://host:1/0").buffer.resolved() == "redis://host:1/0"
    assert config.parse({}).buffer.resolved() is None
