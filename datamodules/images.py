"""Photos from files: header check, fingerprint and decoding to upright 8-bit RGB.

JPEG is read by libjpeg-turbo (simplejpeg), at reduced scale where less is enough; whatever else a shop sends (CMYK,
16-bit, palette, alpha, animation, TIFF) goes through Pillow. A photo's size always means its *upright* size, after
EXIF rotation.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB

ENDS = 1 << 16  # bytes read from either end of a file by the cheap check
LOOSE = 32  # bytes too many in front of a JPEG's end that are taken for a camera's habit, not for damage
ORIENTATION = 0x0112  # the EXIF tag
# What Pillow raises for files it cannot read: UnidentifiedImageError is an OSError, the rest comes from single formats.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, Image.DecompressionBombError)


class BadImage(ValueError):
    """A file that cannot be read as a photo; the message says what is wrong with it."""


class _HeadTooShort(BadImage):
    """The JPEG header goes on after the bytes at hand."""


class Header(NamedTuple):
    """What a photo says about itself: upright size in pixels, EXIF orientation, whether libjpeg-turbo can give RGB."""

    width: int
    height: int
    orientation: int
    turbo: bool


class Scan(NamedTuple):
    """Result of the cheap check: upright (width, height), digest of the content, and the fault if there is one."""

    size: tuple[int, int]
    digest: bytes
    fault: str


def orientation(exif: bytes) -> int:
    """Orientation 1..8 in an EXIF block; 1 (upright) if it does not say or is damaged."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return value if value in range(1, 9) else 1


def upright(pixels: Pixels, turn: int) -> Pixels:
    """Turn pixels as EXIF orientation `turn` asks for."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if turn in (3, 4, 7, 8) else 1
    columns = -1 if turn in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each header segment, up to and including the start of the scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadImage("its JPEG header is damaged")
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # fill byte, or a marker without a body
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, end
        if marker == 0xDA:
            return
        at = end
    raise _HeadTooShort("its JPEG header is cut off")


def _jpeg_header(data: bytes) -> tuple[Header, int]:
    """Header of a JPEG and where its pixel data begins."""
    width = height = components = 0
    turn, end = 1, 2
    for marker, begin, end in _jpeg_segments(data):
        body = data[begin:end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            components = body[5] if len(body) > 5 else 0
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            turn = orientation(body)
    if not width or not height:
        raise BadImage("its JPEG header gives no size")
    size = (height, width) if turn >= 5 else (width, height)
    return Header(*size, turn, components in (1, 3)), end


def _pillow_header(file: io.BytesIO | Path) -> Header:
    try:
        with Image.open(file) as photo:
            turn = orientation(photo.info.get("exif", b""))
            width, height = photo.size
    except UNREADABLE as error:
        raise BadImage(f"it is not an image that can be read ({type(error).__name__})") from error
    return Header(*((height, width) if turn >= 5 else (width, height)), turn, False)


def read_header(data: bytes) -> Header:
    """Header of a photo held in memory.

    Raises:
        BadImage: not an image, or its header is damaged.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_header(data)[0]
    return _pillow_header(io.BytesIO(data))


def _flatten(photo: Image.Image) -> Image.Image:
    """First frame of any Pillow image as 8-bit RGB; what is transparent becomes white, as on a product page."""
    if photo.mode.startswith(("I", "F")):
        values = np.asarray(photo, dtype=np.float32)
        peak = values.max(initial=0.0)
        scale = 255.0 if peak <= 1 and photo.mode == "F" else 1 / 257 if peak > 255 or "16" in photo.mode else 1.0
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in photo.mode or "a" in photo.mode or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _decode_pillow(data: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return np.array(_flatten(photo))  # a copy: Pillow's own memory is read-only, which torch warns about
    except UNREADABLE as error:
        raise BadImage(f"it cannot be decoded ({error})") from error


def _power_of_two(share: float) -> int:
    """Largest of 8, 4, 2, 1 that a photo may be divided by and still keep `share` of its size."""
    return next((factor for factor in (8, 4, 2) if factor * share <= 1), 1)


def harmful(complaint: str) -> bool:
    """Whether libjpeg's complaint means lost pixels; a few loose bytes before the end are some cameras' habit."""
    loose = re.search(r"(\d+) extraneous bytes", complaint)
    lost = "premature end" in complaint.lower() or "Corrupt JPEG data" in complaint
    return int(loose[1]) > LOOSE if loose else lost


def _decode_turbo(data: bytes, header: Header, share: float | None) -> Pixels | None:
    """The JPEG by libjpeg-turbo, or None where it stumbles over something harmless that Pillow reads."""
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    # libjpeg also scales by 3/8, 5/8 ...: those need more time than the next power of two.
    factor = 1 if share is None else _power_of_two(share)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, fastdct=share is not None, fastupsample=share is not None, **least)
    except ValueError as error:
        if harmful(str(error)):
            raise BadImage(f"it is truncated or damaged ({error})") from error
        return None


