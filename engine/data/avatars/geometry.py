"""The head as a surface: cross-sections from crown to chin, displaced by the features of the face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars.contours import Features, brow_landmarks, eye_landmarks, mouth_landmarks
from engine.data.avatars.identity import Frame, Scene, Traits
from engine.data.avatars.raster import Camera, Mesh, grid_normals, grid_triangles
from engine.data.avatars.shapes import bump, step

# cross-sections of the head from crown to chin: y, half width, front z, back z in millimetres
_PROFILE = np.array(
    [
        (114, 0, -10, -10),
        (111, 26, 20, -42),
        (102, 46, 44, -68),
        (86, 61, 63, -88),
        (66, 70, 76, -98),
        (44, 73.5, 83.5, -102),
        (20, 73, 87, -100),
        (0, 71, 86, -92),
        (-20, 69.5, 85, -78),
        (-40, 66, 84, -60),
        (-58, 60, 83, -45),
        (-74, 51.5, 83, -30),
        (-88, 41.5, 83.5, -12),
        (-100, 30.5, 83, 10),
        (-109, 18.5, 78, 32),
        (-113, 0, 58, 58),
    ],
    np.float64,
)
PIVOT = np.array([0.0, -70.0, -15.0])


@dataclass(frozen=True)
class Profile:
    """Cross-sections of the head in one frame, as tables over y (descending), in millimetres.

    y:      height in this frame. rest: height with the mouth shut.
    width:  half the width. centre: z of the middle. depth: half the depth.
    """

    y: np.ndarray
    width: np.ndarray
    centre: np.ndarray
    depth: np.ndarray
    rest: np.ndarray

    def at(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, centre and half depth at heights y, each of y's shape."""
        back = self.y[::-1]
        return (
            np.interp(y, back, self.width[::-1]),
            np.interp(y, back, self.centre[::-1]),
            np.interp(y, back, self.depth[::-1]),
        )


