"""Images as they come from clients: kind and size are read from the first bytes before native code decodes anything."""

import struct

from sizewise.core.errors import UsageError

MOST_BYTES = 20 << 20
MOST_PIXELS = 40_000_000  # decoded, an image takes three bytes for each
_STARTS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"BM": "image/bmp"}


def checked_image(data: bytes) -> str:
    """The media type of an image.

    Raises:
        UsageError: it is no PNG, JPEG, GIF or BMP, is empty, or is too large.
    """
    kind = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    if kind is None:
        raise UsageError("images: not a PNG, JPEG, GIF or BMP image")
    if len(data) > MOST_BYTES:
        raise UsageError(f"images: {len(data)} bytes; at most {MOST_BYTES} are allowed")
    try:
        width, height = _size(data, kind)
    except (struct.error, IndexError) as error:
        raise UsageError(f"images: the {kind} image is cut short") from error
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise UsageError(f"images: {width} x {height} pixels; 1 to {MOST_PIXELS} in all are allowed")
    return kind


def _size(data: bytes, kind: str) -> tuple[int, int]:
    if kind == "image/png":
        width, height = struct.unpack_from(">II", data, 16)
    elif kind == "image/gif":
        width, height = struct.unpack_from("<HH", data, 6)
    elif kind == "image/bmp":
        width, height = struct.unpack_from("<ii", data, 18)
        height = abs(height)
    else:
        return _jpeg_size(data)
    return int(width), int(height)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the frame's header; the segments before it are passed over."""
    at = 2
    while data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return int(width), int(height)
        at += 2 + length
    raise IndexError
