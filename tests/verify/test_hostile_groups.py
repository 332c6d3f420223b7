"""100,000 tries of stored groups that were changed at random: none is read unless it is sound."""

import pytest

from tests.cluster import hostile_groups

TRIES = 100_000


@pytest.mark.verify
def test_groups_changed_at_random_are_sound_or_refused():
    assert hostile_groups.read(0, TRIES) > TRIES / 20
