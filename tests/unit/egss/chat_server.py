"""A loopback server that speaks OpenAI's chat completions and remembers what it was asked."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def serve(answer):
    """Yields (base url, requests). `answer(body)` gives a text, or (status, headers) for something else."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "headers": dict(self.headers), **body})
            reply = answer(body)
            status, headers = (200, {}) if isinstance(reply, str) else reply
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice]}
            data = json.dumps({**whole, "usage": usage} if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
