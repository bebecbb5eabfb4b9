"""What skin, beard and clothes are made of: their colour, gloss and fine relief at head coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars.contours import Features
from engine.data.avatars.geometry import beard_density
from engine.data.avatars.identity import Traits
from engine.data.avatars.noise import nearest, sample, texture
from engine.data.avatars.shapes import bump, step


def rgb(values: list[float]) -> np.ndarray:
    """The values as float32: a float64 constant would make whole pictures float64."""
    return np.array(values, np.float32)


@dataclass
class Material:
    """What each of a surface's P pixels is made of; painters write into it."""

    x: np.ndarray  # head coordinates (P,)
    y: np.ndarray
    z: np.ndarray
    normal: np.ndarray  # (P, 3) view space
    albedo: np.ndarray  # (P, 3) linear
    gloss: np.ndarray  # (P,) strength of the highlight
    skin: np.ndarray  # (P,) 1 where light scatters under the surface
    glow: np.ndarray  # (P, 3) added after lighting, for catchlights
    pixel: float  # millimetres per pixel
    detail: bool  # the photo look


def cover(m: Material, distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 1.

    distance: signed distance to the shape's edge in millimetres, positive inside. soft: width of the edge in pixels.
    """
    return np.clip(distance / (m.pixel * soft) + 0.5, 0, 1)


def blend(target: np.ndarray, index: np.ndarray, value, amount: np.ndarray) -> None:
    """Move `target` (P,) or (P, 3) at `index` (Q,) towards `value` by `amount` (Q,), 0 to 1, in place."""
    amount = amount[:, None] if target.ndim == 2 else amount
    here = target[index]
    target[index] = here + amount * (value - here)


def box(m: Material, x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    """Indices of the front's pixels within a rectangle of head coordinates."""
    return np.flatnonzero((m.x > x0) & (m.x < x1) & (m.y > y0) & (m.y < y1) & (m.z > 18))


def paint_skin(m: Material, traits: Traits, face: Features, rest_y: np.ndarray) -> None:
    """The colour and gloss of all skin; in the photo look with blood, mottling, pores, freckles and age.

    rest_y: (P,) height of each pixel with the mouth shut, so that patterns stay on the skin when the jaw drops.
    """
    m.albedo[:] = traits.skin
    m.skin[:] = 1.0
    m.gloss[:] = 0.25
    if not m.detail:
        return
    s, dark = traits.shape, traits.melanin
    ax, y, front = np.abs(m.x), rest_y, step(m.z, 5, 35)
    around = np.arctan2(m.x, m.z + 25) * 90
    ox, oy = traits.texture_offset
    mottle = sample(texture(5, 5, 20), around * 0.9 + ox, y * 0.9 + oy)
    blood = sample(texture(9, 9, 21), around * 0.9 + oy, y * 0.9 + ox)
    pores = nearest(texture(0.7, 0.7, 22), around * 2.1 + 512 + ox, y * 2.1 + 1024 + oy)
    # eyes lie in the shade of their sockets
    hollow = bump(ax, y, face.eyes[0].x, 4, 20, 11) * front
    red = (
        0.55 * bump(ax, y, 38, -30, 17, 14)
        + 0.55 * bump(ax, y, 0, s["nose_y"], 13, 9)
        + 0.20 * bump(ax, y, 0, -98, 14, 9)
    )
    red = red + 0.12 * bump(ax, y, 60, -5, 14, 30) + 0.10 * blood
    red = red * front * traits.ruddy + 0.75 * traits.makeup * bump(ax, y + 0.35 * ax, 46, -8, 15, 11) * front
    brown = 0.16 * bump(ax, y, face.eyes[0].x - 2, -12, 13, 5.5) + 0.20 * bump(ax, y, face.eyes[0].x - 12, 0, 7, 9)
    brown = brown + 0.12 * bump(ax, y, face.eyes[0].x, 8, 15, 5) + 0.09 * bump(ax, y, 0, s["mouth_y"] - 2, 33, 15)
    brown = (brown * (1 + 0.5 * s["old"]) + (0.055 + 0.03 * s["old"]) * mottle + 0.045 * pores) * (0.7 + 0.5 * dark)
    brown = brown + (0.10 + 0.16 * dark) * hollow - 0.10 * bump(ax, y, 0, 50, 40, 18) * front
    m.albedo *= np.exp(
        red[:, None] * (rgb([0.10, -0.34, -0.30]) * (1 - 0.45 * dark)) - brown[:, None] * rgb([0.75, 1.05, 1.15])
    )
    if traits.freckles:
        spot = nearest(texture(0.9, 0.9, 23), around * 1.15 + 512 + ox, y * 1.15 + 1024 + oy)
        amount = step(spot, 1.25, 1.7) * traits.freckles * (bump(ax, y, 26, -22, 34, 22) + 0.35) * front
        m.albedo *= 1 - amount[:, None] * rgb([0.28, 0.42, 0.50])
    if s["old"] > 0.3:
        spot = sample(texture(2.2, 2.2, 24), around * 0.9 + oy, y * 0.9 + ox)
        m.albedo *= 1 - 0.22 * (s["old"] * step(spot, 1.9, 2.5))[:, None] * rgb([0.8, 1.0, 1.1])
    oily = (
        0.25 * bump(ax, y, 0, 45, 30, 22)
        + 0.40 * bump(ax, y, 0, s["nose_y"], 9, 22)
        + 0.22 * bump(ax, y, 44, -22, 14, 10)
    )
    m.gloss[:] = 0.20 + oily + 0.05 * pores + 0.03 * mottle
    _wrinkle(m, traits, face, rest_y)


def _wrinkle(m: Material, traits: Traits, face: Features, y: np.ndarray) -> None:
    """Wrinkles as relief: across each line the normal tips up and down, and the skin is darker inside."""
    old, smile = traits.shape["old"], max(face.smile, 0)
    lift = max(face.brows[0].y - traits.shape["brow_y"], 0) / 4
    f = np.flatnonzero(m.z > 25)
    x, y = m.x[f], y[f]
    ax = np.abs(x)
    wave = 1.2 * np.sin(x / 13 + traits.hair_seed)
    depth, tilt = np.zeros(len(f), np.float32), np.zeros(len(f), np.float32)
    amount = 0.75 * np.clip(old - 0.1, 0, 1) + 0.5 * lift * np.clip((traits.age - 28) / 30, 0, 1)
    if amount > 0.05:
        for k, level in enumerate((36.0, 44.5, 53.0)):
            u = (y - level - wave - 0.0012 * ax * ax * (1 if k else 0.6)) / 1.5
            line = np.exp(-u * u) * step(-ax, -44, -26) * amount
            depth, tilt = depth + line, tilt + u * line
    crow = 0.8 * old + 0.6 * smile * np.clip((traits.age - 25) / 25, 0, 1)
    if crow > 0.08:
        ex = face.eyes[0].x + face.eyes[0].half_width
        for slope in (-0.62, -0.12, 0.38):
            u = (y - 0.5 - slope * (ax - ex)) / 1.1
            line = np.exp(-u * u) * step(ax, ex + 1.5, ex + 5) * step(-ax, -ex - 16, -ex - 8) * crow * 0.8
            depth, tilt = depth + line, tilt + u * line
    bag = 0.25 + 0.9 * old
    eye = face.eyes[0]
    u = (y + 11.5 - 0.010 * (ax - eye.x + 4) ** 2 - 0.5 * smile) / 1.5
    line = np.exp(-u * u) * step(-np.abs(ax - eye.x + 3), -14, -8) * bag * 0.6
    depth, tilt = depth + line, tilt + u * line
    m.albedo[f] *= np.exp(-depth[:, None] * rgb([0.30, 0.42, 0.44]))
    m.normal[f, 1] += 0.28 * tilt


def paint_beard(m: Material, traits: Traits, face: Features, rest_y: np.ndarray) -> None:
    """The beard: a shadow, stubble or full hair. rest_y: as for `paint_skin`."""
    if not traits.beard:
        return
    f = np.flatnonzero((m.z > 0) & (rest_y < -28) & (rest_y > -135))
    if not len(f):
        return
    x, y = m.x[f], m.y[f]
    amount = beard_density(traits, face, x, np.maximum(y, -112 - face.jaw_drop)) * step(m.z[f], 2, 22)
    amount *= step(y, -128 - face.jaw_drop, -110 - face.jaw_drop)
    around = np.arctan2(x, m.z[f] + 25) * 90
    colour = traits.hair_colour if traits.hair != "bald" else traits.brow_colour
    if traits.beard in ("shadow", "stubble"):
        strength = 0.22 if traits.beard == "shadow" else 0.50
        strength *= 0.6 + 0.6 * (1 - np.clip(traits.melanin * 1.3, 0, 1))
        if m.detail:
            dots = nearest(texture(0.6, 0.6, 27), around * 2.3 + 512, rest_y[f] * 2.3 + 1024)
            amount = amount * np.clip(1 + (0.2 if traits.beard == "shadow" else 0.3) * dots, 0, 2)
        blend(
            m.albedo,
            f,
            np.minimum(colour * 0.7, traits.skin * 0.45) + rgb([0.0, 0.004, 0.008]),
            np.clip(strength * amount, 0, 0.9),
        )
        return
    dense = 0.93
    if m.detail:
        hairs = sample(texture(0.8, 5.0, 28), around * 1.25 + 0.25 * y, rest_y[f] * 0.8)
        broad = sample(texture(3, 6, 29), around * 0.8, rest_y[f] * 0.6)
        amount = np.clip(step(amount + 0.13 * hairs * step(amount, 0.0, 0.3), 0.16, 0.75), 0, 1)
        colour = colour * np.exp(0.32 * hairs + 0.16 * broad)[:, None]
    blend(m.albedo, f, colour, dense * amount)
    blend(m.skin, f, 0.0, amount)
    blend(m.gloss, f, 0.12, amount)


def paint_clothes(m: Material, traits: Traits, torso: np.ndarray) -> None:
    """The garment: its collar line, shirt, or suit with tie. torso: indices of the torso's pixels."""
    x, y = m.x[torso], m.y[torso]
    ax, front = np.abs(x), m.z[torso] > -20
    round_line = -150 - 10 * np.clip(1 - (ax / 62) ** 2, -2, 1) * front
    if traits.garment == "scoop":
        round_line = -150 - 34 * np.clip(1 - (ax / 88) ** 2, -1, 1) * front
    if traits.garment in ("v", "shirt", "suit"):
        round_line = np.where(
            front, -142 - np.clip(60 - ax * 1.15, 0, None) * (0.55 if traits.garment != "v" else 0.8), -140
        )
    distance = round_line - y
    cloth = np.broadcast_to(traits.cloth, (len(torso), 3)).copy()
    if traits.garment == "suit":
        shirt = rgb([0.74, 0.75, 0.78])
        lapel = cover(m, ax - (9 + 0.62 * np.clip(y + 215, 0, None)), 1.2) * front + ~front
        cloth = shirt + lapel[:, None] * (cloth - shirt)
        tie = cover(m, 4.5 + 0.05 * np.clip(-y - 165, 0, None) - ax, 1.2) * (y < -163) * front
        cloth += tie[:, None] * (traits.cloth_second - cloth)
        edge = np.exp(-(((ax - (9 + 0.62 * np.clip(y + 215, 0, None))) / 1.5) ** 2)) * front
        cloth *= (1 - 0.45 * edge)[:, None]
    if traits.garment == "shirt":
        collar = np.exp(-(((distance - 15) / 1.4) ** 2)) * (ax < 64)
        cloth *= (1 - 0.4 * collar)[:, None]
        cloth *= 1 + 0.12 * (distance < 15)[:, None]
    if m.detail:
        ox, oy = traits.texture_offset
        fold = sample(texture(14, 14, 31), x * 0.8 + ox, y * 0.8 + oy)
        weave = nearest(texture(0.6, 0.6, 32), x * 2 + 1024, y * 2 + 1024)
        cloth = cloth * np.exp(0.10 * fold + 0.05 * weave)[:, None]
        m.normal[torso, 0] += 0.16 * fold * (distance > 0)
        edge = np.exp(-((distance / 2.2) ** 2)) * (distance < 0.5)
        m.albedo[torso] *= np.exp(-0.5 * edge)[:, None]
    amount = cover(m, distance)
    blend(m.albedo, torso, cloth, amount)
    blend(m.skin, torso, 0.0, amount)
    blend(m.gloss, torso, 0.03, amount)
