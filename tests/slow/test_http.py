"""Completions servers that redirect, drip, flood or shout: no key leaves, no answer takes for ever, no traceback."""

import gzip
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.backends.completions import FORMS, CompletionsBackend, RefusedError, Server
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.testing import Reply, fake_server

pytestmark = pytest.mark.slow
KEY = "sk-very-secret-1234"
GOOD = {"choices": [{"index": 0, "text": "x"}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_server(act=lambda handler: None) as server:
        yield server


def client(url, **changes):
    header = {"Authorization": f"Bearer {KEY}", "X-Key": "another-secret"}
    settings = {"base_url": url, "timeout": 120, "max_retries": 1, "ca_cert_path": None, "verify_certificate": True}
    return Server(SimpleNamespace(**(settings | {"header": header} | changes)))


def outcome(server, act, **changes):
    """The message of the error; whatever happens, it is one of ours, in one printable line, without secrets."""
    server.act = act
    backend = object.__new__(CompletionsBackend)  # its constructor asks the server for its models first
    backend._server, backend._lm = client(server.address, **changes), SimpleNamespace(model="m")
    text = TokenSequence("t", np.array([1, 2], np.int32), np.array([1], np.int32), 2)
    with pytest.raises((ScoringError, RefusedError)) as caught:
        backend._scores(FORMS[0], text, 2, "trajectory 't'", "the server")
    reported = str(caught.value)
    assert reported.isprintable()
    assert KEY not in reported
    assert "another-secret" not in reported
    return reported


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["other port", "other host", "other scheme", "credentials"])
def test_key_and_text_follow_no_redirect_to_another_origin(server, status, where):
    with fake_server(answer=lambda request: "x") as thief:
        target = {
            "other port": thief.address, "other host": thief.address.replace("127.0.0.1", "localhost"),
            "other scheme": server.address.replace("http:", "https:"), 
            "credentials": f"http://a:{KEY}@localhost:1/?key={KEY}",
        }[where]  # fmt: skip
        reported = outcome(server, lambda handler: handler.send(Reply(status, b"", {"Location": target})))
        assert "redirects to" in reported
        assert "base_url" in reported
        assert not thief.requests


def test_headers_of_the_environment_stay_with_the_origin_too(server, monkeypatch):
    monkeypatch.setenv("HESNR_HEADERS", json.dumps({"X-Route": "gold-plated-1", "X-Key": "a-third-secret"}))
    with fake_server(answer=lambda request: "x") as thief:
        reported = outcome(
            server,
            lambda handler: handler.send(Reply(307, b"gold-plated-1", {"Location": f"{thief.address}?a-third-secret"})),
        )
        assert not thief.requests
    headers = server.requests[0]["headers"]
    assert {name: headers[name] for name in ("x-route", "x-key", "authorization")} == {
        "x-route": "gold-plated-1", "x-key": "a-third-secret", "authorization": f"Bearer {KEY}",
    }  # fmt: skip
    reported += outcome(server, lambda handler: handler.send(Reply(418, b"gold-plated-1 and a-third-secret")))
    assert "gold-plated-1" not in reported
    assert "a-third-secret" not in reported


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_origin_is_followed(server, status):
    def act(handler):
        if handler.path == "/v1/completions":
            handler.send(Reply(status, b"", {"Location": "/v2/completions?x=1"}))
        else:
            handler.send(Reply(200, GOOD))

    server.act = act
    assert client(server.address).answer({"prompt": [1]}, "t")["choices"][0]["text"] == "x"
    assert [request["path"] for request in server.requests] == ["/v1/completions", "/v2/completions?x=1"]
    assert server.requests[1]["prompt"] == [1]


def test_redirects_in_a_circle_end(server):
    assert "circles" in outcome(server, lambda handler: handler.send(Reply(307, b"", {"Location": server.address})))


def drip(handler, start, byte):
    handler.wfile.write(start)
    until = time.monotonic() + 300
    while time.monotonic() < until:  # or until the client has left
        handler.wfile.write(byte)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"],
)
def test_an_answer_that_drips_ends(server, start, monkeypatch):
    monkeypatch.setenv("HESNR_REQUEST_SECONDS", "0.7")
    assert "no answer within 0.7 seconds" in outcome(server, lambda handler: drip(handler, start, b" "))


