"""The handshake of `GET /v1/ws` (RFC 6455 §4 and docs/protocol.md)."""

from case import ANY, END, OPEN, TOKEN, Request, handshake
from wire import KEY, PING, frame

ACCEPTED = {"upgrade": "websocket"}
REFUSED = {"content-type": "application/problem+json"}


def accepted(rule, name, sent, headers=None, **more):
    return Request(rule, name, sent, [101], [], ACCEPTED | (headers or {}), **more)


def refused(rule, name, sent, status, headers=None, then=OPEN):
    return Request(rule, name, sent, [status], then, REFUSED | (headers or {}))


def cases():
    for make in (request_lines, upgrades, keys_and_versions, subprotocols, origins, tokens, parameters):
        yield from make()


def request_lines():
    rule = "RFC 6455 §4.1"
    yield accepted(rule, "a handshake", handshake())
    yield refused(rule, "HTTP/1.0", handshake(version="HTTP/1.0"), 505, then=END)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT"):
        yield Request(rule, f"the method {method}", handshake(method=method), [{400, 404, 405}], ANY)
    yield accepted("RFC 9112 §3.2.2", "a handshake with an absolute target", handshake(target="http://shop.example/v1/ws"))
    names = [b"Host:", b"Upgrade:", b"Connection:", b"Sec-WebSocket-Version:", b"Sec-WebSocket-Key:", b"Authorization:"]
    for case, change in (("upper", bytes.upper), ("lower", bytes.lower)):
        sent = handshake()
        for name in names:
            sent = sent.replace(name, change(name))
        yield accepted("RFC 9110 §5.1", f"names in {case} case", sent)
    yield accepted("RFC 9112 §2.2", "a handshake in segments of one byte", handshake(), by_byte=True)
    yield Request(rule, "frames in the segment of the handshake", handshake() + frame(PING), [101], [("pong", b"")])


def upgrades():
    rule = "RFC 6455 §4.2.1"
    upgrade = {"upgrade": "websocket"}
    for name, values in (
        ("a list", "keep-alive, Upgrade"),
        ("lower case", "upgrade"),
        ("two lines", ["keep-alive", "Upgrade"]),
        ("empty elements", ",, Upgrade ,"),
    ):
        yield accepted(rule, f"Connection with {name}", handshake({"Connection": values}))
    for name, value in (
        ("none", None),
        ("keep-alive", "keep-alive"),
        ("a longer word", "upgraded"),
        ("a quoted word", '"Upgrade"'),
    ):
        yield refused(rule, f"Connection with {name}", handshake({"Connection": value}), 426, upgrade)
    yield refused(rule, "Connection with close", handshake({"Connection": "close"}), 426, upgrade, then=END)
    yield accepted(rule, "Upgrade in upper case", handshake({"Upgrade": "WEBSOCKET"}))
    yield accepted("RFC 9110 §7.8", "Upgrade as a list", handshake({"Upgrade": "h2c, websocket"}))
    for name, value in (("none", None), ("h2c", "h2c"), ("a version", "websocket/13")):
        yield refused(rule, f"Upgrade with {name}", handshake({"Upgrade": value}), 426, upgrade)


def keys_and_versions():
    rule = "RFC 6455 §4.2.1"
    supported = {"sec-websocket-version": "13"}
    for name, values in (
        ("none", None),
        ("8", "8"),
        ("0", "0"),
        ("25", "25"),
        ("a word", "thirteen"),
        ("two", ["13", "8"]),
        ("a list", "13, 8"),
    ):
        sent = handshake({"Sec-WebSocket-Version": values})
        yield refused("RFC 6455 §4.4", f"Sec-WebSocket-Version with {name}", sent, 426, supported)
    for name, values in (
        ("none", None),
        ("15 bytes", "AAECAwQFBgcICQoLDA0O"),
        ("17 bytes", "AAECAwQFBgcICQoLDA0ODxA="),
        ("no base64", "!" * 24),
        ("no padding", KEY.rstrip("=")),
        ("base64 of URLs", "_" * 21 + "w=="),
        ("two keys", [KEY, KEY]),
        ("nothing", ""),
    ):
        yield refused(rule, f"Sec-WebSocket-Key with {name}", handshake({"Sec-WebSocket-Key": values}), 400)
    deflate = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    none = {"sec-websocket-extensions": None}
    yield accepted("RFC 6455 §9.1", "an extension, which is not accepted", handshake(deflate), none)


