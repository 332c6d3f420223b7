"""A stand-in for a judge: `python -m tests.end_to_end.stand_in PORT` answers every chat completion with "4".

`python -m tests.end_to_end.stand_in PORT N` answers the first N, and all later ones with an error 500.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = {
    "model": "stand-in",
    "choices": [{"message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path == "/v1/chat/completions"
        self.server.num_asked += 1  # pyright: ignore[reportAttributeAccessIssue]
        tired = self.server.num_asked > self.server.most  # pyright: ignore[reportAttributeAccessIssue]
        body = json.dumps(ANSWER).encode()
        self.send_response(500 if tired else 200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.num_asked, server.most = 0, float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")  # pyright: ignore
    server.serve_forever()
