"""A web server for tests that serves a folder and misbehaves on request. Deterministic: faults are told by request number."""

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """Serves `folder` on loopback. `fault(number, path)` names what goes wrong with a request, or "" for nothing:

    "500" "503" "429" (with Retry-After: 0), "cut" (half of the body, then the connection is closed), "reset" (not even a header),
    "stall" (half of the body, then silence), "slow" (in small pieces), "wrong" (another range than asked for), "404", "403".
    """

    def __init__(self, folder: Path, *, fault: Callable[[int, str], str] = lambda number, path: "", ranges: bool = True) -> None:
        self.folder, self.fault, self.ranges = folder, fault, ranges
        self.requests: list[tuple[str, str, str]] = []  # (path, Range, what went wrong)
        self.headers: list[dict[str, str]] = []
        self.bytes_sent = 0
        self.redirects: dict[str, str] = {}
        self.etag = '"1"'
        self._lock = threading.Lock()

    def __enter__(self) -> "Server":
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def note(self, path: str, asked: str, headers: dict[str, str]) -> str:
        with self._lock:
            fault = self.fault(len(self.requests), path)
            self.requests.append((path, asked, fault))
            self.headers.append(headers)
            return fault


class _Handler(BaseHTTPRequestHandler):
    owner: Server

    def do_GET(self) -> None:
        path, asked = self.path.split("?")[0], self.headers.get("Range", "")
        fault = self.owner.note(self.path, asked, dict(self.headers))
        if path in self.owner.redirects:
            self._head(302, {"Location": self.owner.redirects[path], "Content-Length": "0"})
        elif fault == "reset":
            self.connection.close()
        elif fault.isdigit():
            self._head(int(fault), {"Content-Length": "0", "Retry-After": "0"})
        elif not (self.owner.folder / path.lstrip("/")).is_file():
            self._head(404, {"Content-Length": "0"})
        else:
            self._file((self.owner.folder / path.lstrip("/")).read_bytes(), asked, fault)

    def _file(self, data: bytes, asked: str, fault: str) -> None:
        whole = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if self.owner.ranges and whole:
            first, last = int(whole[1]) + (fault == "wrong"), min(int(whole[2]), len(data) - 1)
            self._head(206, {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": str(last + 1 - first)})
            data = data[first : last + 1]
        else:
            self._head(200, {"Content-Length": str(len(data))})
        step = 1000 if fault == "slow" else 1 << 20
        stop = len(data) // 2 if fault in ("cut", "stall") else len(data)
        try:
            for start in range(0, stop, step):
                self.owner.bytes_sent += min(step, stop - start)  # before the reader can have them
                self.wfile.write(data[start : min(start + step, stop)])
                time.sleep(0.002 if fault == "slow" else 0)
            if fault == "stall":
                time.sleep(3)
        except OSError:  # the reader has what it wanted
            pass

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"ETag": self.owner.etag, **headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass
