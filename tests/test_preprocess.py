"""Preprocessing of synthetic and real photographs: bad files, pixel types, field of view, resizing."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idrid_jax.data.preprocess import CROPS, decode, field_of_view, preprocess
from idrid_jax.errors import UserError


def encode(image, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def retina(height, width, centre, radius, level=150, background=2):
    """A bright disc on noisy black."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x + 0.5 - centre[0], y + 0.5 - centre[1]) <= radius
    image = rng.integers(0, background + 1, (height, width, 3))
    shading = level * (1 - 0.3 * np.abs(x - centre[0]) / radius)
    image[inside] = (shading[..., None] * [1.0, 0.5, 0.2])[inside]
    return image.clip(0, 255).astype(np.uint8)


def near(box, expected, tolerance):
    assert np.abs(np.subtract(box, expected)).max() <= tolerance, (box, expected)


def test_sixteen_bits_are_scaled_by_their_full_range():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode(encode(values), "x")[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(encode(values, "TIFF"), "x")[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_grey_palette_cmyk_and_alpha():
    grey = np.array([[0, 100, 255]], np.uint8)
    assert decode(encode(grey), "x")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
    palette = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).quantize(2)
    assert palette.mode == "P" and decode(encode(palette), "x")[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    transparent = np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8)
    assert decode(encode(transparent), "x")[0].tolist() == [[200, 100, 50], [0, 0, 0]]  # over black
    cmyk = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decode(encode(cmyk, "JPEG"), "x").min() >= 250


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(np.zeros((4, 6, 3), np.uint8), "JPEG", exif=exif), "x").shape == (4, 6, 3)


