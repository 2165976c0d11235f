"""Requests whose end two parties could see at different places (RFC 9112 §6 and §11.2). A second response would be a
smuggled request's: each case expects exactly one, and then the end of the connection."""

from case import ANY, END, TARGET, Request, on_both_ports, request

# A proxy in front could take it for a part of the body.
HIDDEN = request(target="/hidden")
CHUNKED = {"Transfer-Encoding": "chunked"}
EMPTY = b"0\r\n\r\n"


def cases():
    for make in (lengths, codings, chunks):
        yield from on_both_ports(make())


def post(headers, body):
    return request(headers, method="POST", body=body)


def lengths():
    rule = "RFC 9112 §6.3"
    for name, values in (
        ("two different", ["5", "6"]),
        ("a list of two different", "5, 6"),
        ("a sign", "+5"),
        ("a negative number", "-5"),
        ("hexadecimal digits", "0x5"),
        ("no digits", "five"),
        ("nothing", ""),
        ("a fraction", "5.0"),
        ("a number beyond 64 bits", "99999999999999999999"),
        ("a space inside", "5 5"),
    ):
        sent = post({"Content-Length": values}, b"hello" + HIDDEN)
        yield Request(rule, f"Content-Length with {name}", sent, [400], END)
    spaced = post({"Content-Length ": "5"}, b"hello" + HIDDEN)
    yield Request(rule, "Content-Length with a space before the colon", spaced, [400], END)
    equal = post({"Content-Length": ["5", "5"]}, b"hello")
    yield Request(rule, "Content-Length with two equal numbers", equal, [{400, 405}], ANY)


def codings():
    rule = "RFC 9112 §6.1"
    both = {"Content-Length": str(len(EMPTY) + len(HIDDEN))} | CHUNKED
    yield Request(rule, "Content-Length, then Transfer-Encoding", post(both, EMPTY + HIDDEN), [{400, 405}], END)
    reverse = post(CHUNKED | {"Content-Length": "4"}, b"5c\r\n" + HIDDEN)
    yield Request(rule, "Transfer-Encoding, then Content-Length", reverse, [{400, 405}], END)
    yield Request(rule, "both with GET", request(both, body=EMPTY + HIDDEN), [{200, 400}], END)
    for name, values in (
        ("an unknown coding", "xchunked"),
        ("identity", "identity"),
        ("chunked in quotes", '"chunked"'),
        ("chunked and identity", "chunked, identity"),
        ("identity in a second line", ["chunked", "identity"]),
        ("a vertical tab", "\x0bchunked"),
        ("a parameter", "chunked;a=b"),
        ("nothing", ""),
    ):
        sent = post({"Content-Length": "5", "Transfer-Encoding": values}, EMPTY + HIDDEN)
        yield Request(rule, f"Transfer-Encoding with {name}", sent, [{400, 501}], END)
    for name, values in (
        ("chunked twice", "chunked, chunked"),
        ("chunked in two lines", ["chunked", "chunked"]),
        ("another coding before chunked", "gzip, chunked"),
    ):
        sent = post({"Transfer-Encoding": values}, EMPTY + HIDDEN)
        yield Request(rule, f"Transfer-Encoding with {name}", sent, [501], END)
    for name, header in (
        ("a space before the colon", b"Transfer-Encoding : chunked"),
        ("a tab before the colon", b"Transfer-Encoding\t: chunked"),
        ("a folded value", b"Transfer-Encoding:\r\n chunked"),
        ("a line feed in another header", b"X-Note: a\nTransfer-Encoding: chunked"),
        ("a carriage return in another header", b"X-Note: a\rTransfer-Encoding: chunked"),
    ):
        sent = post({"Content-Length": "5", "X-Last": "a"}, EMPTY + HIDDEN).replace(b"X-Last: a", header)
        yield Request(rule, f"Transfer-Encoding with {name}", sent, [{400, 405}], END)
    old = request(CHUNKED, method="POST", version="HTTP/1.0", body=EMPTY + HIDDEN)
    yield Request(rule, "Transfer-Encoding in HTTP/1.0", old, [400], END)


def chunks():
    rule = "RFC 9112 §7.1"
    whole = post(CHUNKED, b"5\r\nhello\r\n" + EMPTY)
    yield Request(rule, "a body in chunks, and the next request after it", whole, [405], ANY)
    for name, body in (
        ("a size that is not hexadecimal", b"g\r\nhello\r\n"),
        ("a size with a sign", b"+5\r\nhello\r\n"),
        ("a size with 0x", b"0x5\r\nhello\r\n"),
        ("a size beyond 64 bits", b"1" + b"0" * 16 + b"\r\nhello\r\n"),
        ("no size", b"\r\nhello\r\n"),
        ("a size and a line feed", b"5\nhello\r\n"),
        ("more bytes than its size", b"3\r\nhello\r\n"),
        ("a space before its size", b" 5\r\nhello\r\n"),
        ("an extension with a line feed", b"5;a\nb\r\nhello\r\n"),
        ("an extension of 64 KiB", b"5;" + b"a" * 65_536 + b"\r\nhello\r\n"),
    ):
        yield Request(rule, f"a chunk with {name}", post(CHUNKED, body + EMPTY + HIDDEN), [{400, 405}], END)
    trailer = post(CHUNKED, b"0\r\n" + b"X-Note: a\r\n" * 10_000 + b"\r\n")
    yield Request("RFC 9112 §7.1.2", "10,000 trailers", trailer, [{400, 405, 431}], END)
