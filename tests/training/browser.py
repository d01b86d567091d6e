"""A real headless Chromium, driven by its DevTools protocol over a pipe, as a person would look at a page."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [  # root has no sandbox; and nothing is to be fetched from anywhere but the page
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-webgl",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--window-size=1600,2400",
    "--remote-debugging-pipe",
]
TEXT = """(() => { const out = []; const walk = node => {
  if (node.nodeType === 3 && node.textContent.trim()) out.push(node.textContent.trim());
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) walk(child);
}; walk(document.body); return out.join('\\n'); })()"""
PICTURES = """(() => { const out = []; const walk = node => {
  if (node.nodeName === 'IMG' && node.naturalWidth) out.push([node.naturalWidth, node.naturalHeight]);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) walk(child);
}; walk(document.body); return out; })()"""


class Browser:
    """`with Browser(folder) as browser: browser.open(url); browser.text()`; gone afterwards."""

    def __init__(self, folder: Path, *, options: Sequence[str] = OPTIONS) -> None:
        assert BINARY is not None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        command = [BINARY, *options, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # it reads 3 and writes 4
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "chromium.log").open("w"),
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer, self.buffer, self.numbers = ours_in, ours_out, b"", itertools.count(1)
        self.events: list[dict[str, Any]] = []  # what was told without being asked, see `watch`
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)
        os.close(self.writer)

    def open(self, url: str) -> None:
        self._call("Page.navigate", session=self.session, url="about:blank")  # another #part alone would load nothing
        self._call("Page.navigate", session=self.session, url=url)

    def watch(self, *domains: str) -> None:
        """From now on `events` hears these parts of the protocol: Runtime and Log of the console, Network of requests."""
        for domain in domains:
            self._call(f"{domain}.enable", session=self.session)

    def evaluate(self, script: str) -> Any:
        result = self._call("Runtime.evaluate", session=self.session, expression=script, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, script: str, wanted: Any, *, timeout_s: float = 60) -> Any:
        """Until `wanted(value of script)`; the value."""
        end = time.monotonic() + timeout_s
        while True:
            value = self.evaluate(script)
            if value is not None and wanted(value):
                return value
            assert time.monotonic() < end, f"not within {timeout_s} s; the page shows: {value}"
            time.sleep(0.25)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", session=self.session)["data"]))

    def _call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.reader], [], [], 60)[0], "Chromium says nothing"
            chunk = os.read(self.reader, 2**16)
            assert chunk, "Chromium ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)
