"""Hair: a shell over the skull. Its thickness and outline make the style; where it is thin it sinks into the skin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars.geometry import Pose, Profile
from engine.data.avatars.identity import Traits, generator
from engine.data.avatars.noise import sample, texture
from engine.data.avatars.raster import Mesh, grid_normals, grid_triangles
from engine.data.avatars.shapes import step

# columns of a hair mesh's attributes: normal (3), tangent of the strands (3), presence, then the strand coordinate, the
# length coordinate and the shell's thickness, all in mm; hair grows where presence is positive
PRESENCE = 6


@dataclass(frozen=True)
class Style:
    """The numbers of one hair style. Lengths are in millimetres.

    top, side, back: thickness of the shell there.
    forehead:        height of the hairline at the forehead. recess: how far it recedes at the temples.
    """

    top: float
    side: float
    back: float
    forehead: float
    recess: float
    length: float  # lowest y of the hair behind the ears
    curtain: float  # half angle in degrees of the opening of long hair; 0 for short hair
    flare: float = 0.0
    wave: float = 0.0
    lumps: float = 1.0
    sweep: float = 0.0  # how far the parting's far side hangs over the forehead
    taper: float = 10.0
    front: float = 0.0  # extra thickness over the forehead


_STYLES = {
    "balding": Style(3.0, 9.0, 9.0, 112, 0, -62, 0, taper=8),
    "buzz": Style(2.4, 1.6, 2.0, 66, 10, -58, 0, taper=8, lumps=0.1),
    "short": Style(11.0, 5.0, 8.0, 65, 9, -62, 0, lumps=1.0, front=5.0, taper=15),
    "side": Style(15.0, 6.0, 9.0, 66, 8, -62, 0, lumps=1.1, sweep=13.0, front=6.0, taper=13),
    "quiff": Style(20.0, 4.5, 8.0, 66, 9, -60, 0, lumps=1.4, front=12.0, taper=10.0),
    "bob": Style(12.0, 14.0, 15.0, 68, 4, -104, 60, flare=5.0, lumps=0.9, sweep=22.0),
    "long": Style(10.0, 12.0, 15.0, 69, 4, -250, 60, flare=9.0, lumps=0.9, sweep=14.0),
    "bangs": Style(12.0, 14.0, 15.0, 27, -6, -200, 62, flare=8.0, lumps=0.7, taper=5.0),
    "wavy": Style(14.0, 17.0, 19.0, 68, 4, -230, 60, flare=14.0, wave=3.5, lumps=2.0, sweep=16.0),
    "afro": Style(36.0, 32.0, 34.0, 58, 3, -60, 82, lumps=2.6, taper=20.0),
    "bun": Style(5.0, 3.0, 5.0, 65, 6, -55, 0, lumps=0.4, taper=9.0),
    "scarf": Style(8.0, 11.0, 14.0, 54, -12, -175, 57, flare=4.0, lumps=0.5, taper=6.0),
}


def _angles() -> np.ndarray:
    front = np.linspace(-1.35, 1.35, 109)
    side = np.linspace(1.35, 2.2, 16)[1:]
    return np.concatenate([front, side, np.linspace(2.2, 2 * np.pi - 2.2, 18)[1:-1], 2 * np.pi - side[::-1]])


_THETA = _angles()


def _hairline(traits: Traits, style: Style, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,), the lowest y of the hair at each column angle theta (N,), radians from -pi to pi."""
    a = np.abs(np.degrees(theta))
    f, recess = (
        style.forehead,
        style.recess * (0.6 + 0.5 * traits.masculine + 0.8 * traits.shape["old"] * traits.masculine),
    )
    if traits.hair == "balding":
        short = (
            [0, 34, 52, 63, 74, 84, 108, 116, 128, 150, 180],
            [112, 104, 64, 32, -14, 6, 8, -8, -34, style.length, style.length],
        )
    else:
        short = (
            [0, 20, 36, 46, 55, 64, 71, 78, 85, 108, 116, 128, 150, 180],
            [
                f,
                f - 1 + 0.4 * recess,
                f - 5 + recess,
                f - 15 + 0.9 * recess,
                36,
                22,
                4,
                -16,
                8,
                10,
                -8,
                -32,
                style.length,
                style.length,
            ],
        )
    y = np.interp(a, *short)
    if style.curtain:
        if traits.hair == "bangs":
            y = np.interp(a, [0, 40, 60], [f, f + 2, f - 2])
        elif traits.hair == "afro":
            y = np.interp(a, [0, 30, 52, 64, 76, 90, 180], [f, f + 2, f - 8, 16, -30, -52, -62])
        elif traits.hair == "scarf":
            y = np.interp(a, [0, 25, 45, 70], [f, f + 1, f - 8, f - 40])
        else:
            # parted: an arch that falls from the parting to both sides, more slowly on the side where more hair lies
            off = np.degrees(theta - traits.hair_part)
            away = np.where(off * traits.hair_part > 0, np.abs(off) * 1.25, np.abs(off) * 0.92)
            y = f + 4 - np.interp(away, [0, 8, 22, 38, 52, 66, 85], [0, 2, 8, 19, 36, 62, 100])
    if style.sweep and not style.curtain:  # hair falls from the parting over the far side of the forehead
        far = np.sign(-traits.hair_part)
        across = np.clip((theta * far + abs(traits.hair_part)) / 1.35, 0, 1)
        y = np.where(a < 75, y - style.sweep * np.sin(np.pi * across**1.2) * 0.9, y)
    jag = np.convolve(rng.standard_normal(len(theta) + 4), [0.15, 0.25, 0.3, 0.25, 0.15], "valid")
    rough = 0.3 if traits.hair in ("buzz", "scarf") else 2.2 if traits.hair == "bangs" else 1.4
    return y + rough * jag


