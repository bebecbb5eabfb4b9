"""The features painted on the face: nostrils, eyes, brows, lips, teeth."""

from __future__ import annotations

import numpy as np

from engine.data.avatars.contours import Brow, Eye, Features, Mouth
from engine.data.avatars.geometry import Pose
from engine.data.avatars.identity import Frame, Scene, Traits
from engine.data.avatars.material import Material, blend, box, cover, rgb
from engine.data.avatars.noise import sample, texture
from engine.data.avatars.shapes import bump, step


def paint_nostrils(m: Material, traits: Traits, face: Features) -> None:
    """Nostrils and the crease around the wings."""
    nw, ny = traits.shape["nose_width"], face.nose_y
    f = box(m, -nw - 9, nw + 9, ny - 16, ny + 14)
    ax, y = np.abs(m.x[f]), m.y[f]
    # the opening is thinner towards the middle of the nose, and wider towards the wings
    u, v = (ax - 0.50 * nw) / (0.30 * nw), (y - ny + 7.0 - 0.10 * (ax - 0.5 * nw)) / 2.5
    hole = cover(m, (1 - np.sqrt(u * u + v * v)) * 2.2, 1.6)
    dark = traits.skin * rgb([0.16, 0.09, 0.08])
    if m.detail:
        crease = np.exp(-(((np.hypot((ax - nw + 5.5) / 1.0, (y - ny + 4.5) / 1.15) - 7.4) / 1.2) ** 2)) * step(
            ax, nw - 1.5, nw + 1
        )
        m.albedo[f] *= np.exp(-0.50 * crease[:, None] * rgb([0.6, 1.0, 1.0]))
        under = bump(ax, y, 0, ny - 8, 12, 3.5)
        m.albedo[f] *= np.exp(-0.35 * under[:, None] * rgb([0.7, 1.0, 1.0]))
    blend(m.albedo, f, dark, 0.92 * hole)
    blend(m.gloss, f, 0.0, hole)


