"""WebSocket frames in a session (RFC 6455 §5 and §8, and docs/protocol.md)."""

from case import Session
from wire import BINARY, CLOSE, PING, PONG, TEXT, close, frame, text

ASK = text('{"type":"ping"}')
REPLY = ("text", "pong")
BROKEN = ("close", 1002, "broken_framing")
NOT_UTF8 = ("close", 1007, "not_utf8")
TOO_BIG = ("close", 1009, "too_big")
NOT_OURS = ("close", 4500, "not_the_protocol")
FLOOD = ("close", 4429, "too_many_frames")
# `SHOPBELL_MAX_FRAME_BYTES`.
FRAME_BYTES_MAX = 16_384
# More than the reserve of a session and its refill.
MANY = 3_000


def padded(length):
    """A `ping` of the protocol with so many bytes."""
    content = '{"type":"ping","pad":"%s"}'
    return (content % ("x" * (length - len(content) + 2))).encode()


def in_text(raw):
    """A `ping` with these bytes in a string."""
    return b'{"type":"ping","pad":"' + raw + b'"}'


def fragments(*payloads, first=0x01):
    """A message in fragments."""
    middle = [frame(0x00, payload) for payload in payloads[1:-1]]
    return b"".join([frame(first, payloads[0]), *middle, frame(0x80, payloads[-1])])


def cases():
    for make in (headers, lengths, fragmented, control, closes, utf8, contents):
        yield from make()


def headers():
    rule = "RFC 6455 §5.1"
    yield Session(rule, "a text without a mask", frame(TEXT, b"{}", mask=None), [BROKEN])
    yield Session(rule, "a ping without a mask", frame(PING, mask=None), [BROKEN])
    yield Session(rule, "a close without a mask", frame(CLOSE, mask=None), [BROKEN])
    yield Session("RFC 6455 §5.3", "a mask of zeros", frame(TEXT, b'{"type":"ping"}', mask=bytes(4)), [REPLY])
    for bit in (0x40, 0x20, 0x10):
        for kind in (TEXT, PING, CLOSE):
            yield Session("RFC 6455 §5.2", f"the reserved bit {bit:#x} in a frame {kind:#x}", frame(kind | bit), [BROKEN])
    for opcode in (0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF):
        yield Session("RFC 6455 §5.2", f"the reserved opcode {opcode:#x}", frame(0x80 | opcode), [BROKEN])
    yield Session("RFC 6455 §5.2", "a request of HTTP in place of a frame", b"GET / HTTP/1.1\r\n\r\n", [BROKEN])


def lengths():
    rule = "RFC 6455 §5.2"
    for length in (22, 125, 126, 127, 1_000, FRAME_BYTES_MAX):
        yield Session(rule, f"a text of {length} bytes", frame(TEXT, padded(length)), [REPLY])
    for length, width in ((22, 16), (125, 16), (22, 64), (126, 64), (1_000, 64)):
        name = f"{width} bits for a length of {length}, which is not minimal"
        yield Session(rule, name, frame(TEXT, padded(length), width=width), [BROKEN])
    yield Session(rule, "a length with its highest bit", frame(TEXT, width=64, declared=1 << 63), [BROKEN])
    rule = "docs/protocol.md, limits of a client"
    for declared in (FRAME_BYTES_MAX + 1, 65_535, 65_536, 1 << 32, (1 << 63) - 1):
        name = f"a text of {declared} bytes, without its payload"
        yield Session(rule, name, frame(TEXT, declared=declared), [TOO_BIG])
    yield Session(rule, "a binary message that is too long", frame(BINARY, declared=1 << 40), [TOO_BIG])
    whole = frame(TEXT, padded(300))
    rule = "RFC 6455 §5.2"
    yield Session(rule, "a frame in segments of one byte", [bytes([byte]) for byte in whole], [REPLY])
    yield Session(rule, "many frames in one segment", ASK * 100, [REPLY] * 100)