def bomb(side) -> bytes:
    """A small PNG whose header claims side x side pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "not a JPEG"),
        (b"GIF89a" + bytes(50), "not a JPEG"),
        (b"Image name,Retinopathy grade", "not a JPEG"),
        (encode(retina(90, 60, (30, 45), 25), "JPEG")[:-400], "truncated"),
        (encode(retina(90, 60, (30, 45), 25), "PNG")[:2000], "truncated"),
        (bomb(20_000), "decompression bomb"),  # Pillow refuses it itself
        (bomb(10_000), "decompression bomb"),  # Pillow would only warn
        (encode(np.ones((4, 4), np.float32), "TIFF"), "float"),
        (encode(np.full((4, 4), 1 << 20, np.int32), "TIFF"), "8 or 16 bits"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused(data, says):
    for min_side in (None, 8):
        with pytest.raises(UserError) as error:
            decode(data, "train/IDRiD_007.jpg", min_side)
        assert str(error.value).startswith("train/IDRiD_007.jpg: ") and says in str(error.value)


def test_reduced_decoding_has_at_least_the_requested_side():
    data = encode(retina(356, 536, (240, 178), 200), "JPEG", quality=95)
    full = decode(data, "x")
    for min_side in (1, 44, 45, 89, 90, 178, 179, 400):
        image = decode(data, "x", min_side)
        assert min(image.shape[:2]) >= min(min_side, 356)
        assert round(full.shape[0] / image.shape[0]) in (1, 2, 4, 8)
    assert decode(data, "x", 44).shape == (45, 67, 3)


@pytest.mark.parametrize(
    "height, width, centre, radius",
    [
        (178, 268, (140, 90), 80),  # whole disc
        (178, 268, (110, 85), 105),  # off centre, cut at top and bottom, as IDRiD's
        (268, 178, (60, 120), 90),  # cut at the left
        (60, 90, (40, 30), 28),
    ],
)
@pytest.mark.parametrize("level", [255, 150, 12])
def test_field_of_view(height, width, centre, radius, level):
    expected = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    expected = np.clip(expected, 0, [width, height, width, height])
    image = retina(height, width, centre, radius, level, background=0 if level < 50 else 5)
    near(field_of_view(image), expected, 2)
    near(field_of_view(image.max(axis=2)), expected, 2)


def test_specks_text_and_a_reflex_do_not_change_the_field_of_view():
    image = retina(356, 536, (230, 178), 205)
    before = field_of_view(image)
    rng = np.random.default_rng(1)
    for y, x in zip(rng.integers(0, 356, 60), rng.integers(450, 534, 60)):
        image[y : y + 2, x : x + 2] = 255
    image[20:32, 470:530] = 255  # a label
    image[330:334, 2:20] = 255
    image[100:180, 200:260] = 255  # a bright reflex on the retina
    near(field_of_view(image), before, 1)


def test_field_of_view_at_full_size():
    image = retina(712, 1072, (495, 356), 426.5).repeat(4, axis=0).repeat(4, axis=1)
    near(field_of_view(image), (274, 0, 3686, 2848), 9)


def test_a_frame_without_black_is_used_whole():
    rng = np.random.default_rng(0)
    assert field_of_view(rng.integers(90, 160, (50, 70, 3)).astype(np.uint8)) == (0, 0, 70, 50)
    assert field_of_view(np.zeros((50, 70, 3), np.uint8)) == (0, 0, 70, 50)
    assert field_of_view(np.full((1, 1, 3), 9, np.uint8)) == (0, 0, 1, 1)


def test_the_square_crop_is_centered_in_the_retina_and_preserves_its_aspect():
    image = retina(356, 536, (230, 178), 205)
    image[138:218, 190:270] = 255  # a white square in the middle of the field
    crop = preprocess(encode(image), "x", size=178, channels=3, crop="field_of_view")  # half of 356
    white = crop.min(axis=2) > 128
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    for edges in (rows, columns):
        assert abs(edges[0] - 69) <= 1 and abs(edges[-1] - 108) <= 1
    lit = crop[..., 0] > 40
    assert lit[89, [0, -1]].all() and lit[[0, -1], 89].all() and not lit[[0, 0, -1, -1], [0, -1, 0, -1]].any()


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 33, 128])
def test_any_size_and_number_of_channels(crop, channels, size):
    image = preprocess(encode(retina(60, 90, (40, 30), 28)), "x", size=size, channels=channels, crop=crop)
    assert image.shape == (size, size, channels) and image.dtype == np.uint8


def test_letterbox_preserves_frame_and_aspect():
    image = preprocess(encode(np.full((60, 90, 3), 200, np.uint8)), "x", size=30, channels=3, crop="letterbox")
    lit = image[..., 0] > 100
    assert lit.sum(0).tolist() == [20] * 30 and lit[5:25].all()


def test_grey_is_bt601_luma():
    rgb = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    grey = preprocess(encode(rgb), "x", size=9, channels=1, crop="letterbox")[..., 0]
    assert np.abs(grey - rgb @ [0.299, 0.587, 0.114]).max() <= 1


def test_the_resize_is_antialiased():
    checks = np.indices((128, 128)).sum(0) % 2 * 255
    image = preprocess(encode(checks.astype(np.uint8)), "x", size=16, channels=1, crop="letterbox")
    assert np.abs(image.astype(int) - 127.5).max() <= 2  # any filter that skips pixels gives 0 or 255 here


@pytest.mark.parametrize("option", [{"size": 0}, {"channels": 4}, {"crop": "squash"}])
def test_unknown_options_are_refused(option):
    with pytest.raises(UserError, match=str(next(iter(option)))):
        preprocess(b"", "x", **{"size": 28, "channels": 3, "crop": "letterbox", **option})


def real(variable, pattern="B. Disease Grading/1. Original Images/*/*.jpg"):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return sorted(Path(os.environ[variable]).glob(pattern))


@pytest.mark.real_data
def test_real_photographs_at_full_size():
    """Boxes are IDRiD's (columns 274 to 3687 in the median), and reduced decoding is close to full decoding."""
    for path in real("IDRID_SAMPLE_DIR")[::8]:
        data = path.read_bytes()
        full = decode(data, path.name)
        near(field_of_view(full), (274, 0, 3687, 2848), 40)
        for size in (28, 128, 256):
            options = {"size": size, "channels": 3, "crop": "field_of_view"}
            reduced = preprocess(data, path.name, **options).astype(int)
            lossless = preprocess(encode(full, compress_level=0), path.name, **options)
            difference = np.abs(reduced - lossless)
            assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 20, (path.name, size)


@pytest.mark.real_data
def test_boxes_of_real_photographs_agree():
    boxes = []
    for path in real("IDRID_DIR")[::25]:
        image = decode(path.read_bytes(), path.name, min_side=300)
        boxes.append(np.divide(field_of_view(image), image.shape[1]))
    near(boxes, np.broadcast_to([274 / 4288, 0, 3687 / 4288, 2848 / 4288], (len(boxes), 4)), 0.01)