def paint_eye(m: Material, traits: Traits, frame: Frame, eye: Eye, gaze: np.ndarray, light: np.ndarray) -> None:
    """Eyeball in the opening, lashes, lid crease and make-up of one eye.

    gaze:  (2,) shift of the iris in millimetres, head coordinates.
    light: (3,) towards the light, head coordinates.
    """
    a = eye.half_width
    lo, hi = eye.side * eye.x - 1.9 * a, eye.side * eye.x + 1.9 * a
    f = box(m, lo, hi, eye.y - 16, eye.y + 24)
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
    crease_y = (
        eye.up + 0.25 * eye.tilt * q + eye.crease * np.clip(1.15 - q * q * 0.75, 0.2, 1) - (eye.up + 1.5) * (qc * qc)
    )
    crease_y = eye.y + eye.tilt * q + np.maximum(crease_y, upper - eye.base(qc) + 0.6)
    gap = y - crease_y
    near = step(-np.abs(q + 0.05), -1.35, -0.85)
    if m.detail:
        m.albedo[f] *= np.exp(-0.55 * (np.exp(-((gap / 1.0) ** 2)) * near)[:, None] * rgb([0.7, 1.0, 1.0]))
        m.normal[f, 1] -= 0.22 * (np.exp(-(((gap + 1.2) / 1.6) ** 2)) - np.exp(-(((gap - 1.4) / 1.8) ** 2))) * near
        lid = step(y, upper - 0.5, upper + 0.5) * step(-gap, -1.5, 1)
        blend(m.albedo, f, traits.shadow_colour, 0.55 * traits.makeup * lid * near)
        rim = np.exp(-((below / 0.9) ** 2)) * (side > 0)
        m.albedo[f] *= np.exp(-0.30 * rim[:, None] * rgb([0.3, 1.0, 0.9]))
    else:
        m.albedo[f] *= 1 - 0.28 * (cover(m, 0.7 - np.abs(gap)) * near)[:, None]

    # eyeball
    cx, cy = eye.side * eye.x + gaze[0], eye.y + 0.9 + gaze[1]
    dx, dy = x - cx, y - cy
    r = np.hypot(dx, dy)
    radius = 6.8
    bright = 0.34 + 0.66 * np.clip(float(traits.skin.mean()) / 0.45, 0, 1)
    sclera = rgb([0.62, 0.585, 0.56]) * bright
    colour = np.broadcast_to(sclera, (len(f), 3)).copy()
    if m.detail:
        corner = np.clip(np.abs(q) - 0.45, 0, 1)
        colour *= np.exp(-corner[:, None] * rgb([0.25, 0.75, 0.75]))
        caruncle = bump(q, y - eye.base(q), -0.93, 0, 0.13, 2.5)
        colour += caruncle[:, None] * (rgb([0.50, 0.20, 0.17]) - colour) * 0.8
    iris = cover(m, radius - r, 1.3 if m.detail else 1.0)
    tint = np.maximum(traits.iris, 0.012) * bright
    if m.detail:
        angle = np.arctan2(dy, dx)
        fibre = sample(texture(1.2, 6, 25), angle * 18 + 64 * eye.side + traits.hair_seed, r * 3)
        ring = np.exp(-(((r - radius) / 1.3) ** 2))
        lit = 0.95 + 0.25 * fibre - 0.75 * ring + 0.55 * np.clip(-(dx * light[0] + dy * light[1]) / radius, -1, 1)
        warm = np.exp(-(((r - 3.0) / 1.2) ** 2))[:, None] * rgb([0.3, 0.12, -0.05])
        shade = tint * np.clip(lit, 0.15, 3)[:, None] * (1 + warm)
        pupil = cover(m, 2.8 - r, 1.3)
    else:
        shade = np.broadcast_to(tint, (len(f), 3))
        pupil = cover(m, 2.7 - r)
    colour += iris[:, None] * (shade - colour)
    colour *= 1 - 0.97 * pupil[:, None]
    if m.detail:  # the lid and its lashes shade the ball
        colour *= (1 - 0.62 * np.exp(-np.clip(above, 0, None) / 1.7))[:, None] * (
            1 - 0.20 * np.exp(-np.clip(below, 0, None) / 1.0)
        )[:, None]
    blend(m.albedo, f, colour, opening)
    blend(m.skin, f, 0.0, opening)
    blend(m.gloss, f, 0.15, opening)
    if m.detail:
        hx, hy = cx + np.clip(light[0], -0.7, 0.7) * 3.6, cy + np.clip(light[1], 0.15, 0.7) * 3.4 + 0.3
        catch = cover(m, 1.05 - np.hypot(x - hx, (y - hy) * 1.1), 1.2) * opening
        fill = cover(m, 0.9 - np.hypot(x - 2 * cx + hx, y - 2 * cy + hy), 2.0) * opening * 0.12
        m.glow[f] += (0.45 * catch + fill)[:, None]
        wet = np.exp(-(((below - 0.4) / 0.5) ** 2)) * opening
        m.glow[f] += 0.04 * wet[:, None]

    # lashes: a dark edge, thicker towards the outer corner, where it ends in a small wing
    weight = (0.75 + 0.5 * (1 - traits.masculine) + 0.9 * traits.makeup) * (0.75 + 0.5 * np.clip(q, -1, 1))
    weight = weight * (1.5 - 0.5 * min(eye.openness, 1.0))
    wing = step(-q, -1.22, -1.0)
    edge = np.where(q < 1, np.abs(y - upper - 0.25 * weight), np.abs(y - eye.base(np.ones(1)) - 6.0 * (q - 1)))
    lash = cover(m, (weight * 0.78 - edge), 1.2) * (q > -1.02) * wing
    blend(m.albedo, f, lash_colour, lash * (0.95 if m.detail else 1.0))
    under = cover(m, 0.45 + 0.3 * traits.makeup - np.abs(below + 0.2), 1.4) * (side > 0)
    blend(m.albedo, f, lash_colour if traits.makeup > 0.3 else traits.skin * 0.4, under * (0.25 + 0.45 * traits.makeup))
    blend(m.gloss, f, 0.0, lash)


def paint_brow(m: Material, traits: Traits, brow: Brow) -> None:
    """One eyebrow: a plain band in the game look, hairs in the photo look."""
    lo, hi = sorted((brow.side * (brow.inner - 6), brow.side * (brow.outer + 6)))
    f = box(m, lo, hi, brow.y - 16, brow.y + 18)
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
        fade = step(t, -0.05, 0.22) * 0.35 + 0.65
        amount = np.clip(step(distance + 0.40 * hairs, -1.3, 0.6) * fade * (0.88 + 0.14 * hairs), 0, 1)
    else:
        amount = cover(m, distance)
    blend(m.albedo, f, traits.brow_colour, amount)
    blend(m.gloss, f, 0.08, amount)