def fragmented():
    rule = "RFC 6455 §5.4"
    ping = b'{"type":"ping"}'
    yield Session(rule, "two fragments", fragments(ping[:4], ping[4:]), [REPLY])
    yield Session(rule, "fragments of one byte", fragments(*[bytes([byte]) for byte in ping]), [REPLY])
    yield Session(rule, "empty fragments", fragments(b"", b"", ping, b"", b""), [REPLY])
    yield Session(rule, "only empty fragments, and no JSON in them", fragments(b"", b""), [NOT_OURS])
    begun, rest = frame(0x01, ping[:4]), frame(0x80, ping[4:])
    yield Session(rule, "a ping between fragments", begun + frame(PING, b"now") + rest, [("pong", b"now"), REPLY])
    yield Session(rule, "a pong between fragments", begun + frame(PONG, b"now") + rest, [REPLY])
    yield Session(rule, "a close between fragments", begun + close(1000), [("close", 1000, None)])
    yield Session(rule, "a last continuation without a start", frame(0x80, ping), [BROKEN])
    yield Session(rule, "a continuation without a start", frame(0x00, ping), [BROKEN])
    yield Session(rule, "a continuation after a whole message", ASK + frame(0x80, ping), [REPLY, BROKEN])
    yield Session(rule, "a new text inside a fragmented one", begun + ASK, [BROKEN])
    yield Session(rule, "a first fragment inside a fragmented text", begun + begun, [BROKEN])
    yield Session(rule, "a binary message inside a fragmented text", begun + frame(BINARY, b"x"), [BROKEN])
    yield Session(rule, "a fragmented binary message", fragments(b"a", b"b", first=0x02), [NOT_OURS])
    rule = "docs/protocol.md, limits of a client"
    half = b"x" * (FRAME_BYTES_MAX // 2 + 1)
    for name, first in (("text", 0x01), ("binary", 0x02)):
        sent = frame(first, half) + frame(0x80, declared=len(half))
        yield Session(rule, f"{name} fragments that are too long together", sent, [TOO_BIG])


def control():
    rule = "RFC 6455 §5.5"
    for name, kind in (("ping", PING), ("pong", PONG), ("close", CLOSE)):
        yield Session(rule, f"a {name} of 126 bytes", frame(kind, bytes(126)), [BROKEN])
        yield Session(rule, f"a fragment of a {name}", frame(kind & 0x0F), [BROKEN])
        yield Session(rule, f"a {name} with a long length", frame(kind, declared=1 << 40), [BROKEN])
    rule = "RFC 6455 §5.5.2"
    for payload in (b"", b"x", bytes(range(125)), b"\xff" * 124):
        yield Session(rule, f"a ping of {len(payload)} bytes gets them back", frame(PING, payload), [("pong", payload)])
    payloads = [b"%d" % number for number in range(50)]
    pings = b"".join(frame(PING, payload) for payload in payloads)
    yield Session(rule, "pings in one segment get pongs in order", pings, [("pong", payload) for payload in payloads])
    yield Session("RFC 6455 §5.5.3", "a pong that nobody asked for", frame(PONG, b"x") * 3, [])
    rule = "docs/protocol.md, limits of a client"
    pongs = [("pong", b"")]
    yield Session(rule, "a flood of pongs", frame(PONG, b"x" * 125) * MANY, [FLOOD])
    yield Session(rule, "a flood of fragments", frame(0x01, b"") + frame(0x00, b"") * MANY, [FLOOD])
    yield Session(rule, "pings up to the reserve", frame(PING) * 1_000, pongs * 1_000)


def closes():
    rule = "RFC 6455 §5.5.1"
    yield Session(rule, "a close without a code", frame(CLOSE), [("close", None, None)])
    yield Session(rule, "a close with one byte", frame(CLOSE, b"\x03"), [BROKEN])
    yield Session(rule, "a close with a reason of 123 bytes", close(1000, b"r" * 123), [("close", 1000, None)])
    yield Session(rule, "a reason that is not UTF-8", close(1000, b"\xff"), [NOT_UTF8])
    yield Session(rule, "a reason that ends inside a character", close(1000, b"\xe2\x82"), [NOT_UTF8])
    yield Session(rule, "frames after a close", close(1001) + ASK + frame(PING), [("close", 1001, None)])
    yield Session(rule, "two closes", close(3000) + close(4000), [("close", 3000, None)])
    yield Session(rule, "a frame before a close is answered", ASK + close(1000), [REPLY, ("close", 1000, None)])
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):
        yield Session("RFC 6455 §7.4", f"a close with {code} gets it back", close(code), [("close", code, None)])
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535):
        yield Session("RFC 6455 §7.4", f"a close with {code}, which nobody may send", close(code), [BROKEN])


