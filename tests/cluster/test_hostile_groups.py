"""Whatever has become of a stored group: it is read as a sound one, or refused, and nothing else."""

from tests.cluster import hostile_groups


def test_groups_changed_at_random_are_sound_or_refused():
    assert 200 < hostile_groups.read(0, 2500) < 2300, "some of both kinds"


def test_sound_groups_are_used_as_they_are():
    for group in hostile_groups.groups():
        hostile_groups.use(group)