def paint_mouth(m: Material, traits: Traits, face: Features, view: np.ndarray) -> None:
    """Lips, the line between them, and teeth and tongue in an open mouth.

    view: (3,) towards the camera, head coordinates, for the parallax of teeth and tongue.
    """
    mouth: Mouth = face.mouth
    w = mouth.half_width
    f = box(
        m,
        mouth.x - w - 6,
        mouth.x + w + 6,
        mouth.outer_lower(np.zeros(1))[0] - 7,
        mouth.outer_upper(np.zeros(1))[0] + 8,
    )
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
    blend(m.albedo, f, colour, amount * (0.9 if m.detail else 1.0))
    blend(m.gloss, f, 0.55 + 0.6 * traits.makeup, amount)

    open_height = iu - il
    hole = cover(m, np.minimum(np.minimum(iu - y, y - il), side * 0.8)) * (open_height > 0.3)
    if mouth.gap_low + mouth.gap_up > 0.6:
        depth = 9.0
        xi, yi = x - depth * view[0] / view[2] - mouth.x, y - depth * view[1] / view[2] * 0.5
        inside = np.broadcast_to(rgb([0.075, 0.018, 0.016]), (len(f), 3)).copy()
        base = mouth.y - mouth.gap_low
        tongue = bump(xi, yi, 0, base - 2, 15, 7.5) * (mouth.gap_low > 6)
        inside += tongue[:, None] * (rgb([0.36, 0.10, 0.10]) - inside) * 0.85
        arch = 0.0045 * xi * xi
        tooth = np.abs(((np.abs(xi) + 0.0) / (8.2 - 0.05 * np.abs(xi))) % 1.0 - 0.5)
        between = step(tooth, 0.40, 0.5) * (np.abs(xi) > 2)
        scallop = 0.5 * step(tooth, 0.3, 0.5)
        edge_up = traits.shape["mouth_y"] - 3.4 + arch + scallop
        row_up = cover(m, yi - edge_up, 1.3) * step(-np.abs(xi), -24, -20)
        edge_low = traits.shape["mouth_y"] - 3.0 - 0.92 * face.jaw_drop * 0.9 + 1.2 * arch - 1.5
        row_low = cover(m, edge_low - yi, 1.3) * step(-np.abs(xi), -19, -15) * (mouth.gap_low > 3)
        enamel = rgb([0.70, 0.655, 0.57]) * np.exp(-((xi / 23) ** 2) - 0.30 * between)[:, None]
        inside += np.maximum(row_up, 0.75 * row_low)[:, None] * (enamel - inside)
        if m.detail:
            inside *= (1 - 0.50 * np.exp(-np.clip(iu - y, 0, None) / 1.5))[:, None]
            inside *= (1 - 0.45 * step(np.abs(q), 0.45, 1.0))[:, None]
        blend(m.albedo, f, inside, hole)
        blend(m.skin, f, 0.0, hole)
        blend(m.gloss, f, 0.35, hole)
    shut = step(-open_height, -2.0, -0.4) * step(side, -1.5, 2.5)
    seam = cover(m, 0.62 - np.abs(y - (iu + il) / 2), 1.5) * shut
    blend(m.albedo, f, traits.lip * rgb([0.22, 0.14, 0.14]), 0.85 * seam)
    if m.detail:
        pit = bump(np.abs(q), y - mouth.line(np.ones(1)), 1.02, 0, 0.07, 2.4)
        m.albedo[f] *= np.exp(-0.55 * pit[:, None] * rgb([0.7, 1, 1]))


def gaze_shift(frame: Frame, place: Pose) -> np.ndarray:
    """(2,) shift of the iris in millimetres, head coordinates: towards the camera, plus the frame's own gaze."""
    to_camera = place.matrix.T @ rgb([0.0, 0.0, 1.0])
    shift = 12.0 * (0.75 * to_camera[:2] + np.sin(np.array(frame.gaze)))
    return np.clip(shift, [-6.5, -3.0], [6.5, 3.0])


def light_in_head(scene: Scene, place: Pose) -> np.ndarray:
    """(3,) direction to the key light, head coordinates."""
    return place.matrix.T @ scene.key
