"""A case: the rule, the bytes that a client sends, and the expected result."""

from dataclasses import dataclass, field, replace

import wire

PUBLIC, OPERATIONS = "public", "operations"
PORTS = (PUBLIC, OPERATIONS)
# Replaced when a case runs: a token of a subscriber that only this case has, and a target of the port that exists.
TOKEN, TARGET = "@TOKEN@", "@TARGET@"
# The headers of a handshake that is accepted (RFC 6455 §4.1). They suit each request.
HANDSHAKE = {
    "Host": "shop.example",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": wire.KEY,
    "Authorization": f"Bearer {TOKEN}",
}


def handshake(changed=None, target="/v1/ws", method="GET", version="HTTP/1.1", body=b""):
    """A handshake with some headers changed. A header may have several values, or none, which removes it."""
    return request({**HANDSHAKE, **(changed or {})}, target, method, version, body)


def request(headers=None, target=TARGET, method="GET", version="HTTP/1.1", body=b""):
    lines = [f"{method} {target} {version}"]
    given = {"Host": "shop.example", "Authorization": f"Bearer {TOKEN}"} | (headers or {})
    for name, values in given.items():
        values = [values] if isinstance(values, str) else values or []
        lines += [f"{name}: {value}" for value in values]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(frozen=True, eq=False)
class Case:
    """`run` gets the service's World and raises an AssertionError if the service breaks the rule."""

    rule: str
    name: str
    port: str = field(default=PUBLIC, kw_only=True)
    # Whether no other case may run at the same time.
    alone: bool = field(default=False, kw_only=True)

    def __str__(self):
        return f"{self.rule}: {self.name} ({self.port} port)"


@dataclass(frozen=True, eq=False)
class Session(Case):
    """Frames in a new session, and the frames that the service must send."""

    pieces: bytes | list
    expected: list

    def run(self, world):
        with world.connect(self) as connection:
            connection.open_session(world.filled(self, handshake()))
            connection.send(*as_list(self.pieces))
            expect_in_session(connection, self.expected)


def expect_in_session(connection, expected):
    """The last frame may be a close. Otherwise the session must still work after it."""
    connection.expect_frames(expected)
    if not expected or expected[-1][0] != "close":
        connection.send(wire.text('{"type":"ping"}'), wire.close(1000))
        connection.expect_frames([("text", "pong"), ("close", 1000, None)])
    else:
        # The service ends the connection after the client's close (RFC 6455 §7.1.1).
        connection.send(wire.close(1000))
    connection.expect_end()


# The connection after the last response: it must serve another request, or it must end, or one of these.
OPEN, END, ANY = "open", "end", "open or end"


@dataclass(frozen=True, eq=False)
class Request(Case):
    """Bytes on a new connection, and the statuses of the responses. A status may be a set. `then` is the state of the
    connection after them: OPEN, END, ANY, or the frames that a session must send."""

    sent: bytes
    statuses: list
    then: str | list
    headers: dict = field(default_factory=dict)
    of_head: bool = False
    by_byte: bool = False

    def run(self, world):
        with world.connect(self) as connection:
            sent = world.filled(self, self.sent)
            connection.send(*(sent[at : at + 1] for at in range(len(sent))) if self.by_byte else [sent])
            for number, expected in enumerate(self.statuses):
                status, headers, body = connection.response(self.of_head)
                allowed = expected if isinstance(expected, set) else {expected}
                assert status in allowed, f"response {number + 1} has the status {status}, expected {expected}: {body!r}"
            for name, value in self.headers.items():
                assert headers.get(name) == value, f"{name}: {headers.get(name)}, expected {value}"
            if isinstance(self.then, list):
                assert headers["sec-websocket-accept"] == wire.ACCEPT, headers
                expect_in_session(connection, self.then)
            elif self.then == END:
                connection.expect_end()
            else:
                connection.send(world.filled(self, request()))
                self.expect_only_the_next(connection)

    def expect_only_the_next(self, connection):
        """Any other response would be for bytes that were no request."""
        try:
            status, _, body = connection.response()
        except wire.Ended as ended:
            assert self.then == ANY and not ended.args[0], f"the connection ended: {ended}"
            return
        assert status == 200, f"the next request got {status}: {body!r}"
        assert connection.unread == b"", f"more bytes: {connection.unread!r}"


@dataclass(frozen=True, eq=False)
class Story(Case):
    """A case with steps of its own: `steps` gets the world and the case."""

    steps: object

    def run(self, world):
        self.steps(world, self)


def on_both_ports(cases):
    return [replace(case, port=port) for case in cases for port in PORTS]


def as_list(pieces):
    return [pieces] if isinstance(pieces, bytes) else pieces
