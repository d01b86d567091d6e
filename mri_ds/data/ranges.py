"""Bytes of files elsewhere, by range: HTTP(S) by the standard library, all else through fsspec; faults that pass are waited out.

In: a URL, an offset and a size.  Out: exactly those bytes, or one error that says what to do.
A connection that is cut, stalls or is refused, and the statuses 408, 425, 429 and 5xx are tried again, from the byte reached,
after waits that double. A file that is not there (404, 410) is FileNotFoundError; what no waiting mends is InputError.
A server that ignores ranges sends the whole file: what was not asked for is read past.
Credentials (user:password@ and everything after ?) are used, and never shown. HTTPS is not left for HTTP on a redirect.
Source: RFC 9110, section 14 (range requests) and 10.2.3 (Retry-After).
"""

import base64
import errno
import http.client
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mri_ds.errors import InputError

PIECE = 64 * 2**10
WHOLE_PIECE = 4 * 2**20  # fsspec hands over whole answers
MIN_BYTES_PER_S = 1024
PASSING = {408, 425, 429}
FIX = "see whether the server can be reached, then start again: the run goes on from its checkpoint"


@dataclass(frozen=True)
class Retry:
    """How long faults are waited out: `attempts` in a row without a byte; by default 8 waits of 92 s together."""

    attempts: int = 9
    first_s: float = 0.5
    most_s: float = 30.0
    timeout_s: float = 60.0  # without a byte

    def wait_s(self, failures: int, asked_s: float = 0.0) -> float:
        """Before the next attempt; drawn from the upper half, so that the ranks of a job do not all come back at once."""
        doubled = min(self.most_s, self.first_s * 2 ** (failures - 1))
        return max(min(asked_s, self.most_s), doubled * (0.5 + 0.5 * random.Random().random()))


class Ranges(Protocol):
    """A remote file. `version` changes when its content does, as far as the server tells. `is_ranged`: parts can be had alone."""

    url: str
    size: int
    version: str
    is_ranged: bool

    def stream(self, offset: int, size: int) -> Iterator[bytes]:
        """Those bytes, in pieces of any length. Raises FileNotFoundError or InputError."""


def open_ranges(url: str, retry: Retry | None = None) -> Ranges:
    """Asks for the file's size. Raises FileNotFoundError where there is none, InputError for a URL that cannot be read."""
    kind = _HttpRanges if url.lower().startswith(("http://", "https://")) else _FsspecRanges
    return kind(url, retry or Retry())


def shown(url: str) -> str:
    """A URL fit for messages: no user, no password, no signature.

    >>> shown("https://me:secret@host/a.tar?X-Signature=1f")
    'https://host/a.tar'
    """
    return re.sub(r"^(\w[\w+.-]*://)[^/@]*@", r"\1", url.split("?")[0].split("#")[0])


