import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kgrank.encoders import pictures as module
from kgrank.encoders.pictures import Unread, decode, find_picture, read_bytes

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def promised(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        sum_ = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", sum_)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def refusal(*arguments: Any, by: Any = decode) -> tuple[str, str]:
    with pytest.raises(Unread) as caught:
        by(*arguments)
    return caught.value.kind, str(caught.value)


# Where a picture may lie


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with `images/a.png`, beside a secret."""
    (tmp_path / "shop" / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "shop" / "images" / "a.png").write_bytes(b"a")
    return tmp_path / "shop"


@pytest.mark.parametrize("name", ["images/a.png", "./images/a.png", "images//a.png"])
def test_a_path_inside_the_folder_is_found(shop: Path, name: str) -> None:
    assert find_picture(shop, name).read_bytes() == b"a"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "images/../../secret.png", "images/../images/a.png", "..\\secret.png"),
        *("/etc/passwd", "C:\\a.png", "C:a.png", "\\\\host\\share\\a.png", "//host/a.png"),
        *("https://shop.example/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"),
        "images",
    ],
)
def test_a_path_that_is_none_or_leaves_the_folder_is_refused(shop: Path, name: str) -> None:
    assert refusal(shop, name, by=find_picture)[0] == "refused"


@pytest.mark.parametrize("name", ["images/b.png", "a" * 5_000, "images/a.png/b.png", "nul\0.png"])
def test_a_file_that_is_not_there_is_missing(shop: Path, name: str) -> None:
    assert refusal(shop, name, by=find_picture)[0] == "missing"


def test_links_may_stay_in_the_folder_and_not_leave_it(shop: Path) -> None:
    (shop / "in.png").symlink_to(shop / "images" / "a.png")
    (shop / "out.png").symlink_to(shop.parent / "secret.png")
    (shop / "round.png").symlink_to(shop / "round.png")
    assert find_picture(shop, "in.png").read_bytes() == b"a"
    assert "leaves the folder" in refusal(shop, "out.png", by=find_picture)[1]
    assert refusal(shop, "round.png", by=find_picture)[0] == "missing"


def test_a_pipe_is_not_waited_for(shop: Path) -> None:
    os.mkfifo(shop / "pipe.png")
    assert refusal(shop, "pipe.png", by=find_picture) == ("refused", "no plain file")


def test_a_file_too_large_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    assert refusal(path, by=read_bytes) == ("refused", "more than 1 MiB")
    path.write_bytes(b"x" * (1 << 20))
    assert len(read_bytes(path)) == 1 << 20


# What is decoded


def test_every_kind_of_picture_becomes_rgb() -> None:
    gray = Image.new("L", (4, 2), 128)
    assert decode(encoded(gray))[0].getpixel((0, 0)) == (128, 128, 128)
    assert decode(encoded(gray.convert("1")))[0].mode == "RGB"
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = decode(encoded(cmyk, "JPEG"))[0].getpixel((8, 8))
    assert red > 230
    assert max(green, blue) < 40
    for format in ("JPEG", "WEBP", "BMP", "GIF"):
        picture, moves = decode(encoded(Image.new("RGB", (16, 8), RED), format))
        assert (picture.mode, picture.size, moves) == ("RGB", (16, 8), False)
        assert np.allclose(picture.getpixel((8, 4)), RED, atol=3)


def test_sixteen_bits_of_gray_are_scaled_to_eight() -> None:
    deep = Image.fromarray(np.array([[0, 0x7FFF, 0xFFFF]], np.uint16))
    assert np.asarray(decode(encoded(deep))[0])[0, :, 0].tolist() == [0, 127, 255]


def test_what_is_transparent_is_white() -> None:
    half = Image.new("RGBA", (2, 1), (*RED, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    assert list(decode(encoded(half))[0].get_flattened_data()) == [RED, WHITE]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    clear = encoded(palette, transparency=1)
    assert list(decode(clear)[0].get_flattened_data()) == [RED, WHITE]
    assert list(decode(encoded(palette, transparency=b"\xff\0"))[0].get_flattened_data()) == [
        RED,
        WHITE,
    ]


def test_a_turned_photograph_stands_upright() -> None:
    """Orientation 6: what the camera wrote as the left column is the top row."""
    lying = Image.new("RGB", (32, 16), BLUE)
    lying.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, _ = decode(encoded(lying, "JPEG", exif=exif, quality=95))
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4))[0] > 200
    assert upright.getpixel((8, 28))[2] > 200


def test_damaged_exif_costs_nothing_but_the_turn() -> None:
    photograph = encoded(Image.new("RGB", (16, 8), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff")
    assert decode(photograph)[0].size == (16, 8)


def test_of_a_picture_that_moves_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE, WHITE)]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        moving = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        picture, moves = decode(moving)
        assert moves, format
        assert picture.getpixel((4, 4)) == RED, format


@pytest.mark.parametrize("fault", ["text", "empty", "cut", "flipped", "eps", "tail"])
def test_what_is_no_sound_picture_is_broken(fault: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    sound = encoded(Image.fromarray(noise))
    flipped = bytearray(sound)
    flipped[len(flipped) // 2] ^= 0xFF
    data = {
        "text": b"<html>404</html>",
        "empty": b"",
        "cut": sound[: len(sound) // 2],
        "flipped": bytes(flipped),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "tail": sound[len(sound) // 2 :],
    }[fault]
    assert refusal(data)[0] == "broken"


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (12_000, 10_000), (10_000, 5_001), (1, 30_000)]
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    """Above Pillow's own bound, between that and its warning, above ours, and a strip."""
    assert refusal(promised(width, height))[0] == "refused"
