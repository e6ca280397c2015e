from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.broker.base import TopicPartition
from dispatcher.broker.sqlite.group import assign


@given(
    st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 7)),
)
def test_every_partition_that_somebody_wants_has_one_owner_and_shares_are_even(
    wanted: list[set[str]], topics: dict[str, int]
) -> None:
    shares = assign(list(enumerate(wanted)), topics)
    assert [member for member, _ in shares] == list(range(len(wanted)))
    given_out = [partition for _, share in shares for partition in share]
    expected = {
        TopicPartition(t, p) for t, n in topics.items() if any(t in w for w in wanted) for p in range(n)
    }
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == expected
    for member, share in shares:
        assert {partition.topic for partition in share} <= wanted[member]
    if all(topics_wanted == wanted[0] for topics_wanted in wanted):
        sizes = [len(share) for _, share in shares]
        assert max(sizes) - min(sizes) <= 1
