"""A headless Chromium, driven by its own protocol over a pipe: no driver, no port, no network.

    with Browser(binary, profile) as browser:
        browser.open(path)
        assert browser.ask("document.title") == "…"

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 60
#: Text that would run if a page took it for markup.
ATTACK = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2><!--<script>"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--no-proxy-server",
    "--hide-scrollbars",
)


def find_browser() -> str | None:
    """Chromium's program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One page of one browser.

    Attributes:
        said: Everything that went wrong on the page: console errors and warnings, exceptions,
            refusals of its policy, dialogs.
        asked_for: URLs that it requested.
    """

    def __init__(self, binary: str, profile: Path) -> None:
        self.said: list[str] = []
        self.asked_for: list[str] = []
        self._number, self._pending, self._loaded = 0, b"", False
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        # The protocol's pipe is descriptors 3 and 4, which the shell puts there.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, binary, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.call("Browser.close")
            self._process.wait(TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of so many pixels, and forget what was said before."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.said.clear()
        self.asked_for.clear()
        self._loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._read()

    def ask(self, expression: str) -> Any:
        """What a JavaScript expression is, as JSON gives it back."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def place(self, expression: str) -> tuple[float, float]:
        """The middle of an element's first box, after it was scrolled to."""
        code = (
            f"(() => {{ const e = {expression}; e.scrollIntoView({{block: 'center'}});"
            "const b = e.getClientRects()[0]; return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        x, y = self.ask(code)
        return x, y

    def hover(self, expression: str) -> None:
        """Move the mouse to an element."""
        x, y = self.place(expression)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, expression: str) -> None:
        """Touch an element."""
        x, y = self.place(expression)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Press a key, by its name in JavaScript."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        codes |= {"Enter": 13, " ": 32}
        code = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        # Those two press what has the focus, by the text that they write.
        written = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        down = "keyDown" if written else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=down, **code, **written)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def screenshot(self, out: Path, *, whole: bool = True) -> None:
        """Of the whole page, or of the window, as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **parameters: Any) -> Any:
        """One call of the protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        wanted = self._number
        while True:
            found = self._read()
            if found.get("id") == wanted:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def _read(self) -> dict[str, Any]:
        """The next message; events are noted."""
        stop = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], max(0, stop - time.monotonic()))
            assert ready, "the browser says nothing"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._pending += data
        message, self._pending = self._pending.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self._note(found["method"], found["params"])
        return found

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.said.append(json.dumps(event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(event["exceptionDetails"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.said.append(event["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {event['message']}")
        elif method == "Network.requestWillBeSent":
            self.asked_for.append(event["request"]["url"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """For the tests of a file; they skip where there is none."""
    binary = find_browser()
    if binary is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with Browser(binary, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
