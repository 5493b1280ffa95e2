"""The daemon's HTTP API over its Unix socket."""

import http.client
import json
import socket

DEADLINE_S = 60


class Api(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("voidrun", timeout=DEADLINE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if content is not None else {}
        self.request(method, f"/v1{path}", content, headers)
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status}: {text.decode()}")
        return json.loads(text)
