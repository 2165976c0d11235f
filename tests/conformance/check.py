"""Sends the bytes of every case to the sockets of the real binary, and compares the results with the rules. At the end
the service must be healthy, hold no session and no connection, have logged no secret, and stop in order.

usage: check.py BINARY FOLDER [WORD...]      with DATABASE_URL and AMQP_URL of the private services
WORDs choose cases by their rule or name.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import addresses
import framing
import handshakes
import messages
import pressure
import service
import smuggling
from services import eventually

# Slow cases first, so that they run beside the others.
PARTS = (pressure, addresses, framing, handshakes, messages, smuggling)
THREADS = 48
# The second run of all cases may need this much more memory than the first.
GROWTH_BYTES_MAX = 24 * 1024 * 1024


def main(binary, folder, words):
    cases = [case for part in PARTS for case in part.cases()]
    names = [str(case) for case in cases]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    chosen = [case for case in cases if all(word in str(case) for word in words)]
    began = time.monotonic()
    with service.serving(str(Path(binary).resolve()), folder / "log") as world:
        world.add(cases)
        before = rested(world)
        complaints = failures(world, chosen)
        first = rested(world)
        # Again, because a leak grows each time.
        complaints += [] if complaints else failures(world, chosen)
        second = rested(world)
        complaints += leaks(before, first, second)
        if (readiness := world.readiness()) != "ready":
            complaints.append(f"the service is {readiness}")
    complaints += logged(folder / "log", world)
    if complaints:
        complaints.append(f"the log is {folder / 'log'}")
        sys.exit("\n".join(f"conformance: {complaint}" for complaint in complaints))
    print(
        f"conformance: {len(chosen)} cases passed twice in {time.monotonic() - began:.0f} s;"
        f" memory {before[0] >> 20}, {first[0] >> 20}, {second[0] >> 20} MiB"
    )


def failures(world, cases):
    with ThreadPoolExecutor(THREADS) as threads:
        together = [case for case in cases if not case.alone]
        complaints = list(threads.map(lambda case: failure(world, case), together))
    complaints += [failure(world, case) for case in cases if case.alone]
    return [complaint for complaint in complaints if complaint]


def failure(world, case):
    try:
        case.run(world)
    except Exception as error:
        return f"{case}: {error or type(error).__name__}"
    return None


def rested(world):
    """Waits until no client is left, and returns the service's memory and number of open files."""
    for name in ("shopbell_sessions", "shopbell_connections"):
        # The request for the metrics is a connection to the operations port itself.
        eventually(f"{name} is 0", lambda name=name: world.metric(name) <= 0)
    return world.memory_bytes(), world.open_files()


def leaks(before, first, second):
    if (grown := second[0] - first[0]) > GROWTH_BYTES_MAX:
        yield f"the second run of all cases needed {grown} bytes more memory"
    if second[1] > before[1] + 20:
        yield f"{before[1]} files were open before the cases, and {second[1]} after them"


def logged(log, world):
    """Complains about secrets, panics and errors in the log."""
    content = log.read_text()
    hidden = [world.secret, *world.tokens.values(), *(urlsplit(os.environ[name]).password for name in ("DATABASE_URL", "AMQP_URL"))]
    # Each part of a token too: its signature alone would be enough for a client that guesses the claims.
    hidden += [part for token in world.tokens.values() for part in token.split(".")[1:]]
    if any(secret in content for secret in hidden):
        yield "the log has a secret"
    for line in content.splitlines():
        if "panicked" in line or not line.startswith("{") or json.loads(line)["level"] == "ERROR":
            yield f"the log has: {line}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
