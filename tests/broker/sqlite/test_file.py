from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.broker.sqlite.file import pack_headers, unpack_headers


@given(st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_headers_come_back_as_they_were(headers: list[tuple[str, bytes | None]]) -> None:
    assert unpack_headers(pack_headers(headers)) == headers
