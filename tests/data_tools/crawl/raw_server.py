"""A server that answers by bytes of its choice, HTTP or not.

with raw_site({"/a.jpg": b"SSH-2.0-OpenSSH\r\n"}) as host: ...
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

NO_ROBOTS = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def raw_site(answers: Mapping[str, bytes], repeat: Mapping[str, bytes]) -> Iterator[str]:
    """host:port of a server that sends `answers[path]` and hangs up, or `repeat[path]` again and
    again, ten times a second."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                request = connection.recv(65536).decode("latin-1")
                path = request.split(" ")[1] if " " in request else ""
                connection.sendall(answers.get(path, b"" if path in repeat else NO_ROBOTS))
                while path in repeat and not ended.is_set():
                    connection.sendall(repeat[path])
                    time.sleep(0.1)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=20)