def decode(data: bytes, header: Header, share: float | None = None) -> Pixels:
    """Upright RGB pixels of a photo.

    Args:
        data: the file's bytes.
        header: what `read_header` says about them.
        share: a photo of at least this share of the full width and height is enough (training); None: exact and whole.

    Returns:
        (height, width, 3), smaller than the header says where `share` allows it.

    Raises:
        BadImage: truncated, damaged, or of an unknown kind.
    """
    pixels = _decode_turbo(data, header, share) if header.turbo else None
    return upright(_decode_pillow(data) if pixels is None else pixels, header.orientation)


def _has_end(head: bytes, tail: bytes, tail_at: int, pixels_at: int) -> bool:
    """Whether the file's end is there. A thumbnail in the header has an end of its own, which does not count."""
    if head[:2] == b"\xff\xd8":
        return tail.find(b"\xff\xd9", max(0, pixels_at - tail_at)) >= 0
    if head[:4] == b"\x89PNG":
        return b"IEND" in tail
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 <= tail_at + len(tail)
    return True


def _read_ends(path: Path) -> tuple[bytes, bytes, int]:
    """First and last bytes of a file (the same bytes twice for a small one) and its size."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(ENDS)
        if size <= ENDS:
            return head, head, size
        file.seek(max(0, size - ENDS))
        return head, file.read(ENDS), size


def _check(path: Path, head: bytes, tail: bytes, size: int) -> tuple[int, int]:
    """Upright size of the photo; raises BadImage."""
    if not size:
        raise BadImage("it is empty")
    pixels_at = 0
    if head[:2] == b"\xff\xd8":
        try:
            header, pixels_at = _jpeg_header(head)
        except _HeadTooShort:
            header, pixels_at = _jpeg_header(path.read_bytes() if size > len(head) else head)
    else:
        header = _pillow_header(path)
    if not _has_end(head, tail, size - len(tail), pixels_at):
        raise BadImage("it is truncated: its end is missing")
    return header.width, header.height


def scan(path: Path) -> Scan:
    """Cheap check of one file: there, an image, its end there; only both ends of it are read.

    The digest covers size and both ends: equal for equal files, the whole content for files up to 64 KB.
    """
    try:
        head, tail, size = _read_ends(path)
    except FileNotFoundError:
        return Scan((0, 0), b"", "there is no such file")
    except OSError as error:
        return Scan((0, 0), b"", f"it cannot be opened ({error.strerror})")
    digest = hashlib.blake2b(head, digest_size=16, salt=size.to_bytes(16, "little"))
    digest.update(tail if size > ENDS else b"")
    try:
        return Scan(_check(path, head, tail, size), digest.digest(), "")
    except BadImage as bad:
        return Scan((0, 0), digest.digest(), str(bad))


def scan_all(paths: Iterable[Path], threads: int) -> dict[Path, Scan]:
    """`scan` of each path, in threads; a path named twice is read once."""
    unique = list(dict.fromkeys(paths))
    # One task for each photo would cost more than the check itself.
    parts = [unique[at : at + 64] for at in range(0, len(unique), 64)]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda part: [scan(path) for path in part], parts)
        return dict(zip(unique, (one for part in found for one in part), strict=True))


def fault(path: Path) -> str:
    """What is wrong with a photo when it is decoded whole; empty if nothing is."""
    try:
        data = path.read_bytes()
        decode(data, read_header(data))
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    except BadImage as bad:
        return str(bad)
    return ""


def same_content(scans: dict[Path, Scan]) -> dict[Path, bytes]:
    """One key for each photo, equal where the files are equal byte for byte.

    Files whose cheap digests differ differ; the few large ones that agree in size and both ends are read whole.
    """
    groups: dict[bytes, list[Path]] = {}
    for path, found in scans.items():
        groups.setdefault(found.digest or os.fsencode(path), []).append(path)
    keys = {path: key for key, paths in groups.items() for path in paths}
    for paths in groups.values():
        if len(paths) > 1 and paths[0].stat().st_size > 2 * ENDS:
            keys.update({path: hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths})
    return keys
