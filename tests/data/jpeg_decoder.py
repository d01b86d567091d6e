"""Sequential greyscale JPEG of 8 or 12 bits, written from the standard: an oracle for small pictures.

`decode_jpeg`: one stream -> (rows, columns) float64, before rounding. `encode_blocks`: a picture whose blocks of 8 x 8 are even,
which JPEG keeps exactly -> a stream. Source: ITU-T T.81, annexes A, B and F.
"""

import struct

import numpy as np

ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
COSINES = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) * (np.sqrt(0.125) if u == 0 else 0.5) for u in range(8)] for x in range(8)]
)


def decode_jpeg(stream: bytes) -> np.ndarray:
    assert stream[:2] == b"\xff\xd8"
    at, quantiser, codes, restart_every = 2, {}, {}, 0
    while True:
        assert stream[at] == 0xFF
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        body, at = stream[at + 4 : at + 2 + length], at + 2 + length
        if marker == 0xDB:
            while body:
                wide, number = divmod(body[0], 16)
                size = 128 if wide else 64
                quantiser[number] = np.frombuffer(body[1 : 1 + size], ">u2" if wide else "u1").astype(float)
                body = body[1 + size :]
        elif marker == 0xC4:
            while body:
                counts, values, code, table = body[1:17], body[17:], 0, {}
                for bits, count in enumerate(counts, start=1):
                    for _ in range(count):
                        table[bits, code], values, code = values[0], values[1:], code + 1
                    code <<= 1
                codes[body[0]], body = table, values
        elif marker in (0xC0, 0xC1):
            precision, rows, columns, samples, _, _, table_number = struct.unpack(">BHHBBBB", body)
            assert samples == 1
        elif marker == 0xDD:
            restart_every = int.from_bytes(body, "big")
        elif marker == 0xDA:
            dc, ac = codes[body[2] >> 4], codes[0x10 | (body[2] & 15)]
            break
    assert restart_every == 0, "this decoder knows no restarts"
    bits = np.unpackbits(np.frombuffer(stream[at:].replace(b"\xff\x00", b"\xff"), np.uint8)).tolist()
    down, across, place, level = -(-rows // 8), -(-columns // 8), 0, 0.0
    picture = np.empty((down * 8, across * 8))

    def symbol(table: dict[tuple[int, int], int]) -> int:
        nonlocal place
        code = 0
        for length in range(1, 17):
            code, place = code * 2 + bits[place], place + 1
            if (length, code) in table:
                return table[length, code]
        raise AssertionError("no such code")

    def extended(size: int) -> int:
        nonlocal place
        value = 0
        for _ in range(size):
            value, place = value * 2 + bits[place], place + 1
        return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1

    for block in range(down * across):
        level += extended(symbol(dc))
        terms, k = np.zeros(64), 1
        terms[0] = level
        while k < 64:
            run, size = divmod(symbol(ac), 16)
            if size == 0:
                if run != 15:
                    break
                k += 16
                continue
            k += run
            terms[ZIGZAG[k]] = extended(size)
            k += 1
        weights = np.empty(64)
        weights[ZIGZAG] = quantiser[table_number]
        y, x = divmod(block, across)
        picture[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = COSINES @ (terms * weights).reshape(8, 8) @ COSINES.T
    return np.clip(picture[:rows, :columns] + 2 ** (precision - 1), 0, 2**precision - 1)


def encode_blocks(picture: np.ndarray, precision: int) -> bytes:
    """(rows, columns), multiples of 8 -> a stream that says nothing but each block's mean."""
    means = picture[::8, ::8].astype(int)
    assert np.array_equal(np.kron(means, np.ones((8, 8), int)), picture)

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    text, last = "", 0
    for level in (8 * (means - 2 ** (precision - 1))).ravel().tolist():
        step, last = level - last, level
        size = abs(step).bit_length()
        value = step if step >= 0 else step + (1 << size) - 1
        text += f"{size:05b}" + (f"{value:0{size}b}" if size else "") + "0"  # the "0": no other term
    text += "1" * (-len(text) % 8)
    packed = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")
    sizes = bytes([0, 0, 0, 0, 16, *[0] * 11]) + bytes(range(16))  # sixteen codes of five bits
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + bytes([1] * 64))
        + segment(0xC1, struct.pack(">BHHB", precision, *picture.shape, 1) + b"\1\x11\0")
        + segment(0xC4, b"\x00" + sizes)
        + segment(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0")
        + segment(0xDA, b"\1\1\0\0\x3f\0")
        + packed
        + b"\xff\xd9"
    )
