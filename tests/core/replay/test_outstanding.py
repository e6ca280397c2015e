"""What of a replay is not done with, against a model that looks at each offset."""

from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.core.commit.note import NOTHING
from dispatcher.core.replay.outstanding import Outstanding


@given(
    st.lists(st.sets(st.integers(0, 60), max_size=30).map(sorted), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 61), st.sets(st.integers(0, 61))), max_size=6),
)
def test_it_is_what_the_commits_and_their_notes_leave(
    partitions: list[list[int]], commits: list[tuple[int, int, set[int]]]
) -> None:
    outstanding = Outstanding()
    model = {(number, offset) for number, offsets in enumerate(partitions) for offset in offsets}
    for number, offset in sorted(model):
        outstanding.add(number, offset)
    for number, committed, done in commits:
        beyond = sorted(offset for offset in done if offset >= committed)
        runs: list[tuple[int, int]] = []
        for offset in beyond:
            if runs and runs[-1][1] == offset:
                runs[-1] = (runs[-1][0], offset + 1)
            else:
                runs.append((offset, offset + 1))
        outstanding.settle(number, committed, NOTHING._replace(done=runs))
        model = {(n, o) for n, o in model if n != number or (o >= committed and o not in done)}
        assert len(outstanding) == len(model)
        assert dict(outstanding.by_partition()) == {
            n: sum(m == n for m, _ in model) for n in range(3) if any(m == n for m, _ in model)
        }