def flood(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(3000):
        handler.wfile.write(b" " * (1 << 20))


def test_a_body_without_end_is_not_read(server, monkeypatch):
    assert "more than 16 MB" in outcome(server, flood)
    monkeypatch.setenv("HESNR_ANSWER_MB", "2")
    assert "more than 2 MB" in outcome(server, flood)


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate"])
def test_a_small_body_that_unpacks_to_much_is_not_read(server, encoding):
    body = gzip.compress(b" " * (40 << 20), 1)
    reported = outcome(server, lambda handler: handler.send(Reply(200, body, {"Content-Encoding": encoding})))
    assert "more than 16 MB" in reported or encoding != "gzip"


BODIES = {
    "deep": b"[" * 100_000, "deep object": b'{"a":' * 100_000, 
    "a huge integer": b'{"choices": [' + b"9" * 100_000 + b"]}",
    "html": b"<html>", "empty": b"", "null": b"null", "a list": b"[]", "a number": b"1e999", 
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": json.dumps({"choices": [1]}).encode("utf-16"), "no choices": b"{}", "choices null": b'{"choices": null}',
    "two choices": b'{"choices": [{}, {}]}', "choices of numbers": b'{"choices": [1]}',
    "a key twice": b'{"choices": [{"a": 1}], "choices": [{"a": 2}]}', "lone surrogates": b'{"error": "\\ud800"}',
    "escape sequences": b"\x1b[2J\x1b]0;title\x07 \xe2\x80\xae evil \xc2\x9b31m",
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_body_is_a_traceback(server, body, status):
    outcome(server, lambda handler: handler.send(Reply(status, BODIES[body])))


@pytest.mark.parametrize("status", [400, 401, 404, 418, 500, 503])
def test_what_a_server_says_reaches_no_terminal_and_repeats_no_key(server, status):
    shown = f"\x1b]0;owned\x07 bad key {KEY} \u202e and Bearer {KEY}, X another-secret \r\n\x9b31m"
    for body in (json.dumps({"error": {"message": shown}}), shown, json.dumps({"detail": [shown]})):
        reported = outcome(server, lambda handler, body=body: handler.send(Reply(status, body.encode())))
        assert f"HTTP {status}" in reported


@pytest.mark.parametrize("again", ["nan", "-5", "inf", "x", "1e400", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 400])
def test_odd_pauses_are_borne(server, again, monkeypatch):
    waits = []
    target = client(server.address, max_retries=3)
    monkeypatch.setattr(target.stop, "wait", lambda seconds: waits.append(seconds))
    answers = [(503, b"later"), (503, b"later"), (200, GOOD)]
    server.act = lambda handler: handler.send(Reply(*answers.pop(0), {"Retry-After": again}))
    assert target.answer({"prompt": [1]}, "t")["choices"][0]["text"] == "x"
    assert waits == ([60, 60] if again.isdecimal() else [0.5, 1])


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@127.0.0.1:1/v1/completions", f"http://127.0.0.1:1/v1/completions?api_key={KEY}",
        f"http://127.0.0.1:1/v1/completions?access-token={KEY}", f"file:///etc/{KEY}", f"http://[::1/{KEY}", 
        "127.0.0.1:8000",
        "http:///v1", f"http://127.0.0.1:x{KEY}/",
    ],
)  # fmt: skip
def test_addresses_with_secrets_and_other_addresses_are_refused(url):
    with pytest.raises(ScoringError, match="base_url") as caught:
        client(url)
    assert KEY not in str(caught.value) or "x" + KEY in url
