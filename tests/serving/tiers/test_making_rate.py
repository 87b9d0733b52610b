"""How often each client may have something made: by any clock, and never more than so many in any minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.tiers import making_rate
from serving.tiers.making_rate import MakingRate


def test_a_minute_s_makings_may_be_used_at_once_and_come_back_one_by_one() -> None:
    rate = MakingRate(3)
    assert [rate.take("ana", 100.0) for _ in range(3)] == [0.0] * 3
    assert rate.take("ana", 100.0) == 20.0
    assert rate.take("ana", 119.0) == 1.0
    assert [rate.take("ana", 120.0), rate.take("ana", 120.0)] == [0.0, 20.0]
    assert [rate.take("ana", 500.0) for _ in range(3)] == [0.0] * 3


def test_clients_do_not_use_up_each_other_s() -> None:
    rate = MakingRate(1)
    assert [rate.take(client, 0.0) for client in ("ana", "bob", "ana")] == [0.0, 0.0, 60.0]


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=200))
def test_never_more_than_twice_the_makings_in_a_minute_and_the_wait_is_enough(
    per_minute: int, pauses: list[float]
) -> None:
    rate, now, made = MakingRate(per_minute), 0.0, []
    for pause in pauses:
        now += pause
        wait = rate.take("ana", now)
        if not wait:
            made.append(now)
        else:
            assert rate.take("ana", now + wait + 1e-3) == 0.0
            made.append(now := now + wait + 1e-3)
    assert all(sum(start <= when < start + 60 for when in made) <= 2 * per_minute for start in made)


def test_clients_of_long_ago_are_forgotten() -> None:
    rate = MakingRate(60)
    for client in range(10 * making_rate._SWEEP_AT):
        rate.take(client, float(client))
    assert len(rate._whole_again) <= making_rate._SWEEP_AT + 1
