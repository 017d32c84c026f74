"""Pictures in every encoding of a camera, of one colour or a gradient, without an image library."""

import array
import struct
import zlib

WIDTH, HEIGHT = 32, 24

# Bytes that a pixel of the encoding takes in a row; nv12 and nv21 have half as many rows of chroma below.
RAW = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuyv": 2, "yuv422_yuy2": 2, "uyvy": 2, "nv12": 1, "nv21": 1}


def luma(rgb):
    """Y, U, V of a colour, BT.601 limited range."""
    r, g, b = rgb
    y = 16 + 65.481 * r / 255 + 128.553 * g / 255 + 24.966 * b / 255
    u = 128 - 37.797 * r / 255 - 74.203 * g / 255 + 112.0 * b / 255
    v = 128 + 112.0 * r / 255 - 93.786 * g / 255 - 18.214 * b / 255
    return [round(y), round(u), round(v)]


def raw(encoding, rgb, width=WIDTH, height=HEIGHT, padding=0, pad=0xAA):
    """(step, data) of a picture of one colour. `padding` bytes of rubbish end each row."""
    y, u, v = luma(rgb)
    r, g, b = rgb
    pair = {"yuyv": [y, u, y, v], "yuv422_yuy2": [y, u, y, v], "uyvy": [u, y, v, y]}
    pixel = {"rgb8": [r, g, b], "bgr8": [b, g, r], "rgba8": [r, g, b, 7], "bgra8": [b, g, r, 7], "mono8": [r], "nv12": [y], "nv21": [y]}
    row = bytes(pair[encoding] * (width // 2) if encoding in pair else pixel[encoding] * width)
    rows = [row] * height
    if encoding in ("nv12", "nv21"):
        rows += [bytes(([u, v] if encoding == "nv12" else [v, u]) * (width // 2))] * (height // 2)
    rubbish = bytes([pad]) * padding
    return len(row) + padding, array.array("B", b"".join(line + rubbish for line in rows))


def png(rgb, width=WIDTH, height=HEIGHT):
    """A PNG file of one colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(rgb) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
