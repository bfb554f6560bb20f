"""Logging: event files against TensorFlow's reader, checksums against their definition, a full disk, and resume."""

import io
import random
import resource

import numpy as np
import pytest
from PIL import Image

from idrid_jax.tensorboard import EventFile, crc32c
from idrid_jax.training.logging import Log, NullLog, read_stats

ROWS = [dict.fromkeys(("loss_d", "loss_g", "d_real", "d_fake_before", "d_fake_after"), 0.5)]


def open_log(folder, step):
    return Log(folder, total_images=800, first_step=step, batch_size=8, epoch_images=80, console="bar")


def read_events(path):
    tensorflow = pytest.importorskip("tensorflow")
    from idrid_jax.data.tensorflow import import_tensorflow

    import_tensorflow()
    return list(tensorflow.compat.v1.train.summary_iterator(str(path)))


def crc_by_bits(data: bytes) -> int:
    """The definition in RFC 3720, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [0, 1, 255, 4096, 4097, 4352, 4353, 20000])  # lanes are used above 4096
def test_crc_is_that_of_its_definition(length):
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == crc_by_bits(data)
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_tensorflow_reads_the_events(tmp_path):
    """Scalars, a negative and a large one, a grey and an RGB image, and the purge step; with checksums."""
    events = EventFile(tmp_path / "tensorboard", 384)
    events.scalar("loss_d", -1.25, 512)
    events.scalar("images_per_s", 1e12, 2**40)
    images = [
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 130, *channels), np.uint8))
        for channels in ((), (3,))
    ]
    for image in images:
        image.save(file := io.BytesIO(), "PNG")
        events.image("fakes", file.getvalue(), image.size, len(image.getbands()), 640)
    events.flush()  # not closed: what a killed process leaves
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    version, start, *rest = read_events(path)
    events.close()
    assert version.file_version == "brain.Event:2" and version.wall_time > 1.7e9
    assert start.step == 384 and start.session_log.status == start.session_log.START
    (d, rate), found = rest[:2], rest[2:]
    assert (d.step, d.summary.value[0].tag, d.summary.value[0].simple_value) == (512, "loss_d", -1.25)
    assert (rate.step, rate.summary.value[0].simple_value) == (2**40, np.float32(1e12))
    for event, image in zip(found, images, strict=True):
        value = event.summary.value[0].image
        assert (event.step, value.width, value.height) == (640, 130, 150)
        assert value.colorspace == len(image.getbands())
        assert Image.open(io.BytesIO(value.encoded_image_string)).tobytes() == image.tobytes()


def test_a_full_disk_is_an_error_and_hangs_nothing(tmp_path):
    """The system refuses files above 4 KiB: an OSError at the step, and every row until then can be read."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = 0
    try:
        with pytest.raises(OSError), open_log(tmp_path, 0) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            for step in range(1, 200):
                log.scalars(step, ROWS, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 5 < step < 199 and [row["step"] for row in read_stats(tmp_path)] in (
        [*range(1, step + 1)],
        [*range(1, step)],
    )
    with open_log(tmp_path, step - 1) as log:  # and resumes
        log.scalars(step, ROWS, 1.0)
    assert [row["step"] for row in read_stats(tmp_path)] == [*range(1, step + 1)]


def test_a_resumed_run_removes_later_steps(tmp_path):
    """TensorBoard and stats.jsonl keep everything up to the checkpoint's step, and nothing in a fresh run."""

    def visible():
        """(step, tag) after TensorBoard's `_Purge`, which keeps what lies before a SessionLog.START."""
        found = []
        for path in sorted((tmp_path / "tensorboard").glob("events.out.tfevents.*")):
            for event in read_events(path):
                if event.HasField("session_log"):
                    found = [one for one in found if one[0] < event.step]
                found += [(event.step, value.tag) for value in event.summary.value]
        return found

    def scalars():
        rows = [row["step"] * 8 for row in read_stats(tmp_path)]
        assert rows == [step for step, tag in visible() if tag == "loss_d"]
        return rows

    def grids():
        return [one for one in visible() if one[1] in ("reals", "fakes")]

    image = Image.new("RGB", (4, 4))
    with open_log(tmp_path, 0) as log:
        log.image("reals", image, 0)
        log.image("fakes_0", image, 0)
        for step in (2, 4, 6):
            log.image(f"fakes_{step}", image, step)
            log.scalars(step, ROWS, 1.0)
    assert scalars() == [16, 32, 48]
    first = [(0, "reals"), (0, "fakes")]
    with open_log(tmp_path, 4):
        pass
    assert scalars() == [16, 32] and grids() == [*first, (16, "fakes"), (32, "fakes")]
    with open_log(tmp_path, 4) as log:
        log.scalars(5, ROWS, 1.0)
    assert scalars() == [16, 32, 40] and grids() == [*first, (16, "fakes"), (32, "fakes")]
    with open_log(tmp_path, 0):
        pass
    assert visible() == []


def test_other_processes_log_nothing(tmp_path, capsys):
    with NullLog() as log:
        log.image("reals", Image.new("RGB", (4, 4)), 0)
        log.scalars(1, ROWS, log.read_clock(1))
        log.message("text")
    assert capsys.readouterr() == ("", "")
