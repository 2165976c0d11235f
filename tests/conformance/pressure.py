"""Slow clients, floods, half-closed and reset connections, all within the bounds of a replica."""

import socket
import time

import wire
from case import OPERATIONS, Story, handshake, on_both_ports, request
from wire import MASK, PING, TEXT, Ended, frame, text

# `HEAD_TIMEOUT` of a request. The service must keep it on a busy machine too, with some delay.
HEAD_SECONDS = 5
HEAD_SECONDS_MAX = 15
# Below the bound of the public port (2,048), with room for the cases that run at the same time.
CONNECTIONS = 200
# More than the operations port keeps (64). The others wait until the first are a second old.
CROWD = 100
SESSIONS = 40
# More than the reserve of a session and its refill.
FRAMES = 20_000


def cases():
    for rule, name, steps in (
        ("RFC 9112 §9.5", "a client that sends nothing", silent),
        ("RFC 9112 §9.5", "a head that arrives byte by byte and never ends", slow_head),
        ("RFC 9112 §9.5", "a second request that never ends", slow_second_head),
        ("RFC 9112 §9.5", "a client that ends its side after a request gets its response or the end", half_closed),
        ("RFC 9112 §8", "a client that ends its side inside a head", half_closed_head),
        ("RFC 9293 §3.5.2", "a reset inside a head", reset_head),
    ):
        yield from on_both_ports([Story(rule, name, steps)])
    rule = "RFC 9112 §9.4"
    yield Story(rule, "many connections that send half a head delay no request", many_connections)
    name = "more connections than the port keeps, all with half a head, end in favour of a request"
    yield Story(rule, name, crowd, port=OPERATIONS, alone=True)
    rule = "RFC 6455 §7.2.1"
    yield Story(rule, "a client that ends its side without a close", half_closed_session)
    yield Story(rule, "a client that ends its side inside a frame", half_closed_frame)
    yield Story(rule, "a reset inside a frame", reset_frame)
    yield Story(rule, "a reset directly after the handshake", reset_handshake)
    yield Story("docs/protocol.md, limits of a client", "a flood of pings whose pongs nobody reads", unread_pongs)
    yield Story("docs/protocol.md, limits of a client", "a flood of texts", flood)
    yield Story("RFC 6455 §7.1.1", "a client that never replies to a close", unanswered_close)
    yield Story("RFC 6455 §7.1.1", "a client that sends without end after a close", endless_after_close)
    yield Story("RFC 6455 §4.1", f"{SESSIONS} sessions that open and reset at once", many_sessions)


def expect_end_in_time(connection, began):
    try:
        while True:
            connection.more()
    except Ended:
        seconds = time.monotonic() - began
        assert seconds < HEAD_SECONDS_MAX, f"the connection ended after {seconds:.0f} s"


def silent(world, case):
    with world.connect(case) as connection:
        expect_end_in_time(connection, time.monotonic())


def slow_head(world, case):
    began = time.monotonic()
    with world.connect(case) as connection:
        send_slowly(connection, world.filled(case, request()))
        expect_end_in_time(connection, began)


def slow_second_head(world, case):
    with world.connect(case) as connection:
        connection.send(world.filled(case, request()))
        assert connection.response()[0] == 200
        began = time.monotonic()
        send_slowly(connection, world.filled(case, request()))
        expect_end_in_time(connection, began)


def send_slowly(connection, head):
    """Sends a byte every 0.2 s, until the service ends the connection. It never sends the end of the head."""
    connection.socket.settimeout(0.2)
    for at in range(len(head) - 2):
        connection.send(head[at : at + 1])
        try:
            ended = connection.socket.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            ended = False
        except ConnectionError:
            ended = True
        if ended:
            break
    connection.socket.settimeout(wire.PATIENCE_SECONDS)


def half_closed(world, case):
    with world.connect(case) as connection:
        connection.send(world.filled(case, request()))
        connection.end_sending()
        try:
            assert connection.response()[0] == 200
        except Ended as ended:
            # hyper takes it for a client that is gone (RFC 9112 §9.5 allows that).
            assert not ended.args[0], ended
            return
        connection.expect_end()


