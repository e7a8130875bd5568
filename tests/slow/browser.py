"""A real headless Chromium, driven through its DevTools pipe; needs no package beside the browser."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


def binary():
    """Path of a Chromium, or None."""
    return next((path for path in map(shutil.which, BINARIES) if path), None)


class Browser:
    """One browser with one tab. `problems` collects uncaught errors, console errors and blocked content."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        command = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, binary(), *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._number, self._buffer, self._events, self._session = 0, b"", [], None
        self.problems, self.requests = [], []
        self._attach()

    def _attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(1280, 900)

    def call(self, method, timeout=300, **params):
        """Send one command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser did not answer in time"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get("description", str(params)))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog {params['message']!r}")
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif method:
            self._events.append(method)

    def open(self, path, fragment=""):
        """Load a file and wait until it has been drawn; `problems` and `requests` start anew."""
        for url in ("about:blank", Path(path).as_uri() + fragment):
            self.problems, self.requests, self._events = [], [], []
            self.call("Page.navigate", url=url)
            deadline = time.monotonic() + 300
            while "Page.loadEventFired" not in self._events:
                self._receive(deadline)
        self.settle()

    def evaluate(self, expression):
        """The value of a JavaScript expression (promises are awaited)."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def settle(self):
        """Wait until the page has been painted a few times."""
        frame = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
        self.evaluate(f"(async () => {{ {frame * 4} }})()")

    def size(self, width, height, scale=1):
        """Set the size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def media(self, **features):
        """Emulate media features, such as prefers_color_scheme="dark"."""
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=values)

    def hover(self, selector):
        """Move the mouse onto the first element that matches."""
        self.evaluate(
            f"hovered = document.querySelector({json.dumps(selector)}), hovered.scrollIntoView({{block: 'center'}})"
        )
        self.settle()
        x, y = self.evaluate("(() => { const r = hovered.getClientRects()[0]; return [r.x + r.width / 2, r.y + 5] })()")
        for place in ((1, 1), (x, y)):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        self.settle()

    def screenshot(self, path):
        """Save what is seen as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        """End the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(300)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()