def hair_mesh(traits: Traits, p: Profile, place: Pose, seed: int, identity: int) -> Mesh | None:
    """The shell of the identity's style in view space, or None for a bald head."""
    style = _STYLES.get(traits.hair)
    if style is None:
        return None
    rng = generator(seed, identity, 3)
    theta = np.where(np.pi < _THETA, _THETA - 2 * np.pi, _THETA)
    crown, volume = p.y[0], traits.hair_volume
    down = np.concatenate(
        [
            np.linspace(0, 3, 4)[:-1],
            np.linspace(3, 60, 22)[:-1],
            np.linspace(60, 115, 26)[:-1],
            np.linspace(115, 190, 22),
        ]
    )
    end = crown - style.length + 4
    if end > 192:
        down = np.concatenate([down[:-1], np.linspace(190, end, 18)])
    y = crown - down[down <= max(end, 60)]
    # below the ears the shell hangs instead of following the jaw
    hang = 12 + 9 * np.logaddexp(0, (y - 12) / 9) if style.curtain and traits.hair != "afro" else np.maximum(y, -58.0)
    w, c, d = p.at(hang)
    fall = np.clip(12 - y, 0, None) if style.curtain else np.zeros_like(y)
    w = w + style.flare * np.sin(np.clip(fall / 110, 0, 1) * np.pi * 0.75) - 0.045 * np.clip(fall - 100, 0, None)
    if style.curtain:
        d = d - 0.10 * np.clip(fall, 0, 100)
    if traits.hair == "scarf":
        w = w - 0.16 * np.clip(fall, 0, 130)
    sin, cos = np.sin(theta)[None], np.cos(theta)[None]
    yy = np.broadcast_to(y[:, None], (len(y), len(theta)))
    base = np.stack([w[:, None] * sin, yy, c[:, None] + d[:, None] * cos], -1)
    normal = grid_normals(base, True)

    presence = yy - _hairline(traits, style, theta, rng)[None]
    if style.curtain and traits.hair != "afro":  # the front edge of hanging hair follows an angle, not a height
        opening = style.curtain + 6 * np.clip((-20 - yy) / 80, 0, 1)
        edge = (
            np.degrees(np.abs(theta))[None]
            - opening
            + 2.0 * sample(texture(3, 10, 5), theta[None] * 8, yy * 0.12 + traits.hair_seed)
        )
        jag = 5.0 * sample(texture(1.5, 8, 13), theta[None] * 20, yy * 0 + traits.hair_seed)
        presence = np.minimum(np.maximum(presence, edge * 1.3), yy - style.length - jag)
    up = np.clip(normal[..., 1], 0, 1)
    behind = step(-cos, 0.0, 0.8)
    thick = style.side + (style.back - style.side) * behind + (style.top - style.side) * up**0.8
    ahead = step(cos, 0.35, 0.85)
    thick = thick + style.front * ahead * np.exp(-(((yy - 78) / 20) ** 2))
    lumps = sample(texture(10, 10, 6), theta[None] * 14 + traits.hair_seed, yy * 0.35) * style.lumps
    clumps = sample(texture(2.2, 14, 7), theta[None] * 22 + traits.hair_seed, yy * 0.22) * style.lumps
    if style.wave:
        lumps = lumps + style.wave * np.sin(yy / 11 + 2.5 * np.sin(theta[None] * 2.0 + traits.hair_seed)) * step(
            -yy, -60, 20
        )
    thick = (thick * volume + lumps + 0.5 * clumps) * 1.0
    thick = np.maximum(thick, 1.2)
    rise = np.clip(presence / style.taper, 0, 1)
    lies_flat = step(cos, 0.2, 0.5) if traits.hair not in ("bangs", "scarf") else 0.0
    shell = thick * (rise**0.7 + lies_flat * (step(presence, -1, 1.5 * style.taper) - rise**0.7))
    if traits.hair in ("bangs", "scarf"):
        shell = np.maximum(shell, np.where(presence > 0, 4.5, 0))
    shell = shell + np.minimum(presence, 0) * 0.25 + 0.6
    points = (base + normal * shell[..., None]).astype(np.float32)
    normals = grid_normals(points, True)
    tangent = np.empty_like(points)
    tangent[1:-1] = points[2:] - points[:-2]
    tangent[0], tangent[-1] = tangent[1], tangent[-2]
    tangent /= np.maximum(np.sqrt((tangent * tangent).sum(-1, keepdims=True)), 1e-6)

    # strands run from the parting; on top they fan out from it
    fan = np.arctan2(points[..., 0], points[..., 2] + 40) * 85
    if style.sweep:
        px = 55 * np.sin(traits.hair_part)
        fan = np.abs(fan - px * step(yy, 0, 90)) + 0.7 * np.clip(yy - 5, 0, 72) * step(cos, -0.7, 0.2)
    flat = points.reshape(-1, 3)
    attributes = np.concatenate(
        [
            place.normals(normals.reshape(-1, 3)),
            place.normals(tangent.reshape(-1, 3)),
            presence.reshape(-1, 1) - 1.2,
            fan.reshape(-1, 1),
            yy.reshape(-1, 1),
            np.maximum(shell, 0).reshape(-1, 1),
        ],
        1,
    ).astype(np.float32)
    mesh = Mesh(place.points(flat), grid_triangles(len(y), len(theta), True), attributes)
    return _with_bun(traits, place, mesh) if traits.hair == "bun" else mesh


