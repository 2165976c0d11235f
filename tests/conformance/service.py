"""The real binary on free ports, with a database and an AMQP prefix of its own."""

import json
import os
import re
import secrets
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import wire

PATIENCE_SECONDS = 60


class World:
    """The running service, and a source address and a subscriber for each case."""

    def __init__(self, process, ports, secret, log):
        self.process, self.ports, self.secret, self.log = process, ports, secret, log
        self.numbers = {}
        self.tokens = {}

    def add(self, cases):
        for number, case in enumerate(cases, start=1):
            self.numbers[case] = number
            self.tokens[case] = wire.token(self.secret, sub=f"conformance-{number}")

    def connect(self, case):
        number = self.numbers[case]
        # All of 127.0.0.0/8 is loopback.
        return wire.Connection(self.ports[case.port], f"127.1.{number // 200}.{number % 200 + 1}")

    def filled(self, case, sent):
        """Replaces the placeholders of a case."""
        target = {"public": "/v1/notifications?feed=@FEED@", "operations": "/livez"}[case.port]
        for name, value in (("TARGET", target), ("FEED", f"conformance-{self.numbers[case]}"), ("TOKEN", self.tokens[case])):
            sent = sent.replace(f"@{name}@".encode(), value.encode())
        return sent

    def ask(self, path):
        """The status and the body of a request to the operations port, or None."""
        try:
            with urlopen(f"http://127.0.0.1:{self.ports['operations']}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None

    def readiness(self):
        answer = self.ask("/readyz")
        return answer and json.loads(answer[1])["status"]

    def metric(self, name):
        """A metric, summed over its labels."""
        _, exposition = self.ask("/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", exposition, re.MULTILINE))

    def memory_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024

    def open_files(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def eventually(condition, probe):
    """Calls `probe` until its result is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := probe()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {condition}"
        time.sleep(0.05)
    return result


@contextmanager
def serving(binary, log):
    """Runs the service. At the end it must stop in order."""
    ports = dict(zip(("public", "operations"), free_ports()))
    secret = secrets.token_hex(32)
    with new_database() as database:
        environment = {
            "DATABASE_URL": database,
            "AMQP_URL": os.environ["AMQP_URL"],
            "SHOPBELL_AMQP_PREFIX": "shopbell-conformance",
            "SHOPBELL_LISTEN": f"127.0.0.1:{ports['public']}",
            "SHOPBELL_OPS_LISTEN": f"127.0.0.1:{ports['operations']}",
            "SHOPBELL_JWT_HS256_SECRET": secret,
            "SHOPBELL_CANARY_SECONDS": "0",
            "SHOPBELL_DRAIN_SECONDS": "0",
            "RUST_LOG": "info,shopbell=debug",
        }
        subprocess.run([binary, "migrate"], env=environment, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
        with log.open("w") as output:
            process = subprocess.Popen([binary, "serve"], env=environment, stdout=output, stderr=output)
        world = World(process, ports, secret, log)
        try:
            eventually("the service is ready", lambda: world.readiness() == "ready" or ended(process))
            yield world
        finally:
            process.terminate()
            status = process.wait(timeout=PATIENCE_SECONDS)
        assert status == 0, f"the service ended with {status}"


def ended(process):
    assert process.poll() is None, f"the service ended with {process.returncode}"


@contextmanager
def new_database():
    url, name = urlsplit(os.environ["DATABASE_URL"]), f"conformance_{os.getpid()}"

    def execute(statement):
        subprocess.run(["psql", "-qX", url.geturl(), "-c", statement], check=True)

    execute(f"create database {name}")
    try:
        yield url._replace(path=f"/{name}").geturl()
    finally:
        execute(f"drop database {name} with (force)")


def free_ports():
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
