"""Bytes of HTTP/1.1 and WebSocket: the cases build their requests and frames with it, and it reads the replies. It never
uses a library of HTTP or WebSocket, because such a library refuses to send wrong bytes."""

import base64
import hashlib
import hmac
import json
import socket
import struct
import time

# Longest wait for bytes, for a service on a busy machine.
PATIENCE_SECONDS = 20

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
MASK = bytes.fromhex("5a00ff13")
KEY = base64.b64encode(bytes(range(16))).decode()
# RFC 6455 §1.3.
ACCEPT = base64.b64encode(hashlib.sha1((KEY + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
# Frames that the service sends by itself.
UNASKED = {"welcome", "caught_up", "heartbeat"}


def frame(first, payload=b"", *, width=None, declared=None, mask=MASK):
    """A frame of a client. `width` is the number of bits of its length, and `declared` is a false length."""
    length = len(payload) if declared is None else declared
    if width is None:
        width = 7 if length < 126 else 16 if length < 65_536 else 64
    code = {7: length, 16: 126, 64: 127}[width]
    head = bytes([first, (0x80 if mask else 0) | code])
    if width > 7:
        head += length.to_bytes(width // 8, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def text(content):
    return frame(TEXT, content if isinstance(content, bytes) else content.encode())


def close(code, reason=b""):
    return frame(CLOSE, struct.pack(">H", code) + reason)


class Ended(Exception):
    """The service ended the connection."""


class Connection:
    """A TCP connection to the service. Each case has a source address of its own, so that a capture of the traffic shows it. The
    service has no bound for such an internal address."""

    def __init__(self, port, source):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *pieces):
        """Sends the pieces in segments of their own. The service may have ended the connection, which the next read shows."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except ConnectionError:
            pass

    def end_sending(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Ends with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def more(self):
        try:
            received = self.socket.recv(65_536)
        except ConnectionError:
            received = b""
        except TimeoutError:
            raise AssertionError(f"nothing within {PATIENCE_SECONDS} s, after {self.unread!r}") from None
        if not received:
            raise Ended(self.unread)
        self.unread += received

    def take(self, length):
        while len(self.unread) < length:
            self.more()
        taken, self.unread = self.unread[:length], self.unread[length:]
        return taken

    def take_through(self, end):
        while end not in self.unread:
            self.more()
        return self.take(self.unread.index(end) + len(end))

    def expect_end(self):
        """Reads the end of the connection. Bytes before it are a failure."""
        try:
            self.more()
        except Ended:
            return
        raise AssertionError(f"more bytes: {self.unread!r}")

    def response(self, of_head=False):
        """Reads a response: its status, headers and body."""
        lines = self.take_through(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status = lines[0].split(" ")[:2]
        assert version == "HTTP/1.1" or version == "HTTP/1.0", lines[0]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        status = int(status)
        if of_head or status < 200 or status in (204, 304):
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.take_through(b"\r\n"), 16):
                body += self.take(size + 2)[:-2]
            self.take(2)
            return status, headers, body
        return status, headers, self.take(int(headers.get("content-length", 0)))

    def frame(self):
        """Reads a frame that the service does not send by itself. It is one of `("pong", payload)`, `("text", type)`,
        `("error", code)` and `("close", code, word)`, with the word of a close that is not a reply."""
        while True:
            first, second = self.take(2)
            assert first & 0x70 == 0 and first & 0x80, f"a server sends whole frames without reserved bits: {first:#x}"
            assert second & 0x80 == 0, "a server does not mask (RFC 6455 §5.1)"
            length = second
            if second == 126:
                length = int.from_bytes(self.take(2), "big")
                assert length > 125, "the shortest form of the length (RFC 6455 §5.2)"
            elif second == 127:
                length = int.from_bytes(self.take(8), "big")
                assert length > 65_535, "the shortest form of the length (RFC 6455 §5.2)"
            payload = self.take(length)
            if first == TEXT:
                content = json.loads(payload.decode())
                if content["type"] == "error":
                    return "error", content["code"]
                if content["type"] not in UNASKED:
                    return "text", content["type"]
            elif first == PONG:
                return "pong", payload
            elif first == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else None
                return "close", code, json.loads(payload[2:])["code"] if payload[2:] else None
            else:
                assert first == PING, f"an unknown opcode: {first:#x}"

    def open_session(self, request):
        """Sends a handshake and reads the response and the frame `welcome`."""
        self.send(request)
        status, headers, body = self.response()
        assert status == 101, (status, body)
        assert headers["sec-websocket-accept"] == ACCEPT, headers
        assert "sec-websocket-extensions" not in headers, headers
        return headers

    def expect_frames(self, expected):
        for number, one in enumerate(expected):
            try:
                came = self.frame()
            except Ended as ended:
                came = ("end", ended.args[0])
            assert came == one, f"frame {number + 1} is {came!r}, expected {one!r}"


def token(secret, **claims):
    """A JWT with HS256."""
    claims = {"exp": int(time.time()) + 600} | claims
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(map(base64url, parts))
    return (signed + b"." + base64url(hmac.digest(secret.encode(), signed, "sha256"))).decode()


def base64url(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
