"""Glasses and earrings: shapes placed in space, and drawn over the picture where nothing hides them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars import geometry
from engine.data.avatars.contours import Features
from engine.data.avatars.geometry import Pose, Profile
from engine.data.avatars.identity import Traits
from engine.data.avatars.raster import Camera, Mesh, grid_normals, grid_triangles

_LENS = {
    "round": (22.5, 21.0, 2.1, 2.2),
    "square": (25.5, 17.5, 4.2, 2.5),
    "thin": (25.0, 16.0, 2.8, 1.1),
}  # half width a and half height b in mm, power of the outline (2: an ellipse), thickness of the rim in mm


@dataclass(frozen=True)
class Overlay:
    """Glasses at P pixels of a raster.

    pixels:      (P,) flat indices into the raster.
    frame, lens: (P,) how much of each pixel they cover, 0 to 1.
    u, v:        (P,) where on the lens a pixel lies, in mm from the lens's centre.
    """

    pixels: np.ndarray
    frame: np.ndarray
    lens: np.ndarray
    u: np.ndarray
    v: np.ndarray


def _plane(traits: Traits, face: Features, p: Profile) -> float:
    """The z of the plane that the lenses lie in, head coordinates."""
    return float(geometry.front_point(traits, face, p, [0.0], [-1.0])[0, 2]) + 3.5


def arm_meshes(traits: Traits, face: Features, p: Profile, place: Pose) -> list[Mesh]:
    """The arms of the glasses as ribbons from the frame to the ears, each face a mesh; [] without glasses."""
    if not traits.glasses:
        return []
    a, _, _, rim = _LENS[traits.glasses]
    front, (w, c, _) = _plane(traits, face, p), p.at(np.array([2.0]))
    meshes = []
    for side in (-1.0, 1.0):
        t = np.linspace(0, 1, 10)[None, :]
        x = side * (33 + a + (w[0] + 2.5 - 33 - a) * t**0.7)
        z = front + (c[0] - 12 - front) * t
        y = np.array([[1.0], [-1.0]]) * (1.0 + 0.6 * rim) + 5.0
        points = np.stack(np.broadcast_arrays(x, y, z), -1).astype(np.float32)
        normals = grid_normals(points)
        for order in (slice(None), slice(None, None, -1)):
            mesh = geometry.surface_mesh(points[:, order], normals[:, order], np.ones(points.shape[:2]), place, False)
            meshes.append(Mesh(mesh.vertices, grid_triangles(2, 10), mesh.attributes))
    return meshes


def glasses(
    traits: Traits, face: Features, p: Profile, place: Pose, camera: Camera, depth: np.ndarray
) -> Overlay | None:
    """Rims and lenses where nothing lies in front of them; None without glasses.

    depth: (S, S), z of the picture's surfaces in view space, millimetres.
    """
    if not traits.glasses:
        return None
    size = depth.shape[0]
    a, b, power, rim = _LENS[traits.glasses]
    level = _plane(traits, face, p)
    corners = np.array([(x, y, level) for x in (-62.0, 62.0) for y in (-28.0, 24.0)])
    u, v, _ = camera.project(place.points(corners))
    x0, x1 = max(int(u.min()), 0), min(int(u.max()) + 2, size)
    y0, y1 = max(int(v.min()), 0), min(int(v.max()) + 2, size)
    if x1 <= x0 or y1 <= y0:
        return None
    vv, uu = np.mgrid[y0:y1, x0:x1]
    px, py = camera.plane_points(uu.ravel(), vv.ravel())
    eye = place.to_head(np.array([0.0, 0.0, camera.distance]))
    ray = place.to_head(np.stack([px, py, np.zeros_like(px)], 1)) - eye
    s = (level - eye[2]) / ray[:, 2]
    x, y = eye[0] + s * ray[:, 0], eye[1] + s * ray[:, 1] + 3.5
    pixels = (vv * size + uu).ravel()
    visible = camera.distance * (1 - s) > depth.ravel()[pixels] - 1.0
    pixel = 1 / camera.scale
    lx = np.abs(x) - 33.0
    shape = (np.abs(lx / (a * (1 + 0.05 * np.clip(y / b, -1, 1)))) ** power + np.abs(y / b) ** power) ** (1 / power)
    inner = (1 - shape) * min(a, b)
    edge = np.clip((rim * 0.5 - np.abs(inner)) / pixel + 0.5, 0, 1)
    bridge = np.clip((0.4 + 0.45 * rim - np.abs(y - 6 + 0.03 * x * x)) / pixel + 0.5, 0, 1) * (np.abs(x) < 33.5 - a)
    ends = np.clip((0.4 + 0.5 * rim - np.abs(y - 8.5)) / pixel + 0.5, 0, 1) * (lx > a - 1) * (lx < a + 3.5)
    frame = np.maximum(np.maximum(edge, bridge), ends) * visible
    lens = np.clip(inner / pixel + 0.5, 0, 1) * visible
    keep = np.flatnonzero((frame > 0) | (lens > 0))
    return Overlay(pixels[keep], frame[keep], lens[keep], (lx * np.sign(x))[keep], y[keep])


def earrings(
    traits: Traits, p: Profile, place: Pose, camera: Camera, depth: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each earring that shows, a small ball: its pixels (P,), their coverage (P,) and unit normals (P, 3)."""
    if not traits.earrings:
        return []
    size, balls = depth.shape[0], []
    w, _, _ = p.at(np.array([-40.0]))
    for side in (-1.0, 1.0):
        lobe = place.points(
            np.array([side * (w[0] + 5.0 + 6 * traits.shape["ear_flare"]), -11.0 - 32 * traits.shape["ear"], 0.0])
        )
        u, v, z = camera.project(lobe)
        radius = (2.2 + 1.6 * (traits.hair_seed % 1)) * camera.scale
        x0, x1, y0, y1 = int(u - radius - 1), int(u + radius + 2), int(v - radius - 1), int(v + radius + 2)
        if x0 < 0 or y0 < 0 or x1 >= size or y1 >= size or depth[round(v), round(u)] > z + 14:
            continue
        vv, uu = np.mgrid[y0:y1, x0:x1]
        dx, dy = (uu - u).ravel() / radius, (v - vv).ravel() / radius
        r = np.hypot(dx, dy)
        normal = np.stack([dx, dy, np.sqrt(np.clip(1 - r * r, 0.05, 1))], 1)
        balls.append(((vv * size + uu).ravel(), np.clip((1 - r) * radius + 0.5, 0, 1), normal))
    return balls
