"""The bytes of a file, unzipped where it is gzip, and never more of them than asked for.

Whether a file is gzip is read from its first two bytes: `.nii` files that are compressed exist, and `.nii.gz` that are not.
Memory grows with what has arrived, not with what a header promises, so that a damaged length costs nothing.
Source: RFC 1952 (gzip: several members in a row are one stream), RFC 1951 for the most that deflate can expand.
"""

import zlib
from types import TracebackType
from typing import BinaryIO, Self

MAX_DEFLATE_RATIO = 1032  # one byte of a gzip stream yields at most this many
GZIP = b"\x1f\x8b"
PIECE = 2**20  # bytes unzipped at a time
COMPRESSED_PIECE = 2**17


class ByteStream:
    """Reads forward through a plain or a gzip file, or another stream. Raises EOFError and zlib.error for damaged gzip."""

    def __init__(self, file: "BinaryIO | ByteStream", num_bytes: int) -> None:
        self._file = file
        self._compressed = bytes(file.read(2))
        self.is_gzip = self._compressed == GZIP
        self._inflate = zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum, which zlib compares
        self.most = num_bytes * (MAX_DEFLATE_RATIO if self.is_gzip else 1)  # bytes that can come out at all

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, size: int) -> bytearray:
        """The next `size` bytes; fewer where the file ends."""
        content = bytearray()
        while len(content) < size and (piece := self._piece(min(size - len(content), PIECE))):
            content += piece
        return content

    def skip(self, size: int) -> None:
        """Passes over `size` bytes, or to the end."""
        while size > 0 and (piece := self._piece(min(size, PIECE))):
            size -= len(piece)

    def check_sum(self, at_most: int) -> None:
        """Reads on to where gzip's checksum stands, if that is within `at_most` bytes: only there zlib compares it."""
        while self.is_gzip and not self._inflate.eof and at_most > 0:
            at_most -= max(1, len(self._piece(min(at_most, PIECE))))

    def _piece(self, most: int) -> bytes:
        """From 1 to `most` bytes; none at the end."""
        if not self.is_gzip:
            piece, self._compressed = self._compressed[:most], self._compressed[most:]
            return piece or bytes(self._file.read(most))
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            data = self._compressed or bytes(self._file.read(COMPRESSED_PIECE))
            piece = self._inflate.decompress(data, most)
            self._compressed = self._inflate.unconsumed_tail
            if piece:
                return piece
            if not data and not self._inflate.eof:
                raise EOFError("the file ends inside its compressed stream")

    def _next_member(self) -> bool:
        """Whether another gzip member follows the one that ended. Anything else there (padding) is no voxel's."""
        follows = self._inflate.unused_data
        if len(follows) < len(GZIP):
            follows += self._file.read(COMPRESSED_PIECE)
        if not follows.startswith(GZIP):
            return False
        self._compressed, self._inflate = follows, zlib.decompressobj(wbits=31)
        return True
