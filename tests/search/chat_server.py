"""An OpenAI-style chat server around a tiny real model, on loopback: choices, log-probabilities, calls, faults."""

import contextlib
import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from tests.tiny import byte_level

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class ChatServer(ThreadingHTTPServer):
    """What it can do and how it fails are attributes."""

    daemon_threads = True

    def __init__(self, model, tokens=6):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokens = model, tokens
        self.tokenizer = byte_level(vocabulary=2000)
        self.generator = torch.Generator().manual_seed(0)
        self.gives_logprobs = self.states_usage = True
        self.refuses = set()  # fields that are answered with 400
        self.most_choices = 128
        self.ends_at = 3  # requests whose conversation has so many tool results are answered by the submission
        self.requests, self.usage = [], {"prompt": 0, "output": 0}
        self.lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @torch.no_grad()
    def sample(self, text):
        """Some tokens after `text`: (token, log-probability, [(token, log-probability) of the 5 best])."""
        ids = self.tokenizer(text)["input_ids"][-200:]
        found = []
        for _ in range(self.tokens):
            row = self.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            new = int(torch.multinomial(row.exp(), 1, generator=self.generator))
            best = row.topk(5)
            top = [(self.tokenizer.decode([i]), v) for i, v in zip(best.indices.tolist(), best.values.tolist())]
            found.append((self.tokenizer.decode([new]), float(row[new]), top))
            ids.append(new)
        return found


@contextlib.contextmanager
def serving(model):
    with ChatServer(model) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(asked)
            status, body = self.reply(asked)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def reply(self, asked):
        server = self.server
        if refused := server.refuses & {
            name for name, value in asked.items() if value is True or value not in (None, 1)
        }:
            return 400, {"error": {"message": f"{sorted(refused)[0]} is not supported", "type": "BadRequestError"}}
        text = json.dumps(asked["messages"])
        done = sum(m["role"] == "tool" for m in asked["messages"]) >= server.ends_at
        choices = [self.choice(asked, i, text, done) for i in range(min(asked.get("n") or 1, server.most_choices))]
        prompt, output = len(server.tokenizer(text)["input_ids"]), server.tokens * len(choices)
        server.usage["prompt"] += prompt
        server.usage["output"] += output
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return 200, body | {"choices": choices} | ({"usage": usage} if server.states_usage else {})

    def choice(self, asked, index, text, done):
        """Every third sample is text without a call, every fifth a call that is no JSON; the rest echo the sample."""
        sampled = self.server.sample(text)
        said = "".join(token for token, _, _ in sampled).replace("\0", "")
        number = len(self.server.requests) + index
        message = {"role": "assistant", "content": said}
        if done or number % 3:
            command = SUBMIT if done else f"echo {shlex.quote(said)} >> {'abc'[number % 3]}.txt"
            arguments = '{"command": ' if number % 5 == 4 and not done else json.dumps({"command": command})
            call = {"name": "bash", "arguments": arguments}
            message |= {"content": None, "tool_calls": [{"id": f"c{number}", "type": "function", "function": call}]}
            sampled = [(arguments, -0.1, [(arguments, -0.1), ("other", -2.4)]), *sampled]
        found = {"index": index, "message": message, "finish_reason": "stop", "logprobs": None}
        if asked.get("logprobs") and self.server.gives_logprobs:
            found["logprobs"] = {"content": [self.entry(*token) for token in sampled]}
        return found

    def entry(self, token, logprob, top):
        others = [{"token": other, "logprob": value, "bytes": None} for other, value in top]
        return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": others}
