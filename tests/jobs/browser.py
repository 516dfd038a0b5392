"""A real headless Chromium, driven over its DevTools pipe: what a page asks for, complains about and shows.

    with Browser(tmp_path) as browser:
        page = browser.open(file, dark=True, width=400)
        page.value("document.title"), page.requests, page.complaints

The pipe (file descriptors 3 and 4, JSON ended by a zero byte) needs nothing that Python does not have.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
PLUMBING = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""  # puts the pipes where Chromium looks for them, and becomes Chromium
PATIENCE = 60  # seconds


def program() -> str | None:
    """The path of a Chromium, or None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """A Chromium with a profile of its own in `home`."""

    def __init__(self, home: Path) -> None:
        found = program()
        assert found, "no Chromium on this machine"
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        profile = f"--user-data-dir={home / 'profile'}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLUMBING, str(reads), str(writes), found, *FLAGS, profile],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": str(home)},
        )
        os.close(reads)
        os.close(writes)
        os.set_blocking(self._read, False)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and return what it answers; events that come meanwhile are kept."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps({**command, **({"sessionId": session} if session else {})}).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def wait_for(self, event: str, session: str) -> None:
        """Return once `event` has come in `session`."""
        while not any(seen["method"] == event and seen.get("sessionId") == session for seen in self.events):
            self.events.append(self._message())

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "Chromium did not answer"
            assert self._process.poll() is None, "Chromium ended by itself"
            try:
                self._buffer += os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
        first, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(first)
        return message

    def open(self, file: Path, dark: bool = False, width: int = 1200) -> Page:
        """Load `file` in a new tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable", session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        self.call("Page.navigate", session, url=file.as_uri())
        self.wait_for("Page.loadEventFired", session)
        return Page(self, session)


@dataclass
class Page:
    """A loaded page."""

    browser: Browser
    session: str
    requests: list[str] = field(init=False)  # everything it asked for, itself included
    complaints: list[Any] = field(init=False)  # what it wrote to the console

    def __post_init__(self) -> None:
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        self.requests = [
            event["params"]["request"]["url"] for event in mine if event["method"] == "Network.requestWillBeSent"
        ]
        wrong = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        self.complaints = [event["params"] for event in mine if event["method"] in wrong]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, promises awaited, is worth."""
        answer = self.browser.call(
            "Runtime.evaluate", self.session, expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, file: Path) -> None:
        """Write the whole page as a PNG to `file`."""
        shot = self.browser.call("Page.captureScreenshot", self.session, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
