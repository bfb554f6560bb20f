"""TensorBoard event files with scalars and images.

tensorboardX 2.6.5 fails `test_a_full_disk_is_an_error_and_hangs_nothing`: its writing thread dies of the error, and the
eleventh event then waits for ever. clu, Flax and tf.summary import TensorFlow at every start, which takes seconds.
Formats: tensorflow/core/lib/io/record_writer.h, util/event.proto and framework/summary.proto.
"""

import os
import socket
import struct
import time
from pathlib import Path

import numpy as np

LANE = 256  # bytes; the lanes of a long record are checksummed in parallel


class EventFile:
    """One event file, buffered until `flush`. The calling thread writes, so that a failing disk is an OSError there."""

    def __init__(self, folder: Path, purge_step: int):
        """Create the file. TensorBoard ignores events of `purge_step` and later in earlier files of `folder`."""
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=1 << 20)
        self._write(0, _field(3, b"brain.Event:2"))
        self._write(purge_step, _field(7, _field(1, 1)))  # SessionLog.START

    def scalar(self, name: str, value: float, step: int) -> None:
        self._summary(name, _field(2, float(value)), step)

    def image(self, name: str, png: bytes, size: tuple[int, int], channels: int, step: int) -> None:
        """Add a PNG file of `size` (width, height) with 1 (grey) or 3 (RGB) channels."""
        width, height = size
        content = _field(1, height) + _field(2, width) + _field(3, channels) + _field(4, png)
        self._summary(name, _field(4, content), step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _summary(self, name, value, step):
        self._write(step, _field(5, _field(1, _field(1, name.encode()) + value)))

    def _write(self, step, content):
        event = b"\x09" + struct.pack("<d", time.time()) + _field(2, step) + content  # field 1, a double: wall_time
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _field(number: int, value: int | float | bytes) -> bytes:
    """Encode a protocol buffer field: a varint, a 32-bit float, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the CRC-32 of Castagnoli's polynomial: RFC 3720, appendix B.4.

    Long data are cut into lanes whose registers advance together in NumPy and are then combined: a loop over the bytes
    of a large image grid would take a second.
    """
    crc, num_lanes = 0xFFFFFFFF, len(data) // LANE if len(data) > 16 * LANE else 0
    lanes = np.frombuffer(data[: num_lanes * LANE], np.uint8).reshape(-1, LANE)
    for lane in _advance(np.zeros(num_lanes, np.uint32), lanes.T).tolist():
        crc = lane ^ SKIP[0][crc & 255] ^ SKIP[1][crc >> 8 & 255] ^ SKIP[2][crc >> 16 & 255] ^ SKIP[3][crc >> 24]
    for byte in data[num_lanes * LANE :]:
        crc = BYTES[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _advance(crc: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return registers, uint32 [n], after the bytes of `columns`, uint8 [bytes, n]."""
    for column in columns:
        crc = TABLE[(crc ^ column) & 255] ^ crc >> 8
    return crc


def _eight_bits(crc: np.ndarray) -> np.ndarray:
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(0x82F63B78), crc >> 1)
    return crc


TABLE = _eight_bits(np.arange(256, dtype=np.uint32))
BYTES = TABLE.tolist()
# A register after LANE zero bytes, by each of its four bytes: the register is linear in its bits
SKIP = [
    _advance(np.arange(256, dtype=np.uint32) << 8 * byte, np.zeros((LANE, 256), np.uint8)).tolist() for byte in range(4)
]
