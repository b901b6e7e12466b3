"""A group crosses processes by value: it comes back as it was, however many arrays it is packed into on the way."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from medvista_ray.types import PER_TOKEN, Episode, Group
from tests.synthetic_run import make_episode, make_task, phantom


def equal(one: Episode, other: Episode) -> bool:
    arrays = {*PER_TOKEN, "images"}
    plain = [{name: value for name, value in vars(episode).items() if name not in arrays} for episode in (one, other)]
    pairs = [(getattr(one, name), getattr(other, name)) for name in PER_TOKEN] + [*zip(one.images, other.images, strict=True)]
    same = all(mine.dtype == theirs.dtype and np.array_equal(mine, theirs) for mine, theirs in pairs)
    return same and plain[0] == plain[1] and vars(one).keys() == vars(other).keys()


def make_group() -> Group:
    """Episodes of different lengths, one without a token, that share a picture."""
    shared = phantom(0)
    episodes = [make_episode(make_task(7), [shared, phantom(i)], version=i) for i in range(3)]
    for name in PER_TOKEN:
        setattr(episodes[1], name, getattr(episodes[1], name)[:50])
        setattr(episodes[2], name, getattr(episodes[2], name)[:0])
    return Group(id=3, episodes=episodes, version_admitted=2, seconds=1.5, stored="a reference of this process")


@pytest.mark.parametrize("out_of_band", [False, True])
def test_a_group_comes_back_as_it_was(out_of_band: bool) -> None:
    group, buffers = make_group(), list[pickle.PickleBuffer]()
    taken = pickle.dumps(group, protocol=5, buffer_callback=buffers.append if out_of_band else None)
    back = pickle.loads(taken, buffers=buffers)
    assert all(equal(*pair) for pair in zip(back.episodes, group.episodes, strict=True))
    assert (back.id, back.version_admitted, back.seconds, back.engine_load) == (3, 2, 1.5, None)
    assert back.stored is None, "a reference means something to its owner alone"
    assert back.episodes[0].images[0] is back.episodes[2].images[0], "a shared picture travels once"
    if out_of_band:
        assert len(buffers) == len(PER_TOKEN) + 4, "one per array of the group and one per picture"


def test_a_group_that_is_sent_stays_as_it_was() -> None:
    group = make_group()
    before = copy.deepcopy([vars(episode) for episode in group.episodes])
    pickle.dumps(group)
    assert group.stored == "a reference of this process"
    assert all(equal(episode, Episode(**fields)) for episode, fields in zip(group.episodes, before, strict=True))


def test_a_group_without_episodes_comes_back() -> None:
    assert pickle.loads(pickle.dumps(Group(id=1, episodes=[], version_admitted=0))).episodes == []
