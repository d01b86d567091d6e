"""Bytes of one PixelData element -> stored integers (frames, rows, columns); also a program of its own.

Compressed pixels are decoded by C libraries, and the bytes are not trusted: `pixels.py` runs this file in a process of its own,
with a bound on memory, so that a crash in a decoder is an error in a message and not the end of a training run.
As a program: one line of JSON (the transfer syntax, the keywords of every element and the length of its data), then the data; out
come the decoded elements in order, as raw little-endian integers. It imports pydicom and numpy alone, nothing of mri_ds.
"""

import json
import sys
from typing import Any

import numpy as np

PLUGINS = {  # one per transfer syntax, so that every machine decodes alike
    "1.2.840.10008.1.2.4.50": "gdcm",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "gdcm",  # JPEG extended
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
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
UNDECODABLE = 3  # exit code: the data are damaged


def can_decode(transfer_syntax: str, bits_stored: int) -> bool:
    """Whether this machine has what decodes it. Needs pydicom."""
    if transfer_syntax in NATIVE:
        return True
    if transfer_syntax == JPEG_EXTENDED and bits_stored > 8:  # pydicom refuses GDCM's result, which is wrong
        return False
    from pydicom.pixels import get_decoder

    try:
        return PLUGINS.get(transfer_syntax, "") in get_decoder(transfer_syntax).available_plugins
    except NotImplementedError:
        return False


def decode(transfer_syntax: str, options: dict[str, Any], data: bytes) -> np.ndarray:
    """Stored integers (frames, rows, columns), bits above `bits_stored` cut off. Raises whatever the decoder raises."""
    from pydicom.pixels import get_decoder

    decoder = get_decoder(transfer_syntax)
    plugin = PLUGINS.get(transfer_syntax, "")
    stored, _ = decoder.as_array(data, raw=True, decoding_plugin=plugin, **options)
    return stored.reshape(options["number_of_frames"], options["rows"], options["columns"])


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
