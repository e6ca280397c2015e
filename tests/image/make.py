"""`python -m tests.image.make PROJECT FOLDER`: makes the image there, and writes what there is to say of it into the file `built`."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from tests.image.dockerfile import Build

if __name__ == "__main__":
    project, folder = map(Path, sys.argv[1:])
    (folder / "built").write_bytes(pickle.dumps(Build(project, folder).run()))
