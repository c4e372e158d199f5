import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from datamodules import images
from datamodules.images import BadImage, decode, fault, read_header, same_content, scan
from datamodules.transforms import Augment, Transform, affine, warp, window
from tests.photos import hurt, pixels, save


def as_bytes(photo: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    header = read_header(data)
    found = decode(data, header)
    assert found.shape == (header.height, header.width, 3)
    assert found.dtype == np.uint8
    return found


def near(found: np.ndarray, wanted: np.ndarray, within: float) -> bool:
    return found.shape == wanted.shape and np.abs(found.astype(float) - wanted).mean() < within


PHOTO = Image.fromarray(pixels(1))
RGB = np.asarray(PHOTO)
GREY = np.asarray(PHOTO.convert("L").convert("RGB"))


def test_jpeg_equals_pillow_exactly() -> None:
    data = as_bytes(PHOTO, "JPEG", quality=90)
    assert read_header(data).turbo
    assert near(read(data), np.asarray(Image.open(io.BytesIO(data))), 0.5)


@pytest.mark.parametrize(
    ("mode", "kind", "wanted", "within"),
    [("L", "JPEG", GREY, 3), ("CMYK", "JPEG", RGB, 6), ("L", "PNG", GREY, 0.01), ("P", "PNG", None, 0),
     ("RGB", "BMP", RGB, 0.01), ("RGB", "WEBP", RGB, 6), ("RGB", "TIFF", RGB, 0.01), ("1", "PNG", None, 0)],
)  # fmt: skip
def test_colour_spaces_and_formats(mode: str, kind: str, wanted: np.ndarray | None, within: float) -> None:
    photo = PHOTO.convert(mode)
    found = read(as_bytes(photo, kind))
    assert near(found, np.asarray(photo.convert("RGB")) if wanted is None else wanted, within or 0.01)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_is_scaled_and_not_cut(kind: str) -> None:
    deep = np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257
    assert near(read(as_bytes(Image.fromarray(deep), kind)), GREY, 1)


def test_float_and_32_bit_grey() -> None:
    for scale in (1 / 255, 1):
        photo = Image.fromarray((GREY[..., 0] * np.float32(scale)).astype(np.float32))
        assert near(read(as_bytes(photo, "TIFF")), GREY, 1)


def test_transparent_is_white() -> None:
    photo = PHOTO.convert("RGBA")
    photo.putalpha(Image.fromarray(np.tile(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8), (64, 1))))
    for kind in ("PNG", "WEBP"):
        found = read(as_bytes(photo, kind, lossless=True) if kind == "WEBP" else as_bytes(photo, kind))
        assert (found[:, :24] == 255).all()
        assert near(found[:, 24:], RGB[:, 24:], 0.01)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_gives_its_first_frame(kind: str) -> None:
    other = Image.fromarray(pixels(2))
    found = read(as_bytes(PHOTO, kind, save_all=True, append_images=[other], duration=50))
    assert near(found, RGB, 15)
    assert not near(found, np.asarray(other), 15)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "CMYK"])
