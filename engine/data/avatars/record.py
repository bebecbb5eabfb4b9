"""What a rendering process tells the one that started it: a frame that is written, or why it cannot go on."""

import numpy as np

LENGTH = 4 + 68 * 2 * 4  # bytes


def pack(row: int, marks: np.ndarray) -> bytes:
    """The row of a frame in the manifest as int32, then its landmarks (68, 2) as float32."""
    return row.to_bytes(4, "little", signed=True) + marks.astype("<f4").tobytes()


def failure(number: int) -> bytes:
    """The record of a process that the system's error `number` has ended: its negative stands for the row."""
    return pack(-number, np.zeros((68, 2)))


def unpack(packed: bytes) -> tuple[int, np.ndarray]:
    """The row, or the negative number of an error, and the landmarks (68, 2) float32."""
    return int.from_bytes(packed[:4], "little", signed=True), np.frombuffer(packed[4:], "<f4").reshape(68, 2)
