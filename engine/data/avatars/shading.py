"""Light: soft shadows and occlusion from the depth picture, and how skin and hair are lit in each look."""

from __future__ import annotations

import numpy as np

from engine.data.avatars.film import blur, double
from engine.data.avatars.identity import Scene


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def occlusion_and_shadow(
    depth: np.ndarray, known: np.ndarray, scene: Scene, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ambient occlusion and key-light shadow (S, S), 0 dark to 1 open, from a depth picture.

    depth: (S, S) z in view space, millimetres.
    known: (S, S) bool, where a surface is.
    scale: raster pixels per millimetre.
    Computed at half resolution, by marching over the depth picture towards the light.
    """
    z, k = depth[::2, ::2], known[::2, ::2].astype(np.float32)
    scale = scale / 2
    occlusion = np.ones_like(z)
    for radius, weight in ((5.0, 0.055), (13.0, 0.020)):
        share = blur(k, radius * scale)
        mean = blur(z * k, radius * scale) / np.maximum(share, 1e-3)
        occlusion *= np.exp(-weight * np.clip(mean - z, 0, 30))
    shadow = np.zeros_like(z)
    lx, ly, lz = scene.key
    rough = np.where(k > 0, z, -1e4)
    n = z.shape[0]
    pad = int(70 * scale) + 3
    padded = np.pad(rough, pad, constant_values=-1e4)
    for reach in (3.0, 5.0, 8.0, 12.0, 17.0, 23.0, 31.0, 42.0, 56.0, 70.0):
        dx, dy = round(reach * lx * scale), round(-reach * ly * scale)
        over = padded[pad + dy : pad + dy + n, pad + dx : pad + dx + n] - (z + lz * reach)
        bias = 1.2 + 0.06 * reach
        hit = np.clip((over - bias) / (1.5 + 0.10 * reach), 0, 1) * np.clip((60 - over) / 20, 0, 1)
        shadow = np.maximum(shadow, hit)
    light = 1 - blur(shadow, (1.2 + 2.6 * scene.softness) * scale)
    return double(occlusion), double(light)


def lambert(normal: np.ndarray, albedo: np.ndarray, scene: Scene) -> np.ndarray:
    """The game look's light (P, 3): one lamp, one flat ambient, no shadows."""
    lit = np.clip(normal @ scene.key, 0, 1)[:, None]
    return albedo * (scene.key_colour * scene.key_strength * 0.95 * lit + 0.9 * scene.sky.mean() + 0.08)


def skin_light(
    normal: np.ndarray,
    albedo: np.ndarray,
    gloss: np.ndarray,
    skin: np.ndarray,
    occlusion: np.ndarray,
    shadow: np.ndarray,
    scene: Scene,
    melanin: float,
) -> np.ndarray:
    """The photo look's light (P, 3): light bleeding through skin, warm shadow edges, sky, ground, highlights, rim."""
    key = scene.key
    ndl = normal @ key
    scatter = skin[:, None] * _rgb(0.34, 0.16, 0.11) * (1 - 0.4 * melanin)
    lit = np.clip((ndl[:, None] + scatter) / (1 + scatter), 0, 1)
    soft = np.clip(shadow, 0, 1)[:, None] ** (1 - skin[:, None] * _rgb(0.35, 0.08, 0.0))
    up = 0.5 + 0.5 * normal[:, 1:2]
    open_ = occlusion[:, None] ** (1 - skin[:, None] * _rgb(0.30, 0.05, 0.0))
    ambient = (scene.ground + up * (scene.sky - scene.ground)) * open_
    ambient = ambient * (0.78 + 0.30 * np.clip(normal[:, 2:3], 0, 1))
    out = albedo * (scene.key_colour * scene.key_strength * lit * soft * (0.65 + 0.35 * open_) + ambient)
    half = key + _rgb(0, 0, 1)
    half /= np.linalg.norm(half)
    ndh = np.clip(normal @ half, 0, 1)
    facing = np.clip(1 - normal[:, 2], 0, 1)
    fresnel = 0.35 + 0.65 * facing**3
    shine = gloss * (0.16 * ndh**14 + 0.20 * ndh**60) * fresnel * shadow * np.clip(ndl * 4, 0, 1) * scene.key_strength
    rim = facing**2.5 * (0.4 + 0.6 * np.abs(normal[:, 0])) * occlusion * 0.35
    return out + shine[:, None] * scene.key_colour + rim[:, None] * scene.rim * (0.2 + albedo)


def hair_light(
    normal: np.ndarray,
    tangent: np.ndarray,
    albedo: np.ndarray,
    fine: np.ndarray,
    broad: np.ndarray,
    occlusion: np.ndarray,
    shadow: np.ndarray,
    scene: Scene,
    shine: float,
) -> np.ndarray:
    """The photo look's hair (P, 3): wrapped diffuse and two highlights along the strands."""
    key = scene.key
    back = normal[:, 2] < -0.25
    normal = np.where(back[:, None], -normal, normal)
    ndl = np.clip((normal @ key + 0.25) / 1.25, 0, 1)
    half = key + _rgb(0, 0, 1)
    half /= np.linalg.norm(half)
    lean = tangent @ half + 0.05 * fine + 0.06 * broad
    white = np.clip(1 - (lean - 0.06) ** 2, 0, 1) ** 40
    tinted = np.clip(1 - (lean + 0.18) ** 2, 0, 1) ** 14
    up = 0.5 + 0.5 * normal[:, 1:2]
    ambient = (scene.ground + up * (scene.sky - scene.ground)) * occlusion[:, None]
    # light hair scatters: its strands shade each other less
    contrast = 1 - 0.78 * min(float(albedo.max(initial=0)) / 0.4, 1.0)
    depth = np.exp(contrast * (0.26 * fine + 0.28 * broad))[:, None] * np.where(back, 0.45, 1.0)[:, None]
    out = (
        albedo
        * depth
        * (scene.key_colour * scene.key_strength * (ndl * (0.25 + 0.75 * shadow))[:, None] * 0.95 + ambient)
    )
    spark = (np.clip(1 + 0.6 * fine, 0, 2) * ndl * shadow * scene.key_strength * np.where(back, 0, 1) * shine)[:, None]
    out += spark * (0.035 * white[:, None] * scene.key_colour + 0.55 * tinted[:, None] * albedo)
    edge = np.clip(1 - normal[:, 2], 0, 1) ** 2
    return out + (edge * 0.45)[:, None] * scene.rim * (0.08 + albedo)
