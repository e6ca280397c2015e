from __future__ import annotations

import socket

import pytest

from dispatcher.workers.place import WorkerPlace


@pytest.mark.parametrize("ports", [(), (4001,), (4001, 4002)])
def test_a_place_is_read_as_it_was_written(ports: tuple[int, ...]) -> None:
    place = WorkerPlace(2, 7, 8, ports)
    assert WorkerPlace.read(str(place)) == place


@pytest.mark.parametrize("text", ["", "2", "a:b:c:", "1:2:3", "1:2:3:4:5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        WorkerPlace.read(text)


def test_its_descriptors_are_sockets() -> None:
    one, two = socket.socketpair()
    place = WorkerPlace(1, one.detach(), two.detach(), ())
    with place.open_link() as link, place.open_listener() as other:
        link.sendall(b"x")
        assert other.recv(1) == b"x"
