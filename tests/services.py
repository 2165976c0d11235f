"""Parts of the Python checks that run the real binary: a database of their own, free ports, and requests to the operations port.
`scripts/test` puts this folder into PYTHONPATH."""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

PATIENCE_SECONDS = 60


@contextmanager
def new_database(check):
    """Creates a database in the private Postgres, and yields its URL."""
    url, name = urlsplit(os.environ["DATABASE_URL"]), f"{check}_{os.getpid()}"

    def execute(statement):
        subprocess.run(["psql", "-qX", url.geturl(), "-c", statement], check=True)

    execute(f"create database {name}")
    try:
        yield url._replace(path=f"/{name}").geturl()
    finally:
        execute(f"drop database {name} with (force)")


def free_ports(count):
    """Ports that are different, because all are bound before one is released."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def ask(port, path):
    """The status and the body of a request to this machine, or None."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def eventually(condition, probe, *arguments):
    """Calls `probe` until its result is true, and returns the result."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := probe(*arguments)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {condition}")
        time.sleep(0.05)
    return result
