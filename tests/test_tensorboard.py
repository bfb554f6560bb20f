"""Event files: checksums against their definition, and all of a file against TensorFlow's own reader."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from idrid_jax.training.logging import Log, read_stats
from idrid_jax.training.tensorboard import Events, crc32c


def by_bits(data: bytes) -> int:
    """RFC 3720's definition, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc_of_the_rfc():
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, appendix B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E and crc32c(b"") == 0


@pytest.mark.parametrize("length", [1, 255, 4096, 4097, 4352, 4353, 20000])  # lanes begin above 4096
def test_crc_by_lanes_is_that_by_bits(length):
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == by_bits(data)


def test_tensorflow_reads_what_was_written(tmp_path):
    """Scalars, a negative and a large one, a picture in each mode, and the purge; with checksums."""
    tensorflow = pytest.importorskip("tensorflow")
    from idrid_jax.data.tensorflow import import_tensorflow

    import_tensorflow()
    events = Events(tmp_path / "tensorboard", 384)
    events.scalar("loss_d", -1.25, 512)
    events.scalar("images_per_s", 1e12, 2**40)
    pictures = [
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 130, *channels), np.uint8))
        for channels in ((), (3,))
    ]
    for picture in pictures:
        picture.save(file := io.BytesIO(), "PNG")
        events.picture("fakes", file.getvalue(), picture.size, len(picture.getbands()), 640)
    events.flush()  # before it is closed
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    version, start, *rest = tensorflow.compat.v1.train.summary_iterator(str(path))
    events.close()
    assert version.file_version == "brain.Event:2" and version.wall_time > 1.7e9
    assert start.step == 384 and start.session_log.status == start.session_log.START
    (d, rate), images = rest[:2], rest[2:]
    assert (d.step, d.summary.value[0].tag, d.summary.value[0].simple_value) == (512, "loss_d", -1.25)
    assert (rate.step, rate.summary.value[0].simple_value) == (2**40, np.float32(1e12))
    for event, picture in zip(images, pictures, strict=True):
        image = event.summary.value[0].image
        assert (event.step, image.width, image.height) == (640, 130, 150)
        assert image.colorspace == len(picture.getbands())
        assert Image.open(io.BytesIO(image.encoded_image_string)).tobytes() == picture.tobytes()


def test_tensorboard_and_stats_forget_the_same(tmp_path):
    """Whoever resumes at a snapshot, or goes back to it, keeps what it showed; a fresh run keeps nothing."""
    tensorflow = pytest.importorskip("tensorflow")
    from idrid_jax.data.tensorflow import import_tensorflow

    import_tensorflow()

    def shown():
        """(step, tag) after TensorBoard's `_Purge`, which keeps what lies before a SessionLog.START."""
        found = []
        for path in sorted((tmp_path / "tensorboard").glob("events.out.tfevents.*")):
            for event in tensorflow.compat.v1.train.summary_iterator(str(path)):
                if event.HasField("session_log"):
                    found = [one for one in found if one[0] < event.step]
                found += [(event.step, value.tag) for value in event.summary.value]
        return found

    def scalars():
        rows = [row["step"] * 8 for row in read_stats(tmp_path)]
        assert rows == [step for step, tag in shown() if tag == "loss_d"]
        return rows

    def grids():
        return [one for one in shown() if one[1] in ("reals", "fakes")]

    def started(step):
        return Log(tmp_path, total_images=800, first_step=step, batch_size=8, epoch_images=80, console="bar")

    rows = [dict.fromkeys(("loss_d", "loss_g", "d_real", "d_fake_before", "d_fake_after"), 0.5)]
    picture = Image.new("RGB", (4, 4))
    begun = [(0, "reals"), (0, "fakes")]
    with started(0) as log:
        log.image("reals", picture, 0)
        log.image("fakes_0", picture, 0)
        for step in (2, 4, 6):
            log.image(f"fakes_{step}", picture, step)
            log.scalars(step, rows, 1.0)
    assert scalars() == [16, 32, 48]
    with started(4):
        pass
    assert scalars() == [16, 32] and grids() == [*begun, (16, "fakes"), (32, "fakes")]
    with started(4) as log:
        log.scalars(6, rows, 1.0)
        log.go_back(4)
        log.scalars(5, rows, 1.0)
    assert scalars() == [16, 32, 40] and grids() == [*begun, (16, "fakes"), (32, "fakes")]
    with started(5) as log:
        log.go_back(0)  # nobody draws the first grids anew
    assert scalars() == [] and grids() == begun
    with started(0):
        pass
    assert shown() == []
