"""Picture files that anybody may have made: found inside a folder, checked, and decoded.

A file is opened only if it lies in the folder, and decoded only after its header promises a size
that memory can hold. Whatever stands in the way is an `Unread` of a kind that can be counted.
"""

from __future__ import annotations

import stat
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Literal

import numpy as np

from kgrank.errors import ModelError

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 64 << 20  # of a file
MOST_PIXELS = 50_000_000  # 8,660 × 5,773: larger than any camera's usual picture
MOST_STRETCH = 20  # longer side over shorter; models scale the shorter one up to their size
_ENOUGH = (1_024, 1_024)  # a JPEG may be decoded at a fraction of its size, but not below this
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # others may start programs (EPS)

Kind = Literal["missing", "broken", "refused"]


class Unread(Exception):
    """A picture that is not read.

    Attributes:
        kind: "missing" = there is no such file; "broken" = it is no picture, or a damaged one;
            "refused" = its place or its size is not allowed.
    """

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def check_pillow() -> None:
    """See that pictures can be decoded here.

    Raises:
        ModelError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ModelError(
            "pictures are decoded with Pillow, which is not installed; "
            "run `pip install kgrank[image]`"
        ) from None


def find_picture(folder: Path, name: str) -> Path:
    """The file that a table's `name` means: a path relative to the folder, and inside it.

    Raises:
        Unread: "refused" for a URL, an absolute path, one with "..", one that leaves the folder by
            a link, and for what is no plain file; "missing" where there is none.
    """
    parts = name.replace("\\", "/").split("/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or ":" in parts[0]:
        raise Unread("refused", "no path inside the folder of the tables")
    try:
        path = (folder / name).resolve()
        mode = path.stat().st_mode
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a NUL in it
        raise Unread("missing", "there is no such file") from None
    if not path.is_relative_to(folder.resolve()):
        raise Unread("refused", "a link that leaves the folder of the tables")
    if not stat.S_ISREG(mode):
        raise Unread("refused", "no plain file")
    return path


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        Unread: "refused" if it is too large, "broken" if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Unread("broken", str(error.strerror)) from None
    if len(data) > MOST_BYTES:
        raise Unread("refused", f"more than {MOST_BYTES >> 20} MiB")
    return data


def decode(data: bytes) -> tuple[Image.Image, bool]:
    """The picture upright, in RGB, on white where it is transparent; and whether it moves.

    Of a picture that moves only the first frame is decoded.

    Raises:
        Unread: "refused" if it has too many pixels or is too narrow a strip, "broken" if it is no
            picture of a known format, or a damaged one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(BytesIO(data), formats=_formats())
        short, long = sorted(image.size)
        if short * long > MOST_PIXELS or long > MOST_STRETCH * short:
            size = f"{image.width} × {image.height} pixels"
            allowed = f"at most {MOST_PIXELS:,}, and {MOST_STRETCH} : 1"
            raise Unread("refused", f"{size}; allowed: {allowed}")
        moves = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        image.draft(None, _ENOUGH)
        image.load()
        return _rgb(_upright(image)), moves
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unread("refused", str(error)) from None
    except UnidentifiedImageError:
        known = ", ".join(_formats())
        raise Unread("broken", f"no picture that can be read; allowed: {known}") from None
    except Unread:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise Unread("broken", str(error) or type(error).__name__) from None


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its camera says; as it lies where that cannot be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing of the pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those formats that this Pillow can decode."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