def subprotocols():
    rule, name = "docs/protocol.md, handshake", "Sec-WebSocket-Protocol"
    ours = {"sec-websocket-protocol": "shopbell.v1"}
    yield accepted(rule, "no subprotocol", handshake(), {"sec-websocket-protocol": None})
    yield accepted(rule, "our subprotocol", handshake({name: "shopbell.v1"}), ours)
    yield accepted(rule, "our subprotocol among others", handshake({name: "graphql-ws, shopbell.v1"}), ours)
    yield accepted(rule, "subprotocols in two lines", handshake({name: ["graphql-ws", "shopbell.v1"]}), ours)
    yield refused(rule, "another subprotocol", handshake({name: "graphql-ws"}), 400)
    yield refused("RFC 6455 §4.1", "our subprotocol in upper case", handshake({name: "SHOPBELL.V1"}), 400)
    page = {name: f"shopbell.v1, bearer.{TOKEN}", "Authorization": None}
    yield accepted(rule, "the token as a subprotocol, which is not sent back", handshake(page), ours)


def origins():
    rule = "RFC 6455 §4.2.2, docs/protocol.md"
    yield accepted(rule, "the page's own host", handshake({"Origin": "https://shop.example"}))
    for name, values in (
        ("another host", "https://evil.example"),
        ("the origin null", "null"),
        ("another port", "https://shop.example:8443"),
        ("a longer host", "https://shop.example.evil"),
        ("two origins", ["https://shop.example", "https://evil.example"]),
        ("no URL", "shop.example"),
    ):
        yield refused(rule, f"a page with {name}", handshake({"Origin": values}), 403)
    absolute = "http://evil.example/v1/ws"
    name = "an absolute target of another host, which replaces Host"
    yield refused("RFC 9112 §3.2.2", name, handshake({"Origin": "https://shop.example"}, target=absolute), 403)


def tokens():
    rule = "docs/protocol.md, tokens"
    for name, values in (
        ("no token", None),
        ("an empty token", "Bearer "),
        ("another scheme", "Basic c2hvcDpiZWxs"),
        ("no JWT", "Bearer abc"),
        ("a token of 8 KiB", f"Bearer {'a' * 8_193}"),
        ("two tokens", [f"Bearer {TOKEN}"] * 2),
        ("a token without its signature", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJtIn0."),
    ):
        yield refused(rule, name, handshake({"Authorization": values}), 401)
    yield refused(rule, "a token in the URL", handshake(target="/v1/ws?token=a.b.c"), 400)
    page = {"Sec-WebSocket-Protocol": "shopbell.v1, bearer.a.b.c", "Authorization": None, "Origin": "https://shop.example"}
    name = "a page without a token gets a close"
    yield Request("docs/protocol.md, refused handshakes", name, handshake(page), [101], [("close", 4501, "token_refused")])


def parameters():
    rule = "docs/protocol.md, handshake"
    yield accepted(rule, "a device", handshake(target="/v1/ws?device=till%202&other=%ff"))
    for name, query in (
        ("a NUL in a device", "device=a%00b"),
        ("a device that is not UTF-8", "device=%ff"),
        ("half an escape", "device=%4"),
        ("an escape without hexadecimal digits", "device=%zz"),
        ("a sign in an escape", "device=%+f"),
        ("a device of 65 characters", f"device={'d' * 65}"),
        ("a feed twice", "after=all:1&after=all:2"),
        ("a negative number", "after=all:-1"),
        ("a number beyond 64 bits", "after=all:18446744073709551616"),
        ("no number", "after=all"),
        ("a feed 70 times", "&".join(f"after=f{number}:1" for number in range(70))),
    ):
        yield refused(rule, f"the query with {name}", handshake(target=f"/v1/ws?{query}"), 400)
    yield refused(rule, "a feed that the token does not name", handshake(target="/v1/ws?after=another:1"), 403)
    yield refused(rule, "a path with an escape in place of a letter, another path", handshake(target="/v1/%77s"), 404)