def half_closed_head(world, case):
    with world.connect(case) as connection:
        connection.send(world.filled(case, request())[:-2])
        connection.end_sending()
        connection.expect_end()


def reset_head(world, case):
    connection = world.connect(case)
    connection.send(world.filled(case, request())[:-2])
    connection.reset()


def many_connections(world, case):
    beside_half_heads(world, case, CONNECTIONS)


def crowd(world, case):
    opened = time.monotonic()
    responded, ended = beside_half_heads(world, case, CROWD)
    assert responded - opened < HEAD_SECONDS, "the connections may have ended because of their own time"
    assert ended > 0, "no connection made room"


def beside_half_heads(world, case, count):
    """Sends a request while so many connections have sent half a head. Returns when its response arrived, and how many of these
    connections had ended then."""
    half = world.filled(case, request())[:-2]
    connections = [world.connect(case) for _ in range(count)]
    try:
        for connection in connections:
            connection.send(half)
        began = time.monotonic()
        with world.connect(case) as connection:
            connection.send(world.filled(case, request()))
            assert connection.response()[0] == 200
        responded = time.monotonic()
        ended = sum(has_ended(connection) for connection in connections)
        assert responded - began < HEAD_SECONDS, f"the response took {responded - began:.1f} s"
        for connection in connections:
            expect_end_in_time(connection, began)
        return responded, ended
    finally:
        for connection in connections:
            connection.socket.close()


def has_ended(connection):
    connection.socket.setblocking(False)
    try:
        return connection.socket.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.socket.settimeout(wire.PATIENCE_SECONDS)


def session(world, case):
    connection = world.connect(case)
    connection.open_session(world.filled(case, handshake()))
    return connection


def half_closed_session(world, case):
    with session(world, case) as connection:
        connection.end_sending()
        drain(connection)


def half_closed_frame(world, case):
    with session(world, case) as connection:
        connection.send(text('{"type":"ping"}')[:-3])
        connection.end_sending()
        drain(connection)


def drain(connection):
    """Reads the frames of the service until it ends the connection."""
    expect_end_in_time(connection, time.monotonic())


def reset_frame(world, case):
    connection = session(world, case)
    connection.send(text('{"type":"ping"}')[:-3])
    connection.reset()


def reset_handshake(world, case):
    connection = world.connect(case)
    connection.send(world.filled(case, handshake()))
    connection.reset()


def unread_pongs(world, case):
    with session(world, case) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        send_all_if_possible(connection, frame(PING, b"x" * 125) * FRAMES)
        pongs = 0
        while (came := connection.frame())[0] == "pong":
            pongs += 1
        assert came == ("close", 4429, "too_many_frames"), came
        assert pongs < FRAMES / 2, f"{pongs} pongs"


def flood(world, case):
    with session(world, case) as connection:
        send_all_if_possible(connection, text('{"type":"ping"}') * FRAMES)
        while (came := connection.frame()) == ("text", "pong"):
            pass
        assert came == ("close", 4429, "too_many_frames"), came


def send_all_if_possible(connection, sent):
    """The service may stop reading, or end the connection."""
    connection.socket.settimeout(1)
    try:
        connection.send(sent)
    except TimeoutError:
        pass
    connection.socket.settimeout(wire.PATIENCE_SECONDS)


def unanswered_close(world, case):
    with session(world, case) as connection:
        connection.send(frame(0x83))
        connection.expect_frames([("close", 1002, "broken_framing")])
        drain(connection)


def endless_after_close(world, case):
    with session(world, case) as connection:
        connection.send(frame(0x83))
        connection.expect_frames([("close", 1002, "broken_framing")])
        pad = frame(TEXT, b"x" * 16_000, mask=MASK)
        began = time.monotonic()
        while time.monotonic() - began < HEAD_SECONDS_MAX:
            try:
                connection.socket.sendall(pad)
            except OSError:
                return
        raise AssertionError("the service still reads")


def many_sessions(world, case):
    connections = [session(world, case) for _ in range(SESSIONS)]
    for number, connection in enumerate(connections):
        if number % 2:
            connection.send(text('{"type":"ping"}'))
        connection.reset()