def _spline(knots: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The Catmull-Rom spline through knots (K, C) at t (N,) in [0, K - 1] -> (N, C)."""
    i = np.clip(t.astype(int), 0, len(knots) - 2)
    f = (t - i)[:, None]
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    a, b, c, d = (padded[i + k] for k in range(4))
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def profile(traits: Traits, face: Features) -> Profile:
    """The head's cross-sections with the identity's proportions and the frame's jaw."""
    s = traits.shape
    p = _PROFILE.copy()
    y = p[:, 0].copy()
    p[:, 1] *= s["width"]
    p[:, 1] *= 1 + (s["jaw"] - 1) * step(-y, 25, 70)
    p[:, 1] *= 1 + (s["chin_width"] - 1) * step(-y, 78, 104)
    p[:, 1] += 1.4 * s["cheek"] * np.exp(-(((y + 58) / 22) ** 2)) * (p[:, 1] > 1)
    p[:, 2] += s["chin_forward"] * step(-y, 75, 100)
    p[:, 2:] *= s["depth"]
    p[:, 0] = np.where(y > 20, 20 + (y - 20) * s["cranium"], y)
    p[:, 0] = np.where(y < -75, p[:, 0] - s["chin_length"] * (-75 - y) / 38, p[:, 0])
    p[:, 0] *= np.where(y > 0, 1, s["length"])
    t = np.linspace(0, len(p) - 1, 421)
    # squeeze the spline's parameter towards both ends, so that crown and chin close like a sphere
    for_end = np.where(t < 1, t**2, np.where(t > len(p) - 2, len(p) - 1 - (len(p) - 1 - t) ** 2, t))
    q = _spline(p, for_end)
    rest = q[:, 0].copy()
    live = rest - face.jaw_drop * step(-rest, 68, 98)
    return Profile(live, np.maximum(q[:, 1], 0), (q[:, 2] + q[:, 3]) / 2, np.maximum((q[:, 2] - q[:, 3]) / 2, 0), rest)


def relief(traits: Traits, face: Features, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the features stand out along z, in millimetres, at head coordinates x, y of the front."""
    s = traits.shape
    ax = np.abs(x)
    smile, old, fat = max(face.smile, 0), s["old"], s["fat"]
    eye, m = face.eyes[1], face.mouth
    ex = eye.x
    # sockets, brow ridge, lids over the eyeball
    dz = -s["socket"] * bump(ax, y, ex - 3, 3, 17, 11.5) - 2.6 * bump(ax, y, ex - 14, 3, 6, 8)
    dz += s["brow_ridge"] * bump(ax, y, 24, 18, 20, 7) - 1.2 * s["brow_ridge"] * 0.3 * bump(ax, y, 0, 9, 7, 6)
    dz += 4.6 * bump(ax, y, ex, -0.5, 11.5, 9.5)
    dz -= (1.1 + 1.4 * old) * bump(ax, y, ex - 4, -14, 10, 3.4)
    dz += (0.5 + 1.2 * old) * bump(ax, y, ex - 1, -10, 10, 2.6)
    # cheeks, temples, folds beside the nose
    dz += s["cheekbone"] * bump(ax, y, 45, -24, 15, 13) - 2.0 * bump(ax, y, 60, 22, 11, 20)
    dz += (1.0 + 3.6 * smile + 1.0 * fat) * bump(ax, y, 34, -38 + 3 * smile, 13, 11)
    dz -= (1.2 - 0.9 * fat) * bump(ax, y, 47, -60, 12, 15)
    fold_x = 21 + 0.42 * (-44 - y) * (1 + 0.25 * smile)
    dz -= (
        (0.5 + 1.1 * smile + 1.0 * old)
        * np.exp(-(((ax - fold_x - 1.5) / 3.4) ** 2))
        * step(-y, 42, 54)
        * step(y, m.y - 6, m.y + 8)
    )
    # nose: a ridge that grows to the tip and drops to the lip, a ball at the tip, two wings
    ny, nl = face.nose_y, s["nose_length"]
    t = np.clip((y - 6) / (ny - 6), 0, 1.6)
    height = s["nose_bridge"] * np.clip(t * 3.2, 0, 1) ** 1.3 * (1 - t) + nl * np.clip(t, 0, 1) ** 1.35
    height += s["nose_hump"] * 2.2 * np.exp(-(((t - 0.42) / 0.22) ** 2))
    under = -ny - 3.0 + 0.8 * s["nose_tip"] + 5.0 * np.clip(1 - (ax / 11) ** 2, -0.6, 1)
    drop = 1 - np.clip((-y - under) / 8.5, 0, 1) ** 1.4
    width = 7.0 + 3.6 * np.clip(t, 0, 1) ** 2 + 0.15 * (s["nose_width"] - 15)
    ridge = 1 / (1 + (ax / width) ** 2.6)
    dz += height * drop * ridge * step(-y, -14, 6)
    dz += 3.0 * bump(ax, y, 0, ny + 0.5, s["nose_ball"], 6.5)
    dz += (
        8.6
        * np.exp(-(((ax - s["nose_width"] + 4.5) / 5.0) ** 2))
        * np.exp(-(((y - ny + 3.2) / np.where(y < ny - 3.2, 4.2, 7.0)) ** 2))
    )
    # mouth: barrel, lips, philtrum, hollow under the lip, chin
    q = np.clip(m.q(x), -1.15, 1.15)
    dz += 3.4 * bump(ax, y, 0, m.y, 27, 17)
    dz -= 0.8 * np.exp(-((ax / 2.6) ** 2)) * step(-y, -ny + 9, -ny + 14) * step(y, m.y + 2, m.y + 8)
    window = np.clip(1 - np.abs(q) ** 3, 0, 1)
    iu, il, ou, ol = m.inner_upper(q), m.inner_lower(q), m.outer_upper(q), m.outer_lower(q)
    dz += (1.6 + 0.22 * m.lip_upper) * np.exp(-(((y - (iu + ou) / 2 + 0.6) / (0.62 * (ou - iu) + 0.9)) ** 2)) * window
    dz += (1.9 + 0.22 * m.lip_lower) * np.exp(-(((y - (il + ol) / 2) / (0.6 * (il - ol) + 0.9)) ** 2)) * window
    dz -= 1.8 * np.exp(-(((y - (iu + il) / 2) / (1.3 + 0.4 * (iu - il))) ** 2)) * np.clip(1 - np.abs(q) ** 6, 0, 1)
    dz -= 1.5 * bump(ax, y, m.half_width + 2.5, m.line(1.0), 4, 4)
    low = m.outer_lower(np.zeros(1))[0]
    dz -= 3.2 * bump(ax, y, 0, low - 5.0, 17, 4.2)
    chin = low - 20 - 0.4 * s["chin_length"]
    dz += 4.2 * bump(ax, y, 0, chin, 12 * s["chin_width"], 9)
    if s["chin_width"] > 1.12:
        dz -= 1.1 * bump(ax, y, 0, chin - 2, 2.2, 8)
    if traits.beard == "full":
        dz += 3.2 * beard_density(traits, face, x, y) * step(-y, 60, 95)
    return dz


def beard_density(traits: Traits, face: Features, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How densely the beard grows, 0 to 1, at head coordinates x, y; the beard's style decides the outline."""
    ax, m = np.abs(x), face.mouth
    q = np.clip(m.q(x), -1.3, 1.3)
    top, bottom = m.outer_upper(np.clip(q, -1, 1)), m.outer_lower(np.clip(q, -1, 1))
    below_nose = -face.nose_y + 8.5 + 0.012 * ax * ax + 1.5 * np.exp(-((ax / 3.5) ** 2))
    upper_lip = step(y, top - 0.5 - 0.35 * np.clip(ax - m.half_width + 3, 0, 9), top + 1.8)
    upper_lip = upper_lip * step(-y, below_nose, below_nose + 4.0) * step(-ax, -m.half_width - 8, -m.half_width)
    if traits.beard == "moustache":
        return upper_lip
    cheek_line = -34 - 0.030 * (66 - np.maximum(ax, 31)) ** 2
    jaw = step(-y, -cheek_line - 1, -cheek_line + 9)
    below = np.maximum(step(-y, -bottom + 2.5, -bottom + 7), step(np.abs(q), 1.02, 1.2))
    tuft = np.exp(-((ax / 5) ** 2)) * step(-y, -bottom + 0.5, -bottom + 3)
    everywhere = np.maximum(jaw * np.maximum(below, tuft), upper_lip)
    if traits.beard == "goatee":
        reach = m.half_width + 7 - 0.012 * np.clip(m.y - y, 0, None) ** 2
        return everywhere * np.maximum(step(-ax, -reach - 3, -reach + 4), upper_lip)
    return everywhere


def _theta() -> np.ndarray:
    """Angles of the surface's columns in radians, dense over the face and coarse behind; 0 faces the camera."""
    front = np.linspace(-1.25, 1.25, 97)
    back = np.linspace(1.25, 2 * np.pi - 1.25, 30)[1:-1]
    return np.concatenate([front, back])


def _rows(p: Profile) -> np.ndarray:
    """Positions of the surface's rows in the profile's tables, dense from the brows to the chin."""
    rest = p.rest
    target = np.concatenate(
        [
            np.linspace(rest[0], rest[0] - 3, 4)[:-1],
            np.linspace(rest[0] - 3, 32, 24)[:-1],
            np.linspace(32, -30, 36)[:-1],
            np.linspace(-30, -58, 22)[:-1],
            np.linspace(-58, rest[-1] + 6, 30)[:-1],
            np.linspace(rest[-1] + 6, rest[-1], 7),
        ]
    )
    return np.interp(-target, -rest, np.arange(len(rest)))


_THETA = _theta()


def head_points(traits: Traits, face: Features, p: Profile) -> np.ndarray:
    """The head's surface (R, C, 3) float32 with the features' relief, head coordinates."""
    index = _rows(p)
    grid = np.arange(len(p.y))
    y, w, c, d = (np.interp(index, grid, v)[:, None] for v in (p.y, p.width, p.centre, p.depth))
    sin, cos = np.sin(_THETA)[None, :], np.cos(_THETA)[None, :]
    x, z = w * sin, c + d * cos
    y = np.broadcast_to(y, x.shape)
    front = (cos[0] > 0.12).nonzero()[0]
    out = np.stack([x, y, z], -1).astype(np.float32)
    fx, fy = out[:, front, 0], out[:, front, 1]
    out[:, front, 2] += relief(traits, face, fx, fy) * step(cos[:, front], 0.12, 0.5)
    return out


def front_point(traits: Traits, face: Features, p: Profile, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the front's surface at head coordinates x, y (N,)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    w, c, d = p.at(y)
    sin = np.clip(x / np.maximum(w, 1e-6), -1, 1)
    cos = np.sqrt(1 - sin * sin)
    z = c + d * cos + relief(traits, face, x, y) * step(cos, 0.12, 0.5)
    return np.stack([x, y, z], -1)


def landmarks(traits: Traits, face: Features, p: Profile) -> np.ndarray:
    """The 68 points (68, 3) in iBUG order, head coordinates."""
    chin = p.y[-1]
    ys = (
        np.interp([0, 1, 2, 3, 4, 5, 6, 7], [0, 8], [-6, chin])
        + np.array([0, 0, 0, 0, 0.5, 1, 2.5, 4]) * (-6 - chin) / 107
    )
    w, c, d = p.at(ys)
    angle = np.radians([86, 85, 84, 82, 80, 78, 74, 66])
    side = np.stack([w * np.sin(angle), ys, c + d * np.cos(angle)], 1)
    tip = front_point(traits, face, p, [0], [chin + 0.8])
    jaw = np.concatenate([side * [-1, 1, 1], tip, side[::-1]])
    ny, nw = face.nose_y, traits.shape["nose_width"]
    nose_y = np.array(
        [2.0, 2 + (ny - 2) * 0.34, 2 + (ny - 2) * 0.68, ny + 1, ny - 7, ny - 8.5, ny - 9.5, ny - 8.5, ny - 7]
    )
    nose_x = np.array([0, 0, 0, 0, 1 - nw, -nw * 0.48, 0, nw * 0.48, nw - 1])
    flat = np.concatenate(
        [
            brow_landmarks(face.brows[0]),
            brow_landmarks(face.brows[1]),
            np.stack([nose_x, nose_y], 1),
            eye_landmarks(face.eyes[0]),
            eye_landmarks(face.eyes[1]),
            mouth_landmarks(face.mouth),
        ]
    )
    return np.concatenate([jaw, front_point(traits, face, p, flat[:, 0], flat[:, 1])])


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix (3, 3) of a head: yaw towards image right, pitch upwards, roll clockwise in the image."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rx = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    rz = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return rz @ ry @ rx


@dataclass(frozen=True)
class Pose:
    """From head coordinates to view space: a rotation about PIVOT, then a shift."""

    matrix: np.ndarray  # (3, 3)
    body: np.ndarray  # (3, 3) of the shoulders
    shift: np.ndarray  # (3,)

    def points(self, p: np.ndarray) -> np.ndarray:
        """Points (..., 3) in head coordinates -> in view space, float32."""
        return ((p - PIVOT) @ self.matrix.T + PIVOT + self.shift).astype(np.float32)

    def normals(self, n: np.ndarray) -> np.ndarray:
        """Directions (..., 3) in head coordinates -> in view space, float32."""
        return (n @ self.matrix.T).astype(np.float32)

    def to_head(self, p: np.ndarray) -> np.ndarray:
        """Points (..., 3) in view space -> in head coordinates."""
        return (p - PIVOT - self.shift) @ self.matrix + PIVOT


def pose(frame: Frame) -> Pose:
    """Place the head so that the middle of the face stays near the middle of the image."""
    matrix = rotation(frame.yaw, frame.pitch, frame.roll)
    body = rotation(0.35 * frame.yaw, 0.0, 0.25 * frame.roll)
    anchor = np.array([0.0, -14.0, 45.0])
    shift = -(matrix @ (anchor - PIVOT) + PIVOT)
    return Pose(matrix, body, np.array([shift[0], shift[1], shift[2]]))


def camera(scene: Scene, size: int) -> Camera:
    """The identity's camera for a raster of size x size pixels."""
    scale = size / scene.span
    middle = (size - 1) / 2
    return Camera(
        middle + scale * scene.offset[0], middle + size * 0.012 + scale * scene.offset[1], scale, scene.distance
    )


def surface_mesh(points: np.ndarray, normals: np.ndarray, occlusion: np.ndarray, place: Pose, wrap: bool) -> Mesh:
    """Mesh of a grid of head points (R, C, 3) with normals, and occlusion (R, C); `wrap` closes its columns."""
    rows, columns = points.shape[:2]
    flat = points.reshape(-1, 3)
    attributes = np.concatenate([flat, place.normals(normals.reshape(-1, 3)), occlusion.reshape(-1, 1)], 1).astype(
        np.float32
    )
    return Mesh(place.points(flat), grid_triangles(rows, columns, wrap), attributes)


def head_mesh(points: np.ndarray, place: Pose) -> Mesh:
    """Mesh of the head surface."""
    return surface_mesh(points, grid_normals(points, True), np.ones(points.shape[:2]), place, True)


def ear_mesh(traits: Traits, p: Profile, side: float, place: Pose) -> Mesh:
    """One ear: a dished, rimmed oval leaning out of the side of the head."""
    s = traits.shape
    r = np.linspace(0, 1, 9)[:, None]
    phi = np.linspace(0, 2 * np.pi, 25)[None, :]
    lobe = 1 - 0.20 * np.exp(-(((phi - 1.5 * np.pi) / 0.8) ** 2))
    a = 4 + 17.5 * r * np.cos(phi) * lobe * s["ear"] * (1 + 0.18 * np.sin(phi))
    b = 31 * r * np.sin(phi) * s["ear"]
    rim = 4.0 * np.exp(-(((r - 0.86) / 0.14) ** 2)) * (0.35 + 0.65 * step(np.cos(phi - 0.7), -0.9, 0.3))
    lift = rim - 4.5 * np.exp(-((r / 0.55) ** 2)) - 6 * np.clip(r - 0.93, 0, 1) / 0.07
    w, c, d = p.at(np.array([-10.0]))
    flare = s["ear_flare"]
    back = np.array([np.sin(flare), 0.06, -np.cos(flare)])
    up = np.array([0.10, 1.0, -0.12])
    out = np.array([np.cos(flare), 0, np.sin(flare)])
    base = np.array([w[0] * 0.985, -11.0, c[0] + d[0] * 0.02])
    points = base + a[..., None] * back + b[..., None] * up + lift[..., None] * out
    points = points * np.array([side, 1, 1])
    if side < 0:  # the mirrored grid faces away from the camera: turn it round
        points = points[:, ::-1]
    points = points.astype(np.float32)
    occlusion = np.broadcast_to(0.50 + 0.50 * step(r, 0.1, 0.85), points.shape[:2])
    normals = grid_normals(points)
    return surface_mesh(points, normals, occlusion, place, False)


# cross-sections of neck and shoulders from top to bottom: y, half width, front z, back z in millimetres
_NECK = np.array(
    [
        (-58, 49, 30, -58),
        (-95, 49, 33, -60),
        (-120, 49.5, 35, -62),
        (-140, 53, 37, -64),
        (-152, 64, 40, -66),
        (-160, 86, 43, -68),
        (-170, 122, 47, -70),
        (-182, 150, 52, -74),
        (-200, 172, 60, -80),
        (-235, 188, 72, -86),
        (-290, 190, 78, -86),
    ],
    np.float64,
)


def torso_mesh(traits: Traits, place: Pose) -> Mesh:
    """Neck and shoulders; the top follows the head, the bottom the body."""
    s = traits.shape
    q = _spline(_NECK, np.linspace(0, len(_NECK) - 1, 44))
    y = q[:, 0]
    w = q[:, 1] * (s["neck"] + (s["shoulder"] - s["neck"]) * step(-y, 140, 185)) * (1 - 0.03 * (1 - s["width"]))
    theta = np.concatenate([np.linspace(-1.45, 1.45, 45), np.linspace(1.45, 2 * np.pi - 1.45, 14)[1:-1]])
    c, d = (q[:, 2] + q[:, 3]) / 2, (q[:, 2] - q[:, 3]) / 2
    x = w[:, None] * np.sin(theta)
    z = c[:, None] + d[:, None] * np.cos(theta)
    yy = np.broadcast_to(y[:, None], x.shape).copy()
    # collar bones, throat, the tendons of the neck
    z = z + 1.8 * np.exp(-(((yy + 158 + 0.12 * np.abs(x)) / 5) ** 2)) * step(np.abs(x), 6, 18) * (np.cos(theta) > 0)
    z = z + 2.6 * s["neck"] * np.exp(-((x / 7) ** 2) - ((yy + 124) / 9) ** 2) * (np.cos(theta) > 0) * traits.masculine
    tendon = 20 + 0.30 * (-150 - yy)
    z = z + 1.6 * np.exp(-(((np.abs(x) - np.clip(tendon, 8, 60)) / 6) ** 2)) * (np.cos(theta) > 0) * step(-yy, 105, 130)
    points = np.stack([x, yy, z], -1).astype(np.float32)
    normals = grid_normals(points, True)
    blend = step(-y, 75, 165)[:, None, None]
    centre = PIVOT + np.array([0, -60, 0])
    points_up = points * np.array([1, 0.94, 1], np.float32)
    head = place.points(points_up)
    base = (centre - PIVOT) @ (0.65 * place.body + 0.35 * place.matrix).T + PIVOT + place.shift
    body = (points_up - centre) @ place.body.T + base
    view = (head + blend * (body - head)).astype(np.float32)
    n = place.normals(normals)
    n = n + blend * (normals @ place.body.T - n)
    n /= np.maximum(np.sqrt((n * n).sum(-1, keepdims=True)), 1e-6)
    attributes = np.concatenate([points.reshape(-1, 3), n.reshape(-1, 3), np.ones((points[..., 0].size, 1))], 1).astype(
        np.float32
    )
    return Mesh(view.reshape(-1, 3), grid_triangles(*points.shape[:2], True), attributes)
