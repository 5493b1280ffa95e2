"""A package index by HTTPS and a proxy by HTTP, on this machine's loopback, for inherit.rs.

mirror.py CERTIFICATE KEY: prints both ports, and then a line for each request.
"""

import base64
import hashlib
import io
import json
import ssl
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHEEL = "tiny-1.0-py3-none-any.whl"


def wheel() -> bytes:
    """A wheel with one module (PEP 427)."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny.py": "WORD = 'from the wheel'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: voidrun\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for name, text in files.items():
            out.writestr(name, text)
    return archive.getvalue()


def package() -> bytes:
    """A package as npm packs it."""
    files = {
        "package/package.json": json.dumps({"name": "tinyjs", "version": "1.0.0", "main": "index.js"}),
        "package/index.js": "module.exports = 'from the tarball'\n",
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as out:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            out.addfile(entry, io.BytesIO(text.encode()))
    return archive.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        credentials = self.headers.get("Authorization") or self.headers.get("Proxy-Authorization") or "nobody"
        print(self.command, self.path, "by", credentials, flush=True)


class Index(Handler):
    def do_GET(self) -> None:
        if self.path == "/pypi/simple/tiny/":
            digest = hashlib.sha256(WHEEL_BYTES).hexdigest()
            self.answer("text/html", f'<a href="../../{WHEEL}#sha256={digest}">{WHEEL}</a>'.encode())
        elif self.path == f"/pypi/{WHEEL}":
            self.answer("application/octet-stream", WHEEL_BYTES)
        elif self.path == "/npm/tinyjs":
            digest = base64.b64encode(hashlib.sha512(PACKAGE_BYTES).digest()).decode()
            tarball = f"https://{self.headers['Host']}/npm/tinyjs-1.0.0.tgz"
            version = {
                "name": "tinyjs",
                "version": "1.0.0",
                "dist": {"tarball": tarball, "integrity": f"sha512-{digest}"},
            }
            document = {"name": "tinyjs", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            self.answer("application/json", json.dumps(document).encode())
        elif self.path == "/npm/tinyjs-1.0.0.tgz":
            self.answer("application/octet-stream", PACKAGE_BYTES)
        else:
            self.send_error(404)


class Proxy(Handler):
    def do_GET(self) -> None:
        self.answer("text/plain", f"by the proxy: {self.path}\n".encode())


WHEEL_BYTES, PACKAGE_BYTES = wheel(), package()
index = ThreadingHTTPServer(("127.0.0.1", 0), Index)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
index.socket = context.wrap_socket(index.socket, server_side=True)
proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
print(index.server_port, proxy.server_port, flush=True)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
index.serve_forever()
