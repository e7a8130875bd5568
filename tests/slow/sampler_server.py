"""A real OpenAI-style completions server, run as a process of its own: a seeded sampler of sums.

    python sampler_server.py [--deaf] [--hold N]

It prints its port. `POST /v1/completions` answers a prompt that ends in "a + b =" with the right number half of the
time, drawn with a generator seeded by the request's seed and prompt; `--deaf`: the seed is not heeded. Every request is
kept; `GET /requests` returns them. `--hold N`: requests beyond the first N wait for `GET /go`.
"""

import argparse
import contextlib
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROBLEM = re.compile(r"(\d+) ([+-]) (\d+) =$")


class Handler(BaseHTTPRequestHandler):
    """Answers and remembers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/go":
            self.server.go.set()
        self.reply(self.server.seen)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["prompt"] if isinstance(request["prompt"], str) else request["prompt"][0]
        self.server.seen.append({"prompt": prompt, "seed": request["seed"], "temperature": request["temperature"]})
        if len(self.server.seen) > self.server.options.hold:
            self.server.go.wait()
        draw = random.Random(f"{0 if self.server.options.deaf else request['seed']} {prompt}")
        a, sign, b = PROBLEM.search(prompt).groups()
        right = int(a) + int(b) if sign == "+" else int(a) - int(b)
        text = f" {right if draw.random() < 0.5 else draw.randrange(10**9)}"
        self.reply({"choices": [{"index": 0, "text": text}]})

    def reply(self, value):
        body = json.dumps(value).encode()
        with contextlib.suppress(ConnectionError):  # of a client that was killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--hold", type=int, default=10**9)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.options, server.seen, server.go = parser.parse_args(), [], threading.Event()
    print(server.server_address[1], flush=True)
    server.serve_forever()