def _with_bun(traits: Traits, place: Pose, mesh: Mesh) -> Mesh:
    """Add a knot of hair on top of the head."""
    a, b = np.linspace(0, np.pi, 14)[:, None], np.linspace(0, 2 * np.pi, 29)[None, :-1]
    unit = np.stack([np.sin(a) * np.sin(b), np.cos(a) * np.ones_like(b), np.sin(a) * np.cos(b)], -1)
    points = (unit * np.array([27, 21, 25]) * (0.85 + 0.2 * traits.hair_volume) + np.array([0, 124, -32])).astype(
        np.float32
    )
    normals = grid_normals(points, True)
    tangent = np.stack([np.cos(b) * np.ones_like(a), np.zeros_like(a * b), -np.sin(b) * np.ones_like(a)], -1)
    extra = np.concatenate(
        [
            place.normals(normals.reshape(-1, 3)),
            place.normals(tangent.reshape(-1, 3)),
            np.full((points[..., 0].size, 1), 20.0),
            (a * 40 + 8 * np.sin(b)).reshape(-1, 1),
            (b * 30 + 0 * a).reshape(-1, 1),
            np.full((points[..., 0].size, 1), 8.0),
        ],
        1,
    ).astype(np.float32)
    triangles = np.concatenate([mesh.triangles, grid_triangles(*points.shape[:2], True) + len(mesh.vertices)])
    return Mesh(
        np.concatenate([mesh.vertices, place.points(points.reshape(-1, 3))]),
        triangles,
        np.concatenate([mesh.attributes, extra]),
    )


def strands(traits: Traits, across: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pattern of strands: fine lines and broad locks, each of unit variance.

    across, along: the strand coordinate and the length coordinate, in mm, any shape.
    """
    curl = traits.hair_curl
    if traits.hair in ("afro", "buzz"):
        fine = sample(texture(1.1, 1.1, 8), across * 0.9, along * 0.9)
        return fine, sample(texture(3, 3, 9), across * 0.7, along * 0.7)
    bend = across + (1.0 + 5.0 * curl) * sample(texture(8, 8, 10), across * 0.25 + traits.hair_seed, along * 0.25)
    fine = sample(texture(0.8, 18, 11), bend * 0.85 + traits.hair_seed, along * 0.5)
    return fine, sample(texture(2.0, 26, 12), bend * 0.45 + traits.hair_seed, along * 0.35)