class Passing(Exception):
    """A fault that may be gone the next time. `wait_s`: what the server asked for."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


def persistently(read: Callable[[int], Iterator[bytes]], start: int, end: int, *, url: str, retry: Retry) -> Iterator[bytes]:
    """read(offset) gives bytes from there on until it fails; together they make start .. end, each byte once."""
    failures = 0
    while start < end:
        try:
            for piece in read(start):
                yield piece[: end - start]
                start, failures = start + len(piece), 0
            if start < end:
                raise Passing("the connection was cut")
        except Passing as err:
            failures = _after(err, failures + 1, url, retry)


def _after(err: Passing, failures: int, url: str, retry: Retry) -> int:
    if failures >= retry.attempts:
        raise InputError(f"could not be read ({err}; tried {failures} times)", where=shown(url), fix=FIX) from None
    time.sleep(retry.wait_s(failures, err.wait_s))
    return failures


def _first_answer(ask: Callable[[], Any], url: str, retry: Retry) -> Any:
    failures = 0
    while True:
        try:
            return ask()
        except Passing as err:
            failures = _after(err, failures + 1, url, retry)


def _gone(url: str, why: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"it is not there ({why})", shown(url))


# ---- HTTP ----------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise InputError("the server redirects to a connection that is not encrypted", where=shown(req.full_url), fix=FIX)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _HttpRanges:
    """Holds no connection: safe to copy into worker processes."""

    def __init__(self, url: str, retry: Retry) -> None:
        self.url, self.retry = url, retry
        with _first_answer(lambda: self._ask(0, 0), url, retry) as answer:
            self._learn(answer)

    def stream(self, offset: int, size: int) -> Iterator[bytes]:
        return persistently(lambda at: self._once(at, offset + size), offset, offset + size, url=self.url, retry=self.retry)

    def _learn(self, answer: http.client.HTTPResponse) -> None:
        self.is_ranged = answer.status == 206
        total = answer.headers.get("Content-Length", "")
        if self.is_ranged:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise InputError("the server does not tell its size", where=shown(self.url), fix="use a server that does")
        self.size = int(total)
        self.version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""

    def _once(self, offset: int, end: int) -> Iterator[bytes]:
        """Bytes from `offset` on, to `end` or to the next fault."""
        with self._ask(offset, end - 1) as answer:
            skip = self._check(answer, offset)
            began, got = time.monotonic(), 0
            while got < skip + end - offset:
                piece = self._guarded(lambda: answer.read1(PIECE))
                if not piece:
                    return
                got += len(piece)
                if got > skip:
                    yield piece[max(0, len(piece) - (got - skip)) :]
                if time.monotonic() - began > self.retry.timeout_s + got / MIN_BYTES_PER_S:
                    raise Passing(f"slower than {MIN_BYTES_PER_S} bytes a second")

    def _check(self, answer: http.client.HTTPResponse, offset: int) -> int:
        """How many bytes come before `offset` in this answer. Raises InputError where it is of another file."""
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            first, total, skip = (int(match[1]), match[2], 0) if match else (-1, "", 0)
        else:
            first, total, skip = offset, answer.headers.get("Content-Length", "*"), offset
        if first != offset:
            raise Passing("the server sent another part than was asked for")
        if total not in ("*", str(self.size)):
            what = f"has {total} bytes now and had {self.size}: it changed while it was in use"
            raise InputError(what, where=shown(self.url), fix="start again once it is complete")
        return skip

    def _ask(self, first: int, last: int) -> http.client.HTTPResponse:
        parts = urllib.parse.urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        plain = urllib.parse.urlunsplit((*parts[:1], host, *parts[2:4], ""))
        request = urllib.request.Request(plain, headers={"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"})
        if user:  # not sent on to where a redirect leads
            token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        return self._guarded(lambda: _opener().open(request, timeout=self.retry.timeout_s))

    def _guarded(self, act: Callable[[], Any]) -> Any:
        """Sorts what goes wrong into what passes, what is gone and what somebody must mend."""
        try:
            return act()
        except urllib.error.HTTPError as err:
            with err:
                self._judge(err)
        except (urllib.error.URLError, OSError, http.client.HTTPException) as err:
            reason = getattr(err, "reason", err)
            if isinstance(reason, ssl.SSLCertVerificationError):
                what = f"the server's certificate is not valid ({reason.verify_message})"
                raise InputError(what, where=shown(self.url), fix="correct the URL or the system's certificates") from None
            raise Passing(str(reason) or type(reason).__name__) from None

    def _judge(self, err: urllib.error.HTTPError) -> None:
        if err.code in (404, 410):
            raise _gone(self.url, f"HTTP {err.code}")
        if err.code in PASSING or err.code >= 500:
            asked = err.headers.get("Retry-After", "")
            raise Passing(f"HTTP {err.code}", float(asked) if asked.isdigit() else 0.0)
        if err.code == 416:  # of an empty file
            raise InputError("is empty, or shorter than its index says", where=shown(self.url), fix="upload it again") from None
        fix = "give an address and credentials that may read it (https://user:password@host/..., or a signed URL)"
        raise InputError(f"the server refuses it (HTTP {err.code})", where=shown(self.url), fix=fix) from None


def _opener() -> urllib.request.OpenerDirector:
    """Only HTTP(S), with the environment's proxies."""
    return urllib.request.build_opener(_Redirects())


# ---- everything else -----------------------------------------------------------------------------------------------


class _FsspecRanges:
    """s3://, gs://, ssh://, memory:// ... The file system is asked for anew each time: fsspec keeps one per process."""

    is_ranged = True

    def __init__(self, url: str, retry: Retry) -> None:
        self.url, self.retry = url, retry
        facts = _first_answer(lambda: self._guarded(lambda system, path: system.info(path)), url, retry)
        if facts.get("type") == "directory" or facts.get("size") is None:
            raise _gone(url, "no file of a known size")
        self.size = int(facts["size"])
        marks = (facts.get(name) for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
        self.version = str(next((mark for mark in marks if mark), ""))

    def stream(self, offset: int, size: int) -> Iterator[bytes]:
        return persistently(lambda at: self._once(at, offset + size), offset, offset + size, url=self.url, retry=self.retry)

    def _once(self, offset: int, end: int) -> Iterator[bytes]:
        while offset < end:
            last = min(end, offset + WHOLE_PIECE)
            piece = self._guarded(lambda system, path: system.cat_file(path, start=offset, end=last))  # noqa: B023 (called now)
            if not piece:
                return
            yield piece
            offset += len(piece)

    def _guarded(self, act: Callable[[Any, str], Any]) -> Any:
        import fsspec

        try:
            return act(*fsspec.core.url_to_fs(self.url))
        except FileNotFoundError:
            raise _gone(self.url, "no such file") from None
        except (ImportError, ValueError) as err:  # a scheme that fsspec does not know, or whose package is not installed
            raise InputError(f"cannot be opened ({err})", where=shown(self.url), fix="install what is missing") from None
        except PermissionError as err:
            raise InputError(f"may not be read ({err})", where=shown(self.url), fix="give credentials that may") from None
        except Exception as err:  # each file system has its own
            raise Passing(f"{type(err).__name__}: {err}") from None
