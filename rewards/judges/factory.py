"""The judges that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.config import JudgeSection
from cluster.errors import ConfigError
from rewards.judges import canaries
from rewards.judges.backends.http import HttpClient, key_from
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.pool.archive import Archive
from rewards.judges.pool.pool import JudgePool, Split
from rewards.judges.types import Transport

PLACED = ("vllm", "policy")
"""Kinds whose replicas the run starts; replicas come and go during the run (`rewards.judges.backends.discovery`)."""


def open_judges(
    sections: Mapping[str, JudgeSection], archive: Archive, split: Mapping[str, Split] | None = None
) -> dict[str, JudgePool]:
    """A pool per section; those of the kinds `PLACED` have no replica yet. `split`: tokenizers that are at hand.

    Raises ConfigError.
    """
    return {name: _open(name, section, archive, (split or {}).get(name)) for name, section in sections.items()}


def _open(name: str, section: JudgeSection, archive: Archive, split: Split | None) -> JudgePool:
    where = f"judges.{name}"
    known = canaries.load(section.canaries, where) if section.canaries else canaries.red_team()
    return JudgePool(
        name,
        _transports(section, where),
        model=section.kind if section.kind in ("policy", "keyword") else section.model,
        revision=section.revision,
        live=section.kind == "policy",
        come_and_go=section.kind in PLACED,
        split=split,
        archive=archive,
        max_in_flight=section.max_in_flight,
        max_queue=section.max_queue,
        order=section.order,
        deadline_s=section.deadline_s,
        in_flight_ttl_s=section.in_flight_ttl_s,
        canaries=known,
        canary_every=section.canary_every,
    )


def _transports(section: JudgeSection, where: str) -> list[Transport]:
    if section.kind == "keyword":
        try:
            return [KeywordJudge(**section.options)]
        except TypeError as error:
            raise ConfigError(f"{where}.options: {error}.") from error
    if section.kind in PLACED:
        return []
    key = key_from(section.key_env, where)
    return [
        HttpClient(
            url,
            model=section.model,
            key=key,
            revision=section.revision,
            timeout_s=section.in_flight_ttl_s,
            max_connections=section.max_in_flight,
            structured=section.structured,
            body=section.options,
            omit=section.omit,
        )
        for url in section.urls
    ]
