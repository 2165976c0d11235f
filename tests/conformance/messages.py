"""Requests on both ports: their form, their bounds, and the reuse of connections (RFC 9110 and RFC 9112)."""

from case import ANY, END, OPEN, TARGET, TOKEN, Request, handshake, on_both_ports, request

# Longest head of a request.
HEAD_BYTES_MAX = 16 * 1024
AUTHORIZED = f"Host: shop.example\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
LINE = f"GET {TARGET} HTTP/1.1\r\n".encode()


def cases():
    for make in (lines, headers, hosts, bounds, bodies, connections):
        yield from on_both_ports(make())
    yield from targets()


def lines():
    rule = "RFC 9112 §3"
    yield Request(rule, "a request", request(), [200], OPEN)
    yield Request("RFC 9112 §2.2", "an empty line before a request", b"\r\n" + request(), [200], OPEN)
    for name, line in (
        ("two spaces", b"GET  / HTTP/1.1"),
        ("no version", b"GET /"),
        ("the version 1.9", b"GET / HTTP/1.9"),
        ("a version in lower case", b"GET / http/1.1"),
        ("the version of another protocol", b"GET / HTCPCP/1.0"),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0"),
        ("a NUL in the target", b"GET /\0 HTTP/1.1"),
        ("a space in the target", b"GET /a b HTTP/1.1"),
        ("a method with a bracket", b"G(T / HTTP/1.1"),
        ("a space before the method", b" GET / HTTP/1.1"),
        ("a byte order mark", b"\xef\xbb\xbfGET / HTTP/1.1"),
    ):
        sent = line + b"\r\n" + AUTHORIZED + b"\r\n"
        yield Request(rule, f"a request line with {name}", sent, [{400, 505}], END)
    yield Request(rule, "a handshake of TLS", bytes.fromhex("16030100f1010000ed0303") + bytes(32), [400], END)
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"):
        name = f"the method {method}"
        yield Request("RFC 9110 §15.5.6", name, request(method=method), [405], OPEN, {"allow": "GET,HEAD"})
    yield Request("RFC 9110 §9.3.2", "the method HEAD", request(method="HEAD"), [200], OPEN, of_head=True)
    connect = request(method="CONNECT", target="shop.example:443")
    yield Request("RFC 9112 §3.2.3", "CONNECT", connect, [{400, 404, 405}], ANY)
    options = request(method="OPTIONS", target="*")
    yield Request("RFC 9112 §3.2.4", "OPTIONS *", options, [{200, 204, 400, 404, 405}], OPEN)
    absolute = request(target=f"http://shop.example{TARGET}")
    yield Request("RFC 9112 §3.2.2", "an absolute target", absolute, [200], OPEN)
    yield Request("RFC 9110 §7.1", "a target without a slash", request(target="livez"), [{400, 404}], ANY)


def headers():
    rule = "RFC 9112 §5"
    for name, header in (
        ("a space before the colon", b"X-Note : a"),
        ("a tab before the colon", b"X-Note\t: a"),
        ("no colon", b"X-Note"),
        ("no name", b": a"),
        ("a space in the name", b"X Note: a"),
        ("a NUL in the name", b"X-\0: a"),
        ("a NUL in the value", b"X-Note: a\0b"),
        ("a carriage return in the value", b"X-Note: a\rb"),
        ("a bell in the value", b"X-Note: a\x07b"),
        ("a folded value", b"X-Note: a\r\n b"),
        ("a folded value with a tab", b"X-Note: a\r\n\tb"),
    ):
        yield Request(rule, f"a header with {name}", LINE + AUTHORIZED + header + b"\r\n\r\n", [400], END)
    folded = LINE + b" X-Note: a\r\n" + AUTHORIZED + b"\r\n"
    yield Request(rule, "a first header that begins with a space", folded, [400], END)
    for name, header in (
        ("bytes above 127", b"X-Note: \xe9\xff"),
        ("spaces around it", b"X-Note: \t a \t"),
        ("no text", b"X-Note:"),
    ):
        yield Request("RFC 9110 §5.5", f"a value with {name}", LINE + AUTHORIZED + header + b"\r\n\r\n", [200], OPEN)
    bare = (LINE + AUTHORIZED + b"\r\n").replace(b"\r\n", b"\n")
    yield Request("RFC 9112 §2.2", "lines that end with a line feed", bare, [{200, 400}], ANY)


