"""What the surface of head and shoulders is made of: colour, gloss and small relief at head coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .contours import Brow, Eye, Features, Mouth
from .geometry import Pose, beard_density
from .identity import Frame, Scene, Traits
from .noise import nearest, sample, texture


@dataclass
class Material:
    """Per pixel of a surface; painters write into it."""

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


def _rgb(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _step(x, low, high):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(x, y, cx, cy, sx, sy):
    return np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)


def cover(m: Material, distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """Coverage of a shape from its signed distance in millimetres (positive inside)."""
    return np.clip(distance / (m.pixel * soft) + 0.5, 0, 1)


def _blend(target: np.ndarray, index: np.ndarray, value, amount: np.ndarray) -> None:
    amount = amount[:, None] if target.ndim == 2 else amount
    here = target[index]
    target[index] = here + amount * (value - here)


def _box(m: Material, x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.flatnonzero((m.x > x0) & (m.x < x1) & (m.y > y0) & (m.y < y1) & (m.z > 18))


def paint_skin(m: Material, traits: Traits, face: Features, rest_y: np.ndarray) -> None:
    """Base colour of all skin; in the photo look with blood, mottling, pores, freckles, shaved beard and age."""
    m.albedo[:] = traits.skin
    m.skin[:] = 1.0
    m.gloss[:] = 0.25
    if not m.detail:
        return
    s, dark = traits.shape, traits.melanin
    ax, y, front = np.abs(m.x), rest_y, _step(m.z, 5, 35)
    around = np.arctan2(m.x, m.z + 25) * 90
    ox, oy = traits.texture_offset
    mottle = sample(texture(5, 5, 20), around * 0.9 + ox, y * 0.9 + oy)
    blood = sample(texture(9, 9, 21), around * 0.9 + oy, y * 0.9 + ox)
    pores = nearest(texture(0.7, 0.7, 22), around * 2.1 + 512 + ox, y * 2.1 + 1024 + oy)
    red = 0.55 * _bump(ax, y, 38, -30, 17, 14) + 0.55 * _bump(ax, y, 0, s["nose_y"], 13, 9) + 0.20 * _bump(ax, y, 0, -98, 14, 9)
    red = red + 0.12 * _bump(ax, y, 60, -5, 14, 30) + 0.10 * blood
    red = red * front * traits.ruddy + 0.75 * traits.makeup * _bump(ax, y + 0.35 * ax, 46, -8, 15, 11) * front
    brown = 0.16 * _bump(ax, y, face.eyes[0].x - 2, -12, 13, 5.5) + 0.20 * _bump(ax, y, face.eyes[0].x - 12, 0, 7, 9)
    brown = brown + 0.12 * _bump(ax, y, face.eyes[0].x, 8, 15, 5) + 0.09 * _bump(ax, y, 0, s["mouth_y"] - 2, 33, 15)
    brown = (brown * (1 + 0.5 * s["old"]) + (0.055 + 0.03 * s["old"]) * mottle + 0.045 * pores) * (0.7 + 0.5 * dark)
    brown = brown - 0.10 * _bump(ax, y, 0, 50, 40, 18) * front
    m.albedo *= np.exp(red[:, None] * (_rgb([0.10, -0.34, -0.30]) * (1 - 0.45 * dark)) - brown[:, None] * _rgb([0.75, 1.05, 1.15]))
    if traits.freckles:
        spot = nearest(texture(0.9, 0.9, 23), around * 1.15 + 512 + ox, y * 1.15 + 1024 + oy)
        amount = _step(spot, 1.25, 1.7) * traits.freckles * (_bump(ax, y, 26, -22, 34, 22) + 0.35) * front
        m.albedo *= 1 - amount[:, None] * _rgb([0.28, 0.42, 0.50])
    if s["old"] > 0.3:
        spot = sample(texture(2.2, 2.2, 24), around * 0.9 + oy, y * 0.9 + ox)
        m.albedo *= 1 - 0.22 * (s["old"] * _step(spot, 1.9, 2.5))[:, None] * _rgb([0.8, 1.0, 1.1])
    oily = 0.25 * _bump(ax, y, 0, 45, 30, 22) + 0.40 * _bump(ax, y, 0, s["nose_y"], 9, 22) + 0.22 * _bump(ax, y, 44, -22, 14, 10)
    m.gloss[:] = 0.20 + oily + 0.05 * pores + 0.03 * mottle
    _wrinkle(m, traits, face, rest_y)


def _wrinkle(m: Material, traits: Traits, face: Features, y: np.ndarray) -> None:
    """Lines drawn as relief: the normal tips up or down across each, and it darkens inside."""
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
            line = np.exp(-u * u) * _step(-ax, -44, -26) * amount
            depth, tilt = depth + line, tilt + u * line
    crow = (0.8 * old + 0.6 * smile * np.clip((traits.age - 25) / 25, 0, 1))
    if crow > 0.08:
        ex = face.eyes[0].x + face.eyes[0].half_width
        for slope in (-0.62, -0.12, 0.38):
            u = (y - 0.5 - slope * (ax - ex)) / 1.1
            line = np.exp(-u * u) * _step(ax, ex + 1.5, ex + 5) * _step(-ax, -ex - 16, -ex - 8) * crow * 0.8
            depth, tilt = depth + line, tilt + u * line
    bag = 0.25 + 0.9 * old
    eye = face.eyes[0]
    u = (y + 11.5 - 0.010 * (ax - eye.x + 4) ** 2 - 0.5 * smile) / 1.5
    line = np.exp(-u * u) * _step(-np.abs(ax - eye.x + 3), -14, -8) * bag * 0.6
    depth, tilt = depth + line, tilt + u * line
    m.albedo[f] *= np.exp(-depth[:, None] * _rgb([0.30, 0.42, 0.44]))
    m.normal[f, 1] += 0.28 * tilt


def paint_nostrils(m: Material, traits: Traits, face: Features) -> None:
    """Nostrils and the crease around the wings."""
    nw, ny = traits.shape["nose_width"], face.nose_y
    f = _box(m, -nw - 9, nw + 9, ny - 16, ny + 14)
    ax, y = np.abs(m.x[f]), m.y[f]
    # thinner lips of the opening inwards, wider outwards
    u, v = (ax - 0.50 * nw) / (0.30 * nw), (y - ny + 7.0 - 0.10 * (ax - 0.5 * nw)) / 2.5
    hole = cover(m, (1 - np.sqrt(u * u + v * v)) * 2.2, 1.6)
    dark = traits.skin * _rgb([0.16, 0.09, 0.08])
    if m.detail:
        crease = np.exp(-(((np.hypot((ax - nw + 5.5) / 1.0, (y - ny + 4.5) / 1.15) - 7.4) / 1.2) ** 2)) * _step(ax, nw - 1.5, nw + 1)
        m.albedo[f] *= np.exp(-0.50 * crease[:, None] * _rgb([0.6, 1.0, 1.0]))
        under = _bump(ax, y, 0, ny - 8, 12, 3.5)
        m.albedo[f] *= np.exp(-0.35 * under[:, None] * _rgb([0.7, 1.0, 1.0]))
    _blend(m.albedo, f, dark, 0.92 * hole)
    _blend(m.gloss, f, 0.0, hole)


def paint_eye(m: Material, traits: Traits, frame: Frame, eye: Eye, gaze: np.ndarray, light: np.ndarray) -> None:
    """Eyeball in the opening, lashes, lid crease and make-up of one eye.

    gaze: (2,) shift of the iris on the eyeball, millimetres in head coordinates.  light: (3,) towards the light, head coordinates.
    """
    a = eye.half_width
    lo, hi = eye.side * eye.x - 1.9 * a, eye.side * eye.x + 1.9 * a
    f = _box(m, lo, hi, eye.y - 16, eye.y + 24)
    if not len(f):
        return
    x, y = m.x[f], m.y[f]
    q = eye.q(x)
    qc = np.clip(q, -1, 1)
    upper, lower = eye.upper(qc), eye.lower(qc)
    side = (1 - np.abs(q)) * a
    above, below = upper - y, y - lower
    inside = np.minimum(np.minimum(above, below), side * 1.2)
    opening = cover(m, inside)
    lash_colour = np.minimum(traits.brow_colour * 0.35, 0.03)

    # make-up and the crease over the lid
    crease_y = eye.up + 0.25 * eye.tilt * q + eye.crease * np.clip(1.15 - q * q * 0.75, 0.2, 1) - (eye.up + 1.5) * (qc * qc)
    crease_y = eye.y + eye.tilt * q + np.maximum(crease_y, upper - eye.base(qc) + 0.6)
    gap = y - crease_y
    near = _step(-np.abs(q + 0.05), -1.35, -0.85)
    if m.detail:
        m.albedo[f] *= np.exp(-0.55 * (np.exp(-((gap / 1.0) ** 2)) * near)[:, None] * _rgb([0.7, 1.0, 1.0]))
        m.normal[f, 1] -= 0.22 * (np.exp(-(((gap + 1.2) / 1.6) ** 2)) - np.exp(-(((gap - 1.4) / 1.8) ** 2))) * near
        lid = _step(y, upper - 0.5, upper + 0.5) * _step(-gap, -1.5, 1)
        _blend(m.albedo, f, traits.shadow_colour, 0.55 * traits.makeup * lid * near)
        rim = np.exp(-((below / 0.9) ** 2)) * (side > 0)
        m.albedo[f] *= np.exp(-0.30 * rim[:, None] * _rgb([0.3, 1.0, 0.9]))
    else:
        m.albedo[f] *= 1 - 0.28 * (cover(m, 0.7 - np.abs(gap)) * near)[:, None]

    # eyeball
    cx, cy = eye.side * eye.x + gaze[0], eye.y + 0.9 + gaze[1]
    dx, dy = x - cx, y - cy
    r = np.hypot(dx, dy)
    radius = 6.8
    bright = 0.60 + 0.40 * np.clip(float(traits.skin.mean()) / 0.45, 0, 1)
    sclera = _rgb([0.62, 0.585, 0.56]) * bright
    colour = np.broadcast_to(sclera, (len(f), 3)).copy()
    if m.detail:
        corner = np.clip(np.abs(q) - 0.45, 0, 1)
        colour *= np.exp(-corner[:, None] * _rgb([0.25, 0.75, 0.75]))
        caruncle = _bump(q, y - eye.base(q), -0.93, 0, 0.13, 2.5)
        colour += caruncle[:, None] * (_rgb([0.50, 0.20, 0.17]) - colour) * 0.8
    iris = cover(m, radius - r, 1.3 if m.detail else 1.0)
    tint = np.maximum(traits.iris, 0.012) * bright**1.5
    if m.detail:
        angle = np.arctan2(dy, dx)
        fibre = sample(texture(1.2, 6, 25), angle * 18 + 64 * eye.side + traits.hair_seed, r * 3)
        ring = np.exp(-(((r - radius) / 1.3) ** 2))
        lit = 0.95 + 0.25 * fibre - 0.75 * ring + 0.55 * np.clip(-(dx * light[0] + dy * light[1]) / radius, -1, 1)
        warm = np.exp(-(((r - 3.0) / 1.2) ** 2))[:, None] * _rgb([0.3, 0.12, -0.05])
        shade = tint * np.clip(lit, 0.15, 3)[:, None] * (1 + warm)
        pupil = cover(m, 2.8 - r, 1.3)
    else:
        shade = np.broadcast_to(tint, (len(f), 3))
        pupil = cover(m, 2.7 - r)
    colour += iris[:, None] * (shade - colour)
    colour *= 1 - 0.97 * pupil[:, None]
    if m.detail:  # the lid and its lashes shade the ball
        colour *= (1 - 0.62 * np.exp(-np.clip(above, 0, None) / 1.7))[:, None] * (1 - 0.20 * np.exp(-np.clip(below, 0, None) / 1.0))[:, None]
    _blend(m.albedo, f, colour, opening)
    ball = np.stack([(x - eye.side * eye.x) / 20, (y - eye.y) / 20, np.ones(len(f))], 1)
    ball /= np.sqrt((ball * ball).sum(1, keepdims=True))
    m.ball_index, m.ball_normal = f, ball
    _blend(m.skin, f, 0.0, opening)
    _blend(m.gloss, f, 0.15, opening)
    if m.detail:
        hx, hy = cx + np.clip(light[0], -0.7, 0.7) * 3.6, cy + np.clip(light[1], 0.15, 0.7) * 3.4 + 0.3
        catch = cover(m, 1.05 - np.hypot(x - hx, (y - hy) * 1.1), 1.2) * opening
        fill = cover(m, 0.9 - np.hypot(x - 2 * cx + hx, y - 2 * cy + hy), 2.0) * opening * 0.12
        m.glow[f] += bright * (0.5 * catch + fill)[:, None]
        wet = np.exp(-(((below - 0.4) / 0.5) ** 2)) * opening
        m.glow[f] += 0.05 * wet[:, None]

    # lashes: a dark edge that thickens towards the outer corner and ends in a small wing
    weight = (0.75 + 0.5 * (1 - traits.masculine) + 0.9 * traits.makeup) * (0.75 + 0.5 * np.clip(q, -1, 1))
    weight = weight * (1.5 - 0.5 * min(eye.openness, 1.0))
    wing = _step(-q, -1.22, -1.0)
    edge = np.where(q < 1, np.abs(y - upper - 0.25 * weight), np.abs(y - eye.base(np.ones(1)) - 6.0 * (q - 1)))
    lash = cover(m, (weight * 0.78 - edge), 1.2) * (q > -1.02) * wing
    _blend(m.albedo, f, lash_colour, lash * (0.95 if m.detail else 1.0))
    under = cover(m, 0.45 + 0.3 * traits.makeup - np.abs(below + 0.2), 1.4) * (side > 0)
    _blend(m.albedo, f, lash_colour if traits.makeup > 0.3 else traits.skin * 0.4, under * (0.25 + 0.45 * traits.makeup))
    _blend(m.gloss, f, 0.0, lash)


def paint_brow(m: Material, traits: Traits, brow: Brow) -> None:
    """One eyebrow: a plain band in the game look, hairs in the photo look."""
    lo, hi = sorted((brow.side * (brow.inner - 6), brow.side * (brow.outer + 6)))
    f = _box(m, lo, hi, brow.y - 16, brow.y + 18)
    if not len(f):
        return
    t = brow.t(m.x[f])
    half = brow.half_thickness(t)
    off = m.y[f] - brow.middle(t)
    ends = np.minimum(t + 0.02, 1.02 - t) * (brow.outer - brow.inner)
    distance = np.minimum(half - np.abs(off), ends)
    if m.detail:
        ox, oy = traits.texture_offset
        along = (t * 40 - off * np.interp(t, [0, 0.3, 1], [0.1, 0.9, 2.0])) * 1.0
        hairs = sample(texture(0.8, 3.0, 26), along * 1.5 + ox, off * 1.3 + oy + 90 * (brow.side > 0))
        fade = _step(t, -0.05, 0.22) * 0.35 + 0.65
        amount = np.clip(_step(distance + 0.40 * hairs, -1.3, 0.6) * fade * (0.88 + 0.14 * hairs), 0, 1)
    else:
        amount = cover(m, distance)
    _blend(m.albedo, f, traits.brow_colour, amount)
    _blend(m.gloss, f, 0.08, amount)


def paint_beard(m: Material, traits: Traits, face: Features, rest_y: np.ndarray) -> None:
    """Shadow, stubble or full hair of a beard."""
    if not traits.beard:
        return
    f = np.flatnonzero((m.z > 0) & (rest_y < -28) & (rest_y > -135))
    if not len(f):
        return
    x, y = m.x[f], m.y[f]
    amount = beard_density(traits, face, x, np.maximum(y, -112 - face.jaw_drop)) * _step(m.z[f], 2, 22)
    amount *= _step(y, -128 - face.jaw_drop, -110 - face.jaw_drop)
    around = np.arctan2(x, m.z[f] + 25) * 90
    colour = traits.hair_colour if traits.hair != "bald" else traits.brow_colour
    if traits.beard in ("shadow", "stubble"):
        strength = 0.22 if traits.beard == "shadow" else 0.50
        strength *= 0.6 + 0.6 * (1 - np.clip(traits.melanin * 1.3, 0, 1))
        if m.detail:
            dots = nearest(texture(0.6, 0.6, 27), around * 2.3 + 512, rest_y[f] * 2.3 + 1024)
            amount = amount * np.clip(1 + (0.25 if traits.beard == "shadow" else 0.45) * dots, 0, 2)
        _blend(m.albedo, f, colour * 0.7 + _rgb([0.0, 0.004, 0.008]), np.clip(strength * amount, 0, 0.9))
        return
    dense = 0.93
    if m.detail:
        hairs = sample(texture(0.8, 5.0, 28), around * 1.25 + 0.25 * y, rest_y[f] * 0.8)
        broad = sample(texture(3, 6, 29), around * 0.8, rest_y[f] * 0.6)
        amount = np.clip(_step(amount + 0.16 * hairs, 0.16, 0.75), 0, 1)
        colour = colour * np.exp(0.32 * hairs + 0.16 * broad)[:, None]
    _blend(m.albedo, f, colour, dense * amount)
    _blend(m.skin, f, 0.0, amount)
    _blend(m.gloss, f, 0.12, amount)


def paint_mouth(m: Material, traits: Traits, face: Features, view: np.ndarray) -> None:
    """Lips, the line between them, and teeth and tongue in an open mouth.

    view: (3,) towards the camera in head coordinates, for the parallax of what lies inside.
    """
    mouth: Mouth = face.mouth
    w = mouth.half_width
    f = _box(m, mouth.x - w - 6, mouth.x + w + 6, mouth.outer_lower(np.zeros(1))[0] - 7, mouth.outer_upper(np.zeros(1))[0] + 8)
    if not len(f):
        return
    x, y = m.x[f], m.y[f]
    q = mouth.q(x)
    qc = np.clip(q, -1, 1)
    iu, il, ou, ol = mouth.inner_upper(qc), mouth.inner_lower(qc), mouth.outer_upper(qc), mouth.outer_lower(qc)
    side = (1 - np.abs(q)) * w
    lips = np.minimum(np.minimum(ou - y, y - ol), side)
    soft = 1.0 if not m.detail else 2.4 - 1.2 * traits.makeup
    amount = cover(m, lips + 0.2, soft)
    colour = np.broadcast_to(traits.lip, (len(f), 3)).copy()
    if m.detail:
        ox, oy = traits.texture_offset
        lines = sample(texture(0.9, 5, 30), x * 1.5 + ox, y * 0.8 + oy)
        colour *= np.exp(0.07 * lines)[:, None]
        colour *= np.where(y > (iu + il) / 2, 0.84, 1.06)[:, None]
        border = np.exp(-(((ou - y + 1.2) / 1.0) ** 2)) * (np.abs(q) < 0.8)
        m.albedo[f] *= 1 + 0.10 * border[:, None]
    _blend(m.albedo, f, colour, amount * (0.9 if m.detail else 1.0))
    _blend(m.gloss, f, 0.55 + 0.6 * traits.makeup, amount)

    open_height = iu - il
    hole = cover(m, np.minimum(np.minimum(iu - y, y - il), side * 0.8)) * (open_height > 0.3)
    if mouth.gap_low + mouth.gap_up > 0.6:
        depth = 9.0
        xi, yi = x - depth * view[0] / view[2] - mouth.x, y - depth * view[1] / view[2] * 0.5
        inside = np.broadcast_to(_rgb([0.075, 0.018, 0.016]), (len(f), 3)).copy()
        base = mouth.y - mouth.gap_low
        tongue = _bump(xi, yi, 0, base - 2, 15, 7.5) * (mouth.gap_low > 6)
        inside += tongue[:, None] * (_rgb([0.36, 0.10, 0.10]) - inside) * 0.85
        arch = 0.0045 * xi * xi
        tooth = np.abs(((np.abs(xi) + 0.0) / (8.2 - 0.05 * np.abs(xi))) % 1.0 - 0.5)
        between = _step(tooth, 0.40, 0.5) * (np.abs(xi) > 2)
        scallop = 0.5 * _step(tooth, 0.3, 0.5)
        edge_up = traits.shape["mouth_y"] - 3.4 + arch + scallop
        row_up = cover(m, yi - edge_up, 1.3) * _step(-np.abs(xi), -24, -20)
        edge_low = traits.shape["mouth_y"] - 3.0 - 0.92 * face.jaw_drop * 0.9 + 1.2 * arch - 1.5
        row_low = cover(m, edge_low - yi, 1.3) * _step(-np.abs(xi), -19, -15) * (mouth.gap_low > 3)
        enamel = _rgb([0.70, 0.655, 0.57]) * np.exp(-((xi / 23) ** 2) - 0.30 * between)[:, None]
        inside += np.maximum(row_up, 0.75 * row_low)[:, None] * (enamel - inside)
        if m.detail:
            inside *= (1 - 0.50 * np.exp(-np.clip(iu - y, 0, None) / 1.5))[:, None]
            inside *= (1 - 0.45 * _step(np.abs(q), 0.45, 1.0))[:, None]
        _blend(m.albedo, f, inside, hole)
        _blend(m.skin, f, 0.0, hole)
        _blend(m.gloss, f, 0.35, hole)
    shut = _step(-open_height, -2.0, -0.4) * _step(side, -1.5, 2.5)
    seam = cover(m, 0.62 - np.abs(y - (iu + il) / 2), 1.5) * shut
    _blend(m.albedo, f, traits.lip * _rgb([0.22, 0.14, 0.14]), 0.85 * seam)
    if m.detail:
        pit = _bump(np.abs(q), y - mouth.line(np.ones(1)), 1.02, 0, 0.07, 2.4)
        m.albedo[f] *= np.exp(-0.55 * pit[:, None] * _rgb([0.7, 1, 1]))


def paint_clothes(m: Material, traits: Traits, torso: np.ndarray) -> None:
    """Garment on the torso pixels `torso` (indices): collar line, shirt, suit with tie."""
    x, y = m.x[torso], m.y[torso]
    ax, front = np.abs(x), m.z[torso] > -20
    round_line = -150 - 10 * np.clip(1 - (ax / 62) ** 2, -2, 1) * front
    if traits.garment == "scoop":
        round_line = -150 - 34 * np.clip(1 - (ax / 88) ** 2, -1, 1) * front
    if traits.garment in ("v", "shirt", "suit"):
        round_line = np.where(front, -142 - np.clip(60 - ax * 1.15, 0, None) * (0.55 if traits.garment != "v" else 0.8), -140)
    distance = round_line - y
    cloth = np.broadcast_to(traits.cloth, (len(torso), 3)).copy()
    if traits.garment == "suit":
        shirt = _rgb([0.74, 0.75, 0.78])
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
    _blend(m.albedo, torso, cloth, amount)
    _blend(m.skin, torso, 0.0, amount)
    _blend(m.gloss, torso, 0.03, amount)


def gaze_shift(frame: Frame, place: Pose) -> np.ndarray:
    """Shift of the iris (2,) in head coordinates: eyes seek the camera within their range, plus the frame's own gaze."""
    to_camera = place.matrix.T @ _rgb([0.0, 0.0, 1.0])
    shift = 12.0 * (0.75 * to_camera[:2] + np.sin(np.array(frame.gaze)))
    return np.clip(shift, [-6.5, -3.0], [6.5, 3.0])


def light_in_head(scene: Scene, place: Pose) -> np.ndarray:
    """Direction to the key light (3,) in head coordinates."""
    return place.matrix.T @ scene.key
