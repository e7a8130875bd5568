"""A real OpenAI-style completions server, run as a process of its own: a seeded sampler of sums.

    python sampler_server.py [--deaf] [--delay SECONDS]

It prints its port. `POST /v1/completions` answers a prompt that ends in "a + b =" with the right number half of the
time, drawn with a generator seeded by the request's seed and prompt; `--deaf`: the seed is not heeded. Every request is
kept; `GET /requests` returns them.
"""

import argparse
import json
import random
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROBLEM = re.compile(r"(\d+) ([+-]) (\d+) =$")


class Handler(BaseHTTPRequestHandler):
    """Answers and remembers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(self.server.seen)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["prompt"] if isinstance(request["prompt"], str) else request["prompt"][0]
        self.server.seen.append({"prompt": prompt, "seed": request["seed"], "temperature": request["temperature"]})
        time.sleep(self.server.options.delay)
        draw = random.Random(f"{0 if self.server.options.deaf else request['seed']} {prompt}")
        a, sign, b = PROBLEM.search(prompt).groups()
        right = int(a) + int(b) if sign == "+" else int(a) - int(b)
        text = f" {right if draw.random() < 0.5 else draw.randrange(10**9)}"
        self.reply({"choices": [{"index": 0, "text": text}]})

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.options, server.seen = parser.parse_args(), []
    print(server.server_address[1], flush=True)
    server.serve_forever()
