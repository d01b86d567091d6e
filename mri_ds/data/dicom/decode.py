"""Bytes of one PixelData element -> stored integers (frames, rows, columns); also a program of its own.

Compressed pixels are decoded by C libraries, and the bytes are not trusted: `pixels.py` runs this file in a process of its own,
with a bound on memory, so that a crash in a decoder is an error in a message and not the end of a training run.
As a program: one line of JSON (the transfer syntax, the keywords of every element and the length of its data), then the data; out
come the decoded elements in order, as raw little-endian integers. It imports pydicom and numpy alone, nothing of mri_ds.
"""

import json
import struct
import sys
from typing import Any

import numpy as np

PLUGINS = {  # one per transfer syntax, so that every machine decodes alike
    "1.2.840.10008.1.2.4.50": "gdcm",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "gdcm",  # JPEG extended, 8 or 12 bits; see `_decode_extended`
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # high-throughput JPEG 2000, lossless
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
}
DEFLATED = "1.2.840.10008.1.2.1.99"  # the whole file is; its pixels, once inflated, are plain
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED}
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
FRAME_HEADERS = {0xC0, 0xC1}  # of sequential JPEG: baseline, extended
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
UNDECODABLE = 3  # exit code: the data are damaged


def can_decode(transfer_syntax: str) -> bool:
    """Whether this machine has what decodes it. Needs pydicom."""
    if transfer_syntax in NATIVE:
        return True
    from pydicom.pixels import get_decoder

    try:
        return PLUGINS.get(transfer_syntax, "") in get_decoder(transfer_syntax).available_plugins
    except NotImplementedError:
        return False


def decode(transfer_syntax: str, options: dict[str, Any], data: bytes) -> np.ndarray:
    """Stored integers (frames, rows, columns), bits above `bits_stored` cut off. Raises whatever the decoder raises."""
    from pydicom.pixels import get_decoder

    if transfer_syntax == JPEG_EXTENDED:
        return _decode_extended(options, data)
    decoder = get_decoder(transfer_syntax)
    plugin = PLUGINS.get(transfer_syntax, "")
    stored, _ = decoder.as_array(data, raw=True, decoding_plugin=plugin, **options)
    return stored.reshape(options["number_of_frames"], options["rows"], options["columns"])


def _decode_extended(options: dict[str, Any], data: bytes) -> np.ndarray:
    """By GDCM itself: pydicom's plugin refuses more than 8 bits. Raises ValueError where stream and header tell of two sizes."""
    from pydicom.encaps import generate_frames

    rows, columns, count = options["rows"], options["columns"], options["number_of_frames"]
    dtype = stored_dtype(options)
    frames = list(generate_frames(data, number_of_frames=count))
    if len(frames) != count:
        raise ValueError("another number of frames")
    unused = 8 * dtype.itemsize - options["bits_stored"]
    stored = np.empty((count, rows, columns), dtype=dtype)
    for plane, frame in zip(stored, frames):
        precision, *shape, samples = _frame_header(frame)
        if (shape, samples) != ([rows, columns], 1) or precision not in (8, 12) or precision > 8 * dtype.itemsize:
            raise ValueError("another picture than the header tells of")
        values = _decode_sequential(frame, precision, rows, columns).astype(dtype)
        plane[...] = values << unused >> unused  # of signed numbers the highest bit that is used is the sign
    return stored


def _decode_sequential(frame: bytes, precision: int, rows: int, columns: int) -> np.ndarray:
    """One greyscale JPEG stream of 8 or 12 bits -> (rows, columns) uint8 or uint16."""
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 8 if precision == 8 else 16, precision, precision - 1, 0))
    image.SetDataElement(element)
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")  # its bytes come as text
    return np.frombuffer(decoded, np.uint8 if precision == 8 else "<u2").reshape(rows, columns)


def _frame_header(frame: bytes) -> tuple[int, int, int, int]:
    """Bits per sample, rows, columns and samples per voxel of a sequential JPEG stream. Raises ValueError where it has none."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in FRAME_HEADERS:
            return frame[at + 4], *struct.unpack(">HHB", frame[at + 5 : at + 10])
        is_filler = marker == 0xFF
        at += 1 if is_filler else 2 if marker in STANDALONE else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("no frame header")


def stored_dtype(options: dict[str, Any]) -> np.dtype:
    """The little-endian integer type of decoded voxels."""
    return np.dtype(f"<{'i' if options['pixel_representation'] else 'u'}{options['bits_allocated'] // 8}")


def main() -> int:
    request = json.loads(sys.stdin.buffer.readline())
    _limit_memory(request["max_memory"])
    for element in request["elements"]:
        data = sys.stdin.buffer.read(element["length"])
        try:
            stored = decode(request["transfer_syntax"], element["options"], data)
        except Exception:  # its text may quote the file
            return UNDECODABLE
        sys.stdout.buffer.write(np.ascontiguousarray(stored, dtype=stored_dtype(element["options"])).tobytes())
    return 0


def _limit_memory(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the patient's image


if __name__ == "__main__":
    sys.exit(main())
