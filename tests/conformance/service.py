"""The real binary on free ports, with a database and an AMQP prefix of its own."""

import itertools
import json
import os
import re
import secrets
import subprocess
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import wire
from services import PATIENCE_SECONDS, ask, eventually, free_ports, new_database

# Small rates of one address, with a reserve of ten seconds. They apply only to clients that a proxy reports, because each case
# itself has an internal address.
SESSIONS_PER_ADDRESS, REQUESTS_PER_SECOND, FAILED_TOKENS_PER_SECOND = 2, 5, 1
# Addresses for benchmarks (RFC 2544), which the service counts as public.
CLIENTS = IPv4Address("198.18.0.0")


class World:
    """The running service, and a source address and a subscriber for each case."""

    def __init__(self, process, ports, secret, log):
        self.process, self.ports, self.secret, self.log = process, ports, secret, log
        self.numbers = {}
        self.tokens = {}
        self.clients = itertools.count(1)

    def add(self, cases):
        for number, case in enumerate(cases, start=1):
            self.numbers[case] = number
            self.tokens[case] = wire.token(self.secret, sub=f"conformance-{number}")

    def connect(self, case):
        number = self.numbers[case]
        # All of 127.0.0.0/8 is loopback, and a trusted proxy.
        return wire.Connection(self.ports[case.port], f"127.1.{number // 200}.{number % 200 + 1}")

    def filled(self, case, sent):
        """Replaces the placeholders of a case."""
        target = {"public": "/v1/notifications?feed=@FEED@", "operations": "/livez"}[case.port]
        for name, value in (("TARGET", target), ("FEED", f"conformance-{self.numbers[case]}"), ("TOKEN", self.tokens[case])):
            sent = sent.replace(f"@{name}@".encode(), value.encode())
        return sent

    def new_client(self):
        """The address of a client that sent no request yet."""
        return str(CLIENTS + next(self.clients))

    def readiness(self):
        answer = ask(self.ports["operations"], "/readyz")
        return answer and json.loads(answer[1])["status"]

    def metric(self, name):
        """A metric, summed over its labels."""
        _, exposition = ask(self.ports["operations"], "/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", exposition, re.MULTILINE))

    def memory_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024

    def open_files(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def serving(binary, log):
    """Runs the service. At the end it must stop in order."""
    ports = dict(zip(("public", "operations"), free_ports(2)))
    secret = secrets.token_hex(32)
    with new_database("conformance") as database:
        environment = {
            "DATABASE_URL": database,
            "AMQP_URL": os.environ["AMQP_URL"],
            "SHOPBELL_AMQP_PREFIX": "shopbell-conformance",
            "SHOPBELL_LISTEN": f"127.0.0.1:{ports['public']}",
            "SHOPBELL_OPS_LISTEN": f"127.0.0.1:{ports['operations']}",
            "SHOPBELL_JWT_HS256_SECRET": secret,
            "SHOPBELL_TRUSTED_PROXIES": "127.0.0.0/8",
            "SHOPBELL_MAX_SESSIONS_PER_ADDRESS": str(SESSIONS_PER_ADDRESS),
            "SHOPBELL_MAX_REQUESTS_PER_ADDRESS": str(REQUESTS_PER_SECOND),
            "SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS": str(FAILED_TOKENS_PER_SECOND),
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
