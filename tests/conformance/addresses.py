"""The limits of client addresses behind a proxy (docs/limits.md). The service trusts all of 127.0.0.0/8, so each case is a proxy
that names its clients in X-Forwarded-For."""

import time

from case import TOKEN, Story, handshake, request
from service import FAILED_TOKENS_PER_SECOND, REQUESTS_PER_SECOND, SESSIONS_PER_ADDRESS

# Seconds of its rate that a client saves up.
SAVED_SECONDS = 10
# More than the reserve of any rate and its refill, also on a busy machine.
ATTEMPTS_MAX = 500


def cases():
    rule = "docs/limits.md, clients"
    yield Story(rule, "an address gets its requests and ten seconds of them at once", requests)
    yield Story(rule, "refused tokens stop their address, also for good tokens", guesses)
    yield Story(rule, "an address has a bound of sessions", sessions)
    rule = "docs/limits.md, proxies"
    yield Story(rule, "a client that puts other addresses before its own is still the same", spoofed_guesses)
    yield Story(rule, "malformed elements are one client, and no other", malformed)


def forwarded(*chain):
    return {"X-Forwarded-For": list(chain)}


def guess(number, *chain):
    return request(forwarded(*chain) | {"Authorization": f"Bearer guess-{number}"})


def attempts_until_429(world, case, rate, make):
    """Sends requests on one connection until one is refused. `make` builds the bytes of the request with this number."""
    began = time.monotonic()
    with world.connect(case) as connection:
        for number in range(ATTEMPTS_MAX):
            connection.send(world.filled(case, make(number)))
            status, headers, body = connection.response()
            if status == 429:
                assert "retry-after" in headers, headers
                most = rate * (SAVED_SECONDS + time.monotonic() - began) + 1
                assert number <= most, f"{number} requests were allowed, at most {most:.0f} expected"
                return number
            assert status in (200, 401), (status, body)
    raise AssertionError(f"{ATTEMPTS_MAX} requests were not limited")


def expect(world, case, status, sent):
    with world.connect(case) as connection:
        connection.send(world.filled(case, sent))
        got, _, body = connection.response()
        assert got == status, f"the status is {got}, expected {status}: {body!r}"


def requests(world, case):
    client = world.new_client()
    allowed = attempts_until_429(world, case, REQUESTS_PER_SECOND, lambda _: request(forwarded(client)))
    assert allowed >= REQUESTS_PER_SECOND * SAVED_SECONDS, f"only {allowed} requests"
    expect(world, case, 200, request(forwarded(world.new_client())))
    # The case itself is internal, so it has no bound.
    expect(world, case, 200, request())


def guesses(world, case):
    client = world.new_client()
    allowed = attempts_until_429(world, case, FAILED_TOKENS_PER_SECOND, lambda number: guess(number, client))
    assert allowed >= FAILED_TOKENS_PER_SECOND * SAVED_SECONDS, f"only {allowed} tokens"
    # The bound allows one more attempt each second, which the guess uses up.
    with world.connect(case) as connection:
        for number in range(SAVED_SECONDS):
            connection.send(world.filled(case, guess(number, client) + request(forwarded(client))))
            statuses = [connection.response()[0] for _ in range(2)]
            if statuses[1] == 429:
                break
        else:
            raise AssertionError(f"good tokens are checked: {statuses}")
    expect(world, case, 200, request(forwarded(world.new_client())))


def spoofed_guesses(world, case):
    client, forged = world.new_client(), world.new_client()
    spellings = (
        [f"{forged}, {client}"],
        [forged, client],
        [f"{forged},{client}:4711"],
        [f'"{forged}, {client}'],
        [f"localhost, {client}"],
        # The last proxy is trusted.
        [f"{client}, 127.9.9.9"],
        [f"{client},127.9.9.9", "127.8.8.8"],
        [f"::ffff:{client}"],
    )
    attempts_until_429(
        world, case, FAILED_TOKENS_PER_SECOND, lambda number: guess(number, *spellings[number % len(spellings)])
    )
    expect(world, case, 200, request(forwarded(forged)))
    # Another header names nobody.
    other = request(forwarded(world.new_client()) | {"Forwarded": f"for={client}", "X-Real-IP": client})
    expect(world, case, 200, other)


def malformed(world, case):
    client = world.new_client()
    elements = ("localhost", "", f"{client};", f"{client}.1", "1.2.3.999", f'"{client}"', f"{client} {client}", "[::1")
    # In a second run of the cases, a part of the reserve is used.
    attempts_until_429(
        world, case, FAILED_TOKENS_PER_SECOND, lambda number: guess(number, f"{client}, {elements[number % len(elements)]}")
    )
    expect(world, case, 200, request(forwarded(client)))


def sessions(world, case):
    client, other = world.new_client(), world.new_client()
    opened = [session(world, case, client) for _ in range(SESSIONS_PER_ADDRESS)]
    try:
        for chain in ([client], [f"{other}, {client}"], [other, f"{client}:80"], [f"x, {client}"]):
            expect(world, case, 429, handshake(forwarded(*chain)))
        page = {"Sec-WebSocket-Protocol": f"shopbell.v1, bearer.{TOKEN}", "Authorization": None}
        with world.connect(case) as connection:
            connection.send(world.filled(case, handshake(forwarded(client) | page)))
            assert connection.response()[0] == 101
            connection.expect_frames([("close", 4429, "too_many_sessions")])
        with session(world, case, other) as connection:
            connection.reset()
    finally:
        for connection in opened:
            connection.reset()


def session(world, case, client):
    connection = world.connect(case)
    connection.open_session(world.filled(case, handshake(forwarded(client))))
    return connection
