"""zerorpc-python's own server, and a page that says it is there: `zerorpc_app.py HTTP RPC`."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import zerorpc
from prepare import load


class Page(BaseHTTPRequestHandler):
    """Answers whoever waits for the start."""

    def do_POST(self) -> None:
        """Say so."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Iris:
    """The model."""

    def __init__(self) -> None:
        self.model = load("iris")

    def predict(self, row: list[float]) -> dict[str, str]:
        """Predict one row."""
        return {"species": str(self.model.predict([row])[0])}


server = zerorpc.Server(Iris())
server.bind(f"tcp://127.0.0.1:{sys.argv[2]}")
page = HTTPServer(("127.0.0.1", int(sys.argv[1])), Page)
threading.Thread(target=page.serve_forever, daemon=True).start()
server.run()