def utf8():
    rule = "RFC 6455 §8.1"
    euro, smile = "€".encode(), "😀".encode()
    yield Session(rule, "characters of two, three and four bytes", text(in_text("é€😀\uffff".encode())), [REPLY])
    for at in (1, 2, 3):
        split = fragments(b'{"type":"ping","pad":"' + smile[:at], smile[at:] + b'"}')
        yield Session(rule, f"a character of four bytes in two fragments, after byte {at}", split, [REPLY])
    whole = text(in_text(euro))
    yield Session(rule, "a character in two segments", [whole[:30], whole[30:]], [REPLY])
    for name, raw in (
        ("the byte 0xff", b"\xff"),
        ("a continuation byte alone", b"\x80"),
        ("an overlong form of two bytes", b"\xc0\xaf"),
        ("an overlong form of three bytes", b"\xe0\x80\xaf"),
        ("an overlong form of four bytes", b"\xf0\x80\x80\xaf"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("a pair of surrogates", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("a character above U+10FFFF", b"\xf4\x90\x80\x80"),
        ("a form of five bytes", b"\xf8\x88\x80\x80\x80"),
        ("a character without its last byte", euro[:2]),
    ):
        yield Session(rule, f"a text with {name}", text(in_text(raw)), [NOT_UTF8])
    yield Session(rule, "a text that ends inside a character", text(euro[:2]), [NOT_UTF8])
    yield Session(rule, "a first fragment that is not UTF-8, without the others", frame(0x01, b"\xff"), [NOT_UTF8])
    begun = frame(0x01, in_text(euro)[:-3])
    yield Session(rule, "a fragment that breaks the character of another", begun + frame(0x00, b"x"), [NOT_UTF8])
    unfinished = frame(TEXT, b"\xed\xa0" + bytes(50))[:-50]
    yield Session(rule, "a byte that cannot follow, without the rest of its frame", unfinished, [NOT_UTF8])


def contents():
    rule = "docs/protocol.md, frames"
    for name, content in (
        ("an empty text", b""),
        ("no JSON", b"ding dong"),
        ("a list", b"[]"),
        ("an object without a type", b'{"seq":1}'),
        ("a type that is a number", b'{"type":1}'),
        ("two types", b'{"type":"ping","type":"ping"}'),
        ("a second object", b'{"type":"ping"}{}'),
        ("a byte order mark", '\ufeff{"type":"ping"}'.encode()),
        ("a NUL in a string", b'{"type":"ping","pad":"\0"}'),
        ("a surrogate as an escape", b'{"type":"\\ud800"}'),
        ("10,000 open lists", b'{"type":"ping","pad":' + b"[" * 10_000),
        ("an ack without its number", b'{"type":"ack","feed":"all"}'),
        ("an ack of half a number", b'{"type":"ack","feed":"all","seq":0.5}'),
    ):
        yield Session(rule, f"a text with {name}", text(content), [NOT_OURS])
    yield Session(rule, "a binary message", frame(BINARY, b'{"type":"ping"}'), [NOT_OURS])
    yield Session(rule, "an empty binary message", frame(BINARY), [NOT_OURS])
    for name, content, code in (
        ("an unknown type", '{"type":"sing"}', "unknown_type"),
        ("an ack above the sent numbers", '{"type":"ack","feed":"all","seq":9007199254740993}', "ack_not_sent"),
        ("an ack beyond all numbers", '{"type":"ack","feed":"all","seq":1e400}', "ack_not_sent"),
        ("an ack of another feed", '{"type":"ack","feed":"another","seq":1}', "unknown_feed"),
        ("a mark in the broadcast feed", '{"type":"handle","feed":"all","seqs":[1]}', "read_only"),
        ("a token that is no token", '{"type":"auth","token":"a.b.c"}', "token_refused"),
    ):
        yield Session(rule, f"a text with {name}", text(content), [("error", code)])
