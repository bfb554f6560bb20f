"""TensorBoard's event files, as far as scalars and pictures need them.

Written here because the libraries that write them import TensorFlow or PyTorch where these are installed, which takes
seconds of every start. Formats: tensorflow/core/lib/io/record_writer.h, util/event.proto and framework/summary.proto.
"""

import os
import socket
import struct
import time
from pathlib import Path

import numpy as np

LANE = 256  # bytes of a record that are checked one after the other; its lanes go side by side


class Events:
    """One event file, written by the caller's own thread: what the disk refuses is an OSError there.

    Events are in a buffer until `flush` or `close`.
    """

    def __init__(self, folder: Path, purge_step: int):
        """What earlier event files in `folder` hold of `purge_step` and later is to be forgotten."""
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=1 << 20)
        self._write(0, _field(3, b"brain.Event:2"))
        self._write(purge_step, _field(7, _field(1, 1)))  # SessionLog.START

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(name, _field(2, float(value)), step)

    def picture(self, name: str, png: bytes, size: tuple[int, int], channels: int, step: int) -> None:
        """png: the picture's file, of `size` (width, height) and 1 (grey) or 3 (RGB) channels."""
        width, height = size
        self._add(name, _field(4, _field(1, height) + _field(2, width) + _field(3, channels) + _field(4, png)), step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, name, value, step):
        self._write(step, _field(5, _field(1, _field(1, name.encode()) + value)))

    def _write(self, step, what):
        event = b"\x09" + struct.pack("<d", time.time()) + _field(2, step) + what  # field 1, a double: wall_time
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _field(number: int, value: int | float | bytes) -> bytes:
    """A protocol buffer field: a varint, a float of 32 bits, or bytes with their length."""
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


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32 of Castagnoli's polynomial: RFC 3720, appendix B.4.

    The lanes of a long record are walked side by side: Python's own loop takes a second for a large grid of images.
    """
    crc, whole = 0xFFFFFFFF, len(data) // LANE * LANE if len(data) > 16 * LANE else 0
    lanes = np.frombuffer(data[:whole], np.uint8).reshape(-1, LANE)
    for lane in _walk(np.zeros(len(lanes), np.uint32), lanes.T).tolist() if whole else ():
        crc = lane ^ SKIP[0][crc & 255] ^ SKIP[1][crc >> 8 & 255] ^ SKIP[2][crc >> 16 & 255] ^ SKIP[3][crc >> 24]
    for byte in data[whole:]:
        crc = BYTES[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _walk(crc: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Registers uint32 [n] after so many bytes each, uint8 [bytes, n]."""
    for column in columns:
        crc = TABLE[(crc ^ column) & 255] ^ crc >> 8
    return crc


def _eight_bits(crc: np.ndarray) -> np.ndarray:
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(0x82F63B78), crc >> 1)
    return crc


TABLE = _eight_bits(np.arange(256, dtype=np.uint32))
BYTES = TABLE.tolist()
# What each byte of a register has become after LANE zeros: the register is linear in its bits.
_ZEROS = np.zeros((LANE, 256), np.uint8)
SKIP = [_walk(np.arange(256, dtype=np.uint32) << 8 * byte, _ZEROS).tolist() for byte in range(4)]
