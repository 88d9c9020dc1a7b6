"""A headless Chromium over its debugging pipe: what a page asks for, says, and looks like."""

import base64
import json
import os
import shutil
import subprocess

COMMANDS = ("chromium-headless-shell", "chromium", "google-chrome")


class Browser:
    """One tab; a context manager. What comes while a page is open is kept in ``events``."""

    def __init__(self, profile):
        command = next(filter(None, map(shutil.which, COMMANDS)), None)
        assert command, f"the tests need one of {', '.join(COMMANDS)}: scripts/test.sh installs it"
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # The protocol is spoken on descriptors 3 and 4, messages end in a zero byte.
        options = f"--headless --no-sandbox --disable-gpu --user-data-dir='{profile}'"
        script = f"exec '{command}' {options} --remote-debugging-pipe 3<&{reads} 4>&{writes}"
        self._process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(reads, writes), stderr=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._left, self._number, self._session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for area in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{area}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method, **parameters):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url, width, dark=False):
        """Opens a page and returns what it asked for, and what went to its console."""
        self.events = []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.call("Runtime.evaluate", expression="1")  # whatever was on its way is here now
        requests = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        said = [event["params"] for event in self.events if event["method"] in kinds]
        return [request["request"]["url"] for request in requests], said

    def evaluate(self, expression):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"]["value"]

    def screenshot(self):
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _receive(self):
        while b"\0" not in self._left:
            received = os.read(self._from, 1 << 20)
            assert received, "the browser has ended"
            self._left += received
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)
