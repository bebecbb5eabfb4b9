"""Noise textures that repeat without a seam: fixed tables that every avatar reads at an offset of its own."""

from __future__ import annotations

from functools import cache

import numpy as np

SIDE = 256


@cache
def texture(across: float, along: float, stream: int = 0) -> np.ndarray:
    """(256, 256) float32 periodic Gaussian noise, zero mean, unit variance.

    across, along: standard deviation of the blur in texels, of columns and rows.
    """
    white = np.random.Generator(np.random.Philox(np.random.SeedSequence([20171, stream]))).standard_normal((SIDE, SIDE))
    f = np.fft.fftfreq(SIDE)
    gain = np.exp(-2 * (np.pi * f[:, None] * along) ** 2) * np.exp(
        -2 * (np.pi * f[None, : SIDE // 2 + 1] * across) ** 2
    )
    out = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(SIDE, SIDE))
    out -= out.mean()
    return np.ascontiguousarray((out / out.std()).astype(np.float32))


def sample(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Look a texture up at column u and row v, bilinear and wrapping.

    u, v: in texels, any shape. returns: float32 of that shape.
    """
    fu, fv = np.floor(u), np.floor(v)
    i, j = fv.astype(np.int32) & (SIDE - 1), fu.astype(np.int32) & (SIDE - 1)
    du, dv = (u - fu).astype(np.float32), (v - fv).astype(np.float32)
    flat = table.reshape(-1)
    i1, j1 = ((i + 1) & (SIDE - 1)) * SIDE, (j + 1) & (SIDE - 1)
    i = i * SIDE
    top = flat[i + j] * (1 - du) + flat[i + j1] * du
    return top + dv * (flat[i1 + j] * (1 - du) + flat[i1 + j1] * du - top)


def nearest(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Look a texture up at column u and row v, wrapping, without interpolation: for noise finer than a pixel."""
    i, j = v.astype(np.int32) & (SIDE - 1), u.astype(np.int32) & (SIDE - 1)
    return table.reshape(-1)[i * SIDE + j]
