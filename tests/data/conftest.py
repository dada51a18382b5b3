"""A server on this machine that has every fault that a server can have."""

import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Handler(BaseHTTPRequestHandler):
    """Sends files with Range and If-Range as the standard has them, unless a fault is next."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        mine = self.server.mine
        mine.requests.append(dict(self.headers))
        fault = mine.faults.pop(0) if mine.faults else mine.always
        name = self.path.lstrip("/")
        content = mine.files.get(name)
        if fault == "silent":
            mine.released.wait(20)
            self.close_connection = True
        elif fault == "no answer":
            self.close_connection = True
        elif isinstance(fault, int) or content is None:
            self.send_error(fault or 404)
        else:
            weak = "W/" * (mine.tags == "weak")
            self.send(content, fault, f'{weak}"{hash(content)}"' if mine.tags else None)

    def send(self, content, fault, tag):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and fault != "no range" else 0
        if self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content) + 10 * (fault == 'longer')}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        if fault == "wrong bytes":
            body = bytes(255 - byte for byte in body)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if fault == "web page" else "application/octet-stream")
        if tag:
            self.send_header("ETag", tag)
        if start:
            first = start + (fault == "wrong part")
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if fault in ("chunked", "chunked drop"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            body = body[: len(body) // 2] if fault == "chunked drop" else body
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + b"0\r\n\r\n" * (fault == "chunked"))
            self.close_connection = True
            return
        self.send_header("Content-Length", str(len(body) + {"longer": 10, "shorter": -10}.get(fault, 0)))
        self.end_headers()
        half = fault in ("drop", "reset", "stall")
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.mine.released.wait(20)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = half or fault in ("longer", "shorter") or self.close_connection

    def log_message(self, *_):
        pass


class Server:
    """``files``; ``faults`` of the next answers, one each; ``always``, that of the others; ``tags``, or "weak" ones."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/"
        self.files, self.faults, self.requests = {}, [], []
        self.always, self.tags = None, True
        self.released = threading.Event()

    @property
    def ranges(self):
        return [request.get("Range") for request in self.requests]


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.mine = Server(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield http.mine
    http.mine.released.set()
    http.shutdown()
    http.server_close()
    thread.join()
