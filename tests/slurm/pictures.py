"""python -m tests.slurm.pictures: a small Commons on a node's own 127.0.0.1, until it is killed."""

from __future__ import annotations

import signal

from data_tools.demo.server import serve
from tests.data_tools.local_web import animals

# of the node's network namespace, where nothing else listens
API_PORT, IMAGES_PORT = 8801, 8802


def main() -> None:
    pictures = animals()
    with serve(pictures, ports={"api": API_PORT, pictures[0].site: IMAGES_PORT}):
        signal.pause()


if __name__ == "__main__":
    main()
