"""Where a worker stands among those of its machine: what the supervisor gives to each process that it starts.

It travels on the command line (`--worker`, which nobody writes by hand) as `number:link:listener:port,port`:

- `number`, from 1;
- `link` and `listener`, file descriptors that the process inherits: a stream to the supervisor, and the socket on which this worker
  serves HTTP, already listening. The first worker's is `http.host` and `http.port`; the others have one on the loopback;
- the loopback ports of all workers but the first, in their order. The first one asks there for the others' metrics.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerPlace:
    """One worker's."""

    number: int
    link: int
    listener: int
    ports: tuple[int, ...]

    def __str__(self) -> str:
        ports = ",".join(map(str, self.ports))
        return f"{self.number}:{self.link}:{self.listener}:{ports}"

    @classmethod
    def read(cls, text: str) -> WorkerPlace:
        """What `str` wrote. Raises ValueError for anything else."""
        number, link, listener, ports = text.split(":")
        return cls(int(number), int(link), int(listener), tuple(map(int, filter(None, ports.split(",")))))

    def open_link(self) -> socket.socket:
        """The stream to the supervisor. It is closed at the other end when the supervisor is gone."""
        return socket.socket(fileno=self.link)

    def open_listener(self) -> socket.socket:
        """Where to serve HTTP."""
        return socket.socket(fileno=self.listener)