def hosts():
    rule = "RFC 9112 §3.2"
    for name, values in (
        ("none", None),
        ("two", ["shop.example", "evil.example"]),
        ("two equal", ["shop.example"] * 2),
        ("a list", "a, b"),
        ("a path", "a/b"),
        ("a user", "u@a"),
        ("a space", "a b"),
    ):
        yield Request(rule, f"Host with {name}", request({"Host": values}), [400], OPEN)
    for name, value in (("a port", "shop.example:8080"), ("an IPv6 address", "[::1]:80"), ("nothing", "")):
        yield Request(rule, f"Host with {name}", request({"Host": value}), [200], OPEN)
    yield Request(rule, "HTTP/1.0 without Host", request({"Host": None}, version="HTTP/1.0"), [200], END)


def bounds():
    rule = "RFC 6585 §5, docs/limits.md"
    yield Request(rule, "a header of 12 KiB", request({"X-Note": "x" * 12_288}), [200], OPEN)
    for name, sent in (
        ("a header of 17 KiB", request({"X-Note": "x" * 17_408})),
        ("200 headers", request({"X-Note": ["x"] * 200})),
        ("a head that never ends", LINE + b"X-Note: x\r\n" * 4_000),
        ("a header that never ends", LINE + b"X-Note: " + b"x" * 40_000),
    ):
        yield Request(rule, name, sent, [431], END)
    long = request(target="/" + "x" * 20_000)
    yield Request("RFC 9110 §15.5.15", "a target of 20,000 bytes", long, [{414, 431}], END)
    yield Request("RFC 9112 §3", "a method of 20,000 bytes", b"G" * 20_000, [{400, 431, 501}], END)


def bodies():
    rule = "RFC 9112 §6.3"
    sized = {"Content-Length": "5"}
    yield Request(rule, "a body with GET, and the next request after it", request(sized, body=b"hello"), [200], ANY)
    yield Request(rule, "a body that never arrives", request(sized), [200], END)
    endless = request({"Content-Length": "1000000000"}, method="POST", body=b"x" * 300_000)
    yield Request(rule, "an endless body", endless, [405], END)
    expected = request(sized | {"Expect": "100-continue"}, method="POST")
    yield Request("RFC 9110 §10.1.1", "a body that waits for 100", expected, [405], END)


def connections():
    rule = "RFC 9112 §9.3"
    yield Request(rule, "three requests in one segment", request() * 3, [200] * 3, OPEN)
    missing = request(target="/missing")
    several = missing + request() + missing
    yield Request(rule, "different requests in one segment, answered in order", several, [404, 200, 404], OPEN)
    yield Request(rule, "a request after one that is not valid", b"G(T / HTTP/1.1\r\n\r\n" + request(), [400], END)
    yield Request("RFC 9112 §9.6", "Connection: close", request({"Connection": "close"}) + request(), [200], END)
    yield Request("RFC 9112 §9.3", "HTTP/1.0", request(version="HTTP/1.0"), [200], END)
    kept = request({"Connection": "keep-alive"}, version="HTTP/1.0")
    yield Request("RFC 9112 §9.3", "HTTP/1.0 that keeps the connection", kept, [200], OPEN)
    h2c = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    yield Request("RFC 9110 §7.8", "an upgrade to HTTP/2, which is ignored", request(h2c), [200], OPEN)
    yield Request(rule, "a request in segments of one byte", request(), [200], OPEN, by_byte=True)


def targets():
    rule = "docs/protocol.md, history"
    for name, target, status in (
        ("an escape that is not UTF-8", "/v1/feeds/%ff/notifications", 400),
        ("half an escape", "/v1/feeds/a%4/notifications", {400, 403}),
        ("a NUL", "/v1/feeds/a%00b/notifications", 400),
        ("dots", "/v1/feeds/../../etc/passwd", 404),
        ("escaped dots", "/v1/feeds/%2e%2e/notifications", {400, 403}),
        ("a feed of another token", "/v1/feeds/another/notifications", 403),
        ("a bad limit", "/v1/notifications?feed=@FEED@&limit=9999999999", 400),
        ("a parameter twice", "/v1/notifications?feed=@FEED@&feed=another", 400),
        ("an escape in the query that is not UTF-8", "/v1/notifications?feed=%ff", {400, 403}),
        ("another path", "/v1/feeds", 404),
    ):
        yield Request(rule, f"a target with {name}", request(target=target), [status], OPEN)
    body = handshake({"Content-Length": "5"}, body=b"\x89\x80\0\0\0")
    yield Request("RFC 9110 §7.8", "a handshake with a body, which is not read as frames", body, [{101, 400}], [])
