"""A deflated file (all behind its meta header is one deflate stream) -> the same file in plain explicit VR, in memory.

pydicom would inflate it without a limit; here the stream may unpack to no more than a zip's member may.
Source: DICOM PS3.5, A.5; RFC 1951 (deflate, without a zlib header).
"""

import io
import struct
import zlib
from typing import BinaryIO

from mri_ds.data.dicom.files import FREE_ZIP_BYTES, MARK, MAX_FILE_BYTES, MAX_ZIP_RATIO, PREAMBLE, Source
from mri_ds.errors import InputError

EXPLICIT_LITTLE = b"1.2.840.10008.1.2.1\0"
PIECE = 2**20
META = bytes(PREAMBLE) + MARK + struct.pack("<HH2sH", 2, 0x10, b"UI", len(EXPLICIT_LITTLE)) + EXPLICIT_LITTLE


def inflate(source: Source, stream: BinaryIO) -> BinaryIO:
    """`stream` stands behind the meta header. Raises InputError for one that unpacks to too much, ValueError for damage."""
    most = min(MAX_FILE_BYTES, max(FREE_ZIP_BYTES, MAX_ZIP_RATIO * source.size))
    engine, content, size = zlib.decompressobj(-zlib.MAX_WBITS), [META], 0
    packed = stream.read(PIECE)
    while packed and not engine.eof:
        try:
            piece = engine.decompress(packed, PIECE)
        except zlib.error:
            raise ValueError("damaged stream") from None
        size += len(piece)
        if size > most:
            what = f"{source.label} would unpack from {source.size} to over {most} bytes"
            raise InputError(what, where=source.where, fix="rewrite it without deflate, if you trust it (dcmconv +te)")
        content.append(piece)
        packed = engine.unconsumed_tail or stream.read(PIECE)
    if not engine.eof:
        raise ValueError("ends inside its stream")
    return io.BytesIO(b"".join(content))
