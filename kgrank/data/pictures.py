"""Pictures of the sample shop's products: one shape a category, one color a brand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

SHAPES: tuple[Callable[[float, float], bool], ...] = (
    lambda x, y: x * x + y * y < 0.72,
    lambda x, y: max(abs(x), abs(y)) < 0.72,
    lambda x, y: abs(x) + abs(y) < 0.92,
    lambda x, y: -0.8 < y < 0.75 and abs(x) < (y + 0.8) / 2,
    lambda x, y: abs(x) < 0.42 and abs(y) < 0.88,
    lambda x, y: abs(y) < 0.42 and abs(x) < 0.88,
    lambda x, y: -0.75 < y < 0.75 and abs(x) < 0.45 + y / 3,
)
MARKS: tuple[Callable[[float, float], bool], ...] = (
    lambda x, y: False,
    lambda x, y: x * x + y * y < 0.08,
    lambda x, y: abs(y) < 0.12,
    lambda x, y: abs(x) < 0.12,
)


def draw(number: int, color: str) -> bytes:
    """A 24 x 24 PNG with a palette: the number chooses shape and mark, the color is "rrggbb"."""
    shape, mark = SHAPES[number % len(SHAPES)], MARKS[number // len(SHAPES)]
    rgb = bytes.fromhex(color)
    palette = b"\xf6\xf3\xec" + rgb + bytes(c // 2 for c in rgb)
    raw = bytearray()
    for line in range(24):
        y = (line - 11.5) / 12
        pixels = [
            (2 if mark(x, y) else 1) if shape(x, y) else 0
            for x in ((column - 11.5) / 12 for column in range(24))
        ]
        raw.append(0)  # no filter
        for i in range(0, 24, 4):  # four pixels of 2 bits a byte
            a, b, c, d = pixels[i : i + 4]
            raw.append(a << 6 | b << 4 | c << 2 | d)

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 24, 24, 2, 3, 0, 0, 0)
    # Level 0 stores: every zlib gives the same bytes.
    data = zlib.compress(bytes(raw), 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, body)
        for name, body in ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", data), (b"IEND", b""))
    )
