"""What a group carries while judges change their versions: evidence of one era, never a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Eras:
    """Versions of rewards that were current together, for all policies of a run."""

    versions: list[dict[str, str]] = field(default_factory=lambda: [{}])

    @property
    def newest(self) -> int:
        return len(self.versions) - 1

    @property
    def current(self) -> dict[str, str]:
        return self.versions[-1]

    def relabel(self, versions: Mapping[str, str]) -> set[str]:
        """The rewards that change."""
        changed = {name for name, version in versions.items() if self.current.get(name) != version}
        if changed:
            self.versions.append({**self.current, **versions})
        return changed

    def last_with(self, name: str, version: str) -> int:
        found = [era for era, versions in enumerate(self.versions) if versions.get(name) == version]
        return found[-1] if found else self.newest


@dataclass(slots=True)
class Evidence:
    """The scores of one group."""

    carried: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Reward → version and value."""
    aside: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Answers of the newest era, which is not complete yet."""
    era: int | None = None
    heard: set[tuple[str, str]] = field(default_factory=set)

    def hear(self, eras: Eras, name: str, version: str, value: float) -> None:
        """The first answer of a version stays."""
        if (name, version) in self.heard:
            return
        self.heard.add((name, version))
        current = eras.current.get(name)
        if self.era is None:
            self.era = eras.newest if current in (None, version) else eras.last_with(name, version)
        if current is None or eras.versions[self.era].get(name) == version:
            self.carried[name] = (version, value)
        elif version == current:
            self.aside[name] = (version, value)

    def change_over(self, eras: Eras, rewards: Sequence[str]) -> None:
        """To the newest era, once all of it is there."""
        missing = [name for name in rewards if self.outdated(eras, name) and name not in self.aside]
        if self.era is not None and self.era < eras.newest and not missing:
            self.carried |= self.aside
            self.aside, self.era = {}, eras.newest

    def outdated(self, eras: Eras, name: str) -> bool:
        return name in eras.current and name in self.carried and self.carried[name][0] != eras.current[name]

    def unanswered(self, eras: Eras, rewards: Sequence[str]) -> bool:
        return any(name not in self.carried or self.outdated(eras, name) for name in rewards)

    def forget(self, eras: Eras, changed: set[str]) -> None:
        """What is current again may answer anew, unless it is what the group carries."""
        for name in changed:
            self.aside.pop(name, None)
            version = eras.current[name]
            if name not in self.carried or self.carried[name][0] != version:
                self.heard.discard((name, version))

    def whole(self, eras: Eras) -> bool:
        """Whether all that is carried was once current together."""
        return any(
            all(versions.get(name, version) == version for name, (version, _) in self.carried.items())
            for versions in eras.versions
        )