def test_exif_orientation(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    photo = PHOTO.convert("CMYK") if kind == "CMYK" else PHOTO
    data = as_bytes(photo, "JPEG" if kind == "CMYK" else kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (read_header(data).width, read_header(data).height) == wanted.size
    assert near(read(data), np.asarray(wanted), 1)


def test_damaged_exif_means_upright() -> None:
    assert images.orientation(b"Exif\0\0 no tags here") == 1
    exif = Image.Exif()
    exif[0x0112] = 77
    assert read_header(as_bytes(PHOTO, "JPEG", exif=exif)).orientation == 1


@pytest.mark.parametrize(("share", "factor"), [(1.0, 1), (0.6, 1), (0.5, 2), (0.3, 2), (0.2, 4), (0.125, 8), (0.01, 8)])
def test_reduced_scale_never_goes_below_the_share(share: float, factor: int) -> None:
    data = as_bytes(Image.fromarray(pixels(3, (304, 208))), "JPEG", quality=95)
    found = decode(data, read_header(data), share)
    assert found.shape[:2] == (208 // factor, 304 // factor)
    wanted = np.asarray(Image.fromarray(read(data)).reduce(factor))
    assert near(found, wanted, 4)
    odd = as_bytes(Image.fromarray(pixels(3, (301, 203))), "JPEG")
    assert decode(odd, read_header(odd), share).shape[:2] == (-(-203 // factor), -(-301 // factor))


def test_reduced_scale_of_a_turned_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_bytes(Image.fromarray(pixels(3, (320, 160))), "JPEG", exif=exif)
    assert decode(data, read_header(data), 0.5).shape == (160, 80, 3)


def test_scan_finds_a_missing_end(tmp_path: Path) -> None:
    exif = as_bytes(PHOTO, "JPEG")  # a thumbnail with an end of its own
    whole = as_bytes(Image.fromarray(pixels(5, (400, 300))), "JPEG", exif=b"Exif\0\0" + exif)
    for name, data in {"a.jpg": whole, "b.png": as_bytes(PHOTO, "PNG"), "c.webp": as_bytes(PHOTO, "WEBP")}.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert scan(path).fault == ""
        path.write_bytes(data + b"\0" * 100)
        assert scan(path).fault == "", "something behind the end is harmless"
        path.write_bytes(data[: len(data) * 2 // 3])
        assert "truncated" in scan(path).fault or "not an image" in scan(path).fault
        assert fault(path)


def test_scan_reads_on_where_the_header_is_long(tmp_path: Path) -> None:
    data = as_bytes(PHOTO, "JPEG", exif=b"Exif\0\0" + b"x" * 60_000, icc_profile=b"y" * 100_000)
    path = tmp_path / "long.jpg"
    path.write_bytes(data)
    assert scan(path).size == PHOTO.size
    assert not scan(path).fault
    path.write_bytes(data[:80_000])
    assert "cut off" in scan(path).fault


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"hello, no photo", "not an image"), (b"\xff\xd8\xff\xd8 no", "header"), (None, "no such file")],
)
def test_scan_says_what_is_wrong(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    assert words in scan(path).fault


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    assert "cannot be opened" in scan(tmp_path).fault


def test_damage_in_the_middle_is_found_when_decoded(tmp_path: Path) -> None:
    path = tmp_path / "hurt.jpg"
    hurt(path)
    assert not scan(path).fault, "its header and its end are there"
    assert "damaged" in fault(path)
    with pytest.raises(BadImage, match="damaged"):
        decode(path.read_bytes(), read_header(path.read_bytes()), share=0.5)


@pytest.mark.parametrize(
    ("complaint", "lost"),
    [
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", False),
        ("Corrupt JPEG data: 171 extraneous bytes before marker 0xd9", True),
        ("Corrupt JPEG data: bad Huffman code", True),
        ("Premature end of JPEG file", True),
        ("Unknown Adobe color transform code 7", False),
    ],
)
def test_complaints_of_libjpeg(complaint: str, lost: bool) -> None:
    assert images.harmful(complaint) == lost


def test_a_few_loose_bytes_are_read_over(tmp_path: Path) -> None:
    data = as_bytes(PHOTO, "JPEG", quality=90)
    assert near(read(data[:-2] + b"\1\2\3" + data[-2:]), read(data), 1)


def test_large_files_are_compared_whole(tmp_path: Path) -> None:
    body = bytearray(np.random.default_rng(0).bytes(3 * images.ENDS))
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(body)
    body[len(body) // 2] ^= 1
    (tmp_path / "d").write_bytes(body)
    keys = same_content({path: scan(path) for path in tmp_path.iterdir()})
    same = [keys[tmp_path / name] for name in "abcd"]
    assert same[0] == same[1] == same[2] != same[3]


def test_scan_all_reads_each_path_once_in_any_number_of_threads(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.jpg", n) for n in range(200)]
    one, four = images.scan_all([*paths, *paths], 1), images.scan_all(paths, 4)
    assert one == four
    assert list(one) == paths


def shown(transform: Transform, photo: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    out = np.empty((transform.side, transform.side, 3), np.uint8)
    transform.exact(photo, transform.region(box, (photo.shape[1], photo.shape[0])), out)
    return out


def test_letterbox_keeps_the_aspect_and_fills_with_grey() -> None:
    out = shown(Transform(64, "letterbox"), np.zeros((64, 32, 3), np.uint8))
    assert (out[:, :16] == 128).all()
    assert (out[:, 48:] == 128).all()
    assert (out[:, 16:48] == 0).all()


def test_squash_fills_and_crop_takes_the_middle() -> None:
    photo = np.zeros((64, 32, 3), np.uint8)
    photo[16:48] = 200
    assert (shown(Transform(32, "crop"), photo) == 200).all()
    assert 90 < shown(Transform(32, "squash"), photo).mean() < 110
    assert (shown(Transform(32, "squash"), photo) != 128).all()


def test_margin_is_a_share_of_the_box_and_ends_at_the_edge() -> None:
    region = Transform(32, "squash", margin=0.5).region((10, 20, 30, 40), (100, 50))
    assert (region.left, region.right) == (0.0, 0.4)
    assert (region.top, region.bottom) == (0.2, 1.0)


def test_a_box_beside_the_photo_is_refused() -> None:
    with pytest.raises(BadImage, match="does not meet"):
        Transform(32, "squash").region((200, 0, 300, 10), (100, 50))


def test_needed_scale_fits_the_longer_way() -> None:
    transform = Transform(32, "squash")
    region = transform.region((0, 0, 320, 64), (640, 480))
    assert transform.needed(region, (640, 480)) == pytest.approx(0.5)


def moved(photo: np.ndarray, degrees: float, shift: tuple[float, float], factor: float) -> np.ndarray:
    return warp(photo, affine(degrees, shift, factor, (1, 1)), len(photo)).transpose(1, 2, 0)


def spot(photo: np.ndarray) -> np.ndarray:
    """Where the bright spot is, from the centre, in pixels, x right and y down."""
    weight = photo[..., 0].astype(float) - 128
    weight[weight < 20] = 0
    y, x = np.mgrid[: len(photo), : len(photo)] + 0.5 - len(photo) / 2
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def test_rotate_then_translate_then_scale() -> None:
    photo = np.full((64, 64, 3), 128, np.uint8)
    photo[30:34, 46:50] = 255  # 16 pixels right of the centre
    assert np.abs(moved(photo, 0, (0, 0), 1).astype(int) - photo).max() <= 1
    assert spot(moved(photo, 90, (0, 0), 1)) == pytest.approx([0, 16], abs=0.2)  # clockwise as seen
    assert spot(moved(photo, 0, (0.125, -0.25), 1)) == pytest.approx([24, -16], abs=0.2)
    assert spot(moved(photo, 0, (0, 0), 0.5)) == pytest.approx([8, 0], abs=0.3)
    # R first, then t, then s: 0.5 * (R (16, 0) + (16, 0)); any other order ends elsewhere
    assert spot(moved(photo, 90, (0.25, 0), 0.5)) == pytest.approx([8, 8], abs=0.3)


def test_warp_fills_with_grey_and_letterboxes_like_exact() -> None:
    photo = np.zeros((64, 32, 3), np.uint8)
    transform = Transform(64, "letterbox", augment=Augment(rotate=1e-9))
    out = np.empty((64, 64, 3), np.uint8)
    transform.random(photo, transform.region(None, (32, 64)), np.random.default_rng(0), out)
    assert np.abs(out.astype(int) - shown(transform, photo)).mean() < 1
    assert (moved(np.zeros((32, 32, 3), np.uint8), 0, (0.5, 0), 1)[:, :15] == 128).all()


def test_flip_mirrors_in_both_ways_of_reading() -> None:
    photo = pixels(9, (64, 64))
    for strength in (0.0, 1e-9):
        out = np.empty((64, 64, 3), np.uint8)
        transform = Transform(64, "squash", augment=Augment(flip=1, rotate=strength))
        transform.random(photo, transform.region(None, (64, 64)), np.random.default_rng(0), out)
        assert np.abs(out.astype(int) - photo[:, ::-1]).max() <= 1


def test_no_augmentation_is_exact_and_a_large_photo_does_not_alias() -> None:
    photo = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)  # 1-pixel chessboard
    for strength in (0.0, 1e-9):
        transform = Transform(32, "squash", augment=Augment(rotate=strength))
        out = np.empty((32, 32, 3), np.uint8)
        transform.random(photo, transform.region(None, (256, 256)), np.random.default_rng(0), out)
        assert np.abs(out[1:-1, 1:-1].astype(int) - 128).max() < 8
        assert strength or (out == shown(transform, photo)).all()


def test_random_crop_stays_inside_and_keeps_its_area() -> None:
    whole = Transform(32, "squash").region((10, 10, 90, 40), (100, 50))
    areas = []
    for seed in range(300):
        part = window(whole, 0.2, (80, 30), 32, np.random.default_rng(seed))
        assert whole.left <= part.left < part.right <= whole.right + 1e-9
        assert whole.top <= part.top < part.bottom <= whole.bottom + 1e-9
        wide, high = (part.right - part.left) * 100, (part.bottom - part.top) * 50
        assert 0.74 < wide / high < 1.34 or (wide, high) == pytest.approx((80, 30))
        areas.append(wide * high / (80 * 30))
    assert min(areas) > 0.199
    assert max(areas) > 0.4


@pytest.mark.parametrize("name", ["noise", "exposure", "contrast"])
def test_colour_changes_are_off_by_default_and_stay_8_bit(name: str) -> None:
    photo, out = pixels(4, (32, 32)), np.empty((32, 32, 3), np.uint8)
    for strength in (0.0, 0.3):
        transform = Transform(32, "squash", augment=Augment.of({name: strength}))
        changes = []
        for seed in range(5):
            transform.random(photo, transform.region(None, (32, 32)), np.random.default_rng(seed), out)
            changes.append(np.abs(out.astype(int) - photo).mean())
        assert not any(changes) if not strength else 2 < max(changes) < 100


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rotat": 3}, "no setting 'rotat'"), ({"flip": 2}, "augment.flip=2"), ({"area": 0}, "augment.area=0"),
     ({"noise": "much"}, "augment.noise='much'"), ({"flip": True}, "augment.flip=True")],
)  # fmt: skip
def test_settings_of_augment(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augment.of(settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((4, "squash"), "image_size=4"), ((32, "stretch"), "fit='stretch'"), ((32, "crop", -1), "margin=-1")],
)
def test_settings_of_transform(arguments: tuple[int, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Transform(*arguments)
