"""Picture operations: blur, backgrounds, and what a real camera adds to the photo look."""

from __future__ import annotations

import numpy as np
from PIL import Image

from engine.data.avatars.identity import Scene


def blur(a: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W) or (H, W, C) float32, sigma in pixels; edges repeat. Wide blurs run on a shrunk copy."""
    if sigma < 0.15:
        return a
    h, w = a.shape[:2]
    if sigma > 3.2 and h % 2 == 0 and w % 2 == 0 and min(h, w) >= 16:
        half = 0.25 * (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2])
        return double(blur(half, np.sqrt(sigma * sigma - 1.0) / 2))
    radius = max(int(np.ceil(2.4 * sigma)), 1)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    taps = (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * a.ndim
        pad[axis] = (radius, radius)
        p = np.pad(a, pad, mode="edge")
        n = a.shape[axis]

        def cut(start: int, p=p, n=n, axis=axis) -> np.ndarray:
            return p[start : start + n] if axis == 0 else p[:, start : start + n]

        a = taps[0] * cut(radius)
        for k in range(1, radius + 1):
            a += taps[k] * (cut(radius - k) + cut(radius + k))
    return a


def double(a: np.ndarray) -> np.ndarray:
    """(H, W, ...) -> (2 H, 2 W, ...), by linear interpolation between pixel centres."""
    for axis in (0, 1):
        b = np.moveaxis(a, axis, 0)
        before, after = np.concatenate([b[:1], b[:-1]]), np.concatenate([b[1:], b[-1:]])
        out = np.empty((2 * len(b), *b.shape[1:]), a.dtype)
        out[::2], out[1::2] = 0.75 * b + 0.25 * before, 0.75 * b + 0.25 * after
        a = np.moveaxis(out, 0, axis)
    return a


def photo_background(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    """An out-of-focus background (size, size, 3) linear float32: soft colours, sometimes discs of light."""
    small = 24
    coarse = rng.random((5, 5, 2)).astype(np.float32)
    mix = np.stack(
        [np.asarray(Image.fromarray(coarse[..., i]).resize((small, small), Image.BICUBIC)) for i in range(2)], -1
    )
    y = np.linspace(1, 0, small)[:, None, None]
    b = scene.background
    image = (
        b[0] + mix[..., :1] * 0.55 * (b[1] - b[0]) + (mix[..., 1:] * 0.6 * (0.3 + 0.7 * (1 - y))) * (b[2] - b[0]) * 0.8
    )
    x = np.linspace(-1, 1, small)[None, :, None]
    image = image * (1.06 - 0.25 * (x * 0.8) ** 2 - 0.12 * (1 - y))
    planes = [
        np.asarray(Image.fromarray(image[..., i].astype(np.float32)).resize((size, size), Image.BICUBIC))
        for i in range(3)
    ]
    image = np.stack(planes, -1)
    if scene.bokeh > 0.35:
        v, u = np.mgrid[0:size:2, 0:size:2].astype(np.float32) / size
        extra = np.zeros(v.shape, np.float32)
        for _ in range(int(4 + 9 * scene.bokeh)):
            cx, cy, r, power = rng.random(), rng.random(), 0.03 + 0.07 * rng.random(), rng.random()
            extra += power * np.clip((r - np.hypot(u - cx, v - cy)) / 0.02 + 0.5, 0, 1)
        extra = blur(extra, 0.012 * size / 2)
        image += np.repeat(np.repeat(extra, 2, 0), 2, 1)[:size, :size, None] * 0.32 * b[3]
    return np.clip(image, 0.002, 1.5).astype(np.float32)


def game_background(scene: Scene, size: int) -> np.ndarray:
    """A plain vertical gradient (size, size, 3)."""
    t = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    top, bottom = scene.background[0], 0.35 * scene.background[0] + 0.25 * scene.background[2]
    return np.broadcast_to((top + t * (bottom - top)).astype(np.float32), (size, size, 3)).copy()


_CURVE = np.linspace(0, 1, 8193)
_ENCODE = np.where(_CURVE <= 0.0031308, 12.92 * _CURVE, 1.055 * np.maximum(_CURVE, 1e-9) ** (1 / 2.4) - 0.055).astype(
    np.float32
)


def encode(image: np.ndarray) -> np.ndarray:
    """Linear light, any shape -> sRGB in [0, 1], float32; clipped."""
    return _ENCODE[(np.clip(image, 0, 1) * 8192).astype(np.int32)]


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """(H, H) or (H, H, C) -> (H / factor, H / factor, C), the mean over blocks of factor x factor pixels."""
    n = image.shape[0] // factor
    blocks = image.reshape(n, factor, n, factor, -1)
    total = sum(blocks[:, i, :, j] for i in range(factor) for j in range(factor))
    return total / (factor * factor)


def expose(image: np.ndarray, gain: float) -> np.ndarray:
    """Exposure with the shoulder of film: straight in the shadows and mid-tones, while highlights roll off."""
    x = image * gain
    return np.where(x < 0.55, x, 0.55 + 0.45 * (1 - np.exp(-(x - 0.55) / 0.45)))


def finish_photo(image: np.ndarray, gain: float, scene: Scene, rng: np.random.Generator, factor: int) -> np.ndarray:
    """Linear raster -> uint8 photo: lens blur, vignette, white balance, shoulder, grain.

    image:  (size * factor, size * factor, 3) float32, linear light.
    returns: (size, size, 3) uint8.
    """
    size = image.shape[0] // factor
    image = shrink(blur(image, scene.blur * factor * size / 128), factor)
    c = np.linspace(-1, 1, size, dtype=np.float32)
    fall = 1 - scene.vignette * 0.5 * (c[:, None] ** 2 + c[None, :] ** 2)
    image = expose(image * fall[..., None], gain * scene.white_balance)
    grey = image @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    out = encode(grey[..., None] + 0.90 * (image - grey[..., None]))
    noise = rng.standard_normal((size, size, 4), dtype=np.float32)
    mono = blur(noise[..., 3], 0.45)
    out = out + scene.grain * (1.2 - 0.6 * out) * (mono[..., None] * 1.3 + 0.45 * noise[..., :3])
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)


def finish_game(image: np.ndarray, factor: int) -> np.ndarray:
    """Linear raster (size * factor, size * factor, 3) -> (size, size, 3) uint8 as games show it: clipped, no camera."""
    return (encode(shrink(image, factor)) * 255 + 0.5).astype(np.uint8)
