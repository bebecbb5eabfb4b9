"""One avatar as a picture: its geometry is made once, then each look is painted on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars import accessories, geometry, hair, material, paint, shading
from engine.data.avatars.contours import Features, features
from engine.data.avatars.film import finish_game, finish_photo, game_background, photo_background
from engine.data.avatars.identity import Frame, Scene, Traits, frame, generator, scene, traits
from engine.data.avatars.raster import Camera, Surface, join, rasterise
from engine.errors import InputError

HEAD, EAR, TORSO, ARM = 0, 1, 2, 3
LOOKS = ("photo", "game")


@dataclass(frozen=True)
class Drawing:
    """What both looks share: who is drawn and where, which surface shows at each pixel, and the landmarks.

    index:  number of the frame.
    size:   side of the image in pixels; the raster has `factor` times as many.
    face, profile, place: the curves, the head's cross-sections and the pose of this frame.
    body:   what shows of head, ears, torso and arms of the glasses. hair: what shows of the hair, or None.
    """

    seed: int
    identity: int
    index: int
    size: int
    factor: int
    traits: Traits
    scene: Scene
    frame: Frame
    face: Features
    profile: geometry.Profile
    place: geometry.Pose
    camera: Camera
    body: Surface
    part: np.ndarray  # (P,) of HEAD, EAR, TORSO, ARM
    hair: Surface | None
    landmarks: np.ndarray  # (68, 2) float32, pixels of the image


def draw(seed: int, identity: int, index: int, size: int) -> Drawing:
    """Pose the head and find which surface is visible at each pixel of the raster."""
    who, where, how = traits(seed, identity), scene(seed, identity), frame(seed, identity, index)
    factor = 2 if size >= 96 else 3
    raster = size * factor
    face = features(who, how)
    profile = geometry.profile(who, face)
    place = geometry.pose(how)
    camera = geometry.camera(where, raster)
    points = geometry.head_points(who, face, profile)
    meshes = [
        geometry.head_mesh(points, place),
        geometry.torso_mesh(who, place),
    ]
    parts = [HEAD, TORSO]
    if who.hair != "scarf":  # a scarf covers the ears
        meshes += [geometry.ear_mesh(who, profile, side, place) for side in (-1, 1)]
        parts += [EAR, EAR]
    arms = accessories.arm_meshes(who, face, profile, place)
    meshes, parts = meshes + arms, parts + [ARM] * len(arms)
    mesh, source = join(meshes)
    body = rasterise(mesh, camera, raster)
    part = np.array(parts)[source[body.triangle]]
    shell = hair.hair_mesh(who, profile, place, seed, identity)
    top = (
        None
        if shell is None
        else _in_front(rasterise(shell, camera, raster, cull=False, clip=hair.PRESENCE), body, raster)
    )
    u, v, _ = camera.project(place.points(geometry.landmarks(who, face, profile)))
    marks = (np.stack([u, v], 1) + 0.5) / factor - 0.5
    return Drawing(
        seed,
        identity,
        index,
        size,
        factor,
        who,
        where,
        how,
        face,
        profile,
        place,
        camera,
        body,
        part,
        top,
        marks.astype(np.float32),
    )


def _in_front(top: Surface, body: Surface, raster: int) -> Surface:
    """The pixels of `top` that lie in front of `body`."""
    depth = np.full(raster * raster, -1e9, np.float32)
    depth[body.pixels] = body.depth
    keep = np.flatnonzero(top.depth > depth[top.pixels])
    return Surface(top.pixels[keep], top.attributes[keep], top.depth[keep], top.triangle[keep])


def _material(d: Drawing, detail: bool) -> material.Material:
    """What the body's pixels are made of. detail: of the photo look, else of the game look."""
    a = d.body.attributes
    n = a[:, 3:6] / np.maximum(np.sqrt((a[:, 3:6] ** 2).sum(1, keepdims=True)), 1e-6)
    count = len(a)
    m = material.Material(
        a[:, 0].copy(),
        a[:, 1].copy(),
        a[:, 2].copy(),
        n,
        np.empty((count, 3), np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.zeros((count, 3), np.float32),
        1 / d.camera.scale,
        detail,
    )
    rest = np.interp(m.y, d.profile.y[::-1], d.profile.rest[::-1])
    rest = np.where(m.y < d.profile.y[-1], m.y, rest).astype(np.float32)
    material.paint_skin(m, d.traits, d.face, rest)
    torso = np.flatnonzero(d.part == TORSO)
    material.paint_clothes(m, d.traits, torso)
    arm = d.part == ARM
    m.albedo[arm], m.skin[arm], m.gloss[arm] = d.traits.glasses_colour, 0, 0.3
    if detail:
        ear = d.part == EAR
        m.albedo[ear] *= np.array([1.03, 0.88, 0.88]) * (0.45 + 0.55 * a[ear, 6:7])
    # features are painted on the head only: other parts lie too far back for the painters while they work
    hidden = np.flatnonzero(d.part != HEAD)
    z = m.z[hidden].copy()
    m.z[hidden] = -999
    material.paint_beard(m, d.traits, d.face, rest)
    paint.paint_nostrils(m, d.traits, d.face)
    paint.paint_mouth(m, d.traits, d.face, d.place.matrix.T @ np.array([0, 0, 1.0]))
    for brow in d.face.brows:
        paint.paint_brow(m, d.traits, brow)
    gaze, light = paint.gaze_shift(d.frame, d.place), paint.light_in_head(d.scene, d.place)
    for eye in d.face.eyes:
        paint.paint_eye(m, d.traits, d.frame, eye, gaze, light)
    m.z[hidden] = z
    m.normal /= np.maximum(np.sqrt((m.normal**2).sum(1, keepdims=True)), 1e-6)
    return m


def _gain(d: Drawing, skin_light: np.ndarray) -> float:
    """The exposure that gives the face a brightness that follows its skin, as a photographer would choose it.

    skin_light: mean luminance of the lit face.
    """
    bright = float(np.array([0.2126, 0.7152, 0.0722]) @ d.traits.skin)
    return 0.36 * (bright / 0.45) ** 0.55 / max(float(skin_light), 1e-3)


def paint_look(d: Drawing, name: str) -> np.ndarray:
    """The drawing in one look: (size, size, 3) uint8."""
    return _photo(d) if name == "photo" else _game(d)


def _face_level(d: Drawing, m: material.Material, colour: np.ndarray) -> float:
    """Mean luminance of the lit skin of the face. colour: (P, 3) linear light of the body's pixels."""
    core = (d.part == HEAD) & (m.skin > 0.5) & (m.z > 40) & (m.y < 40)
    luminance = colour[core] @ np.array([0.2126, 0.7152, 0.0722])
    return float(luminance.mean()) if luminance.size else 0.3


def _photo(d: Drawing) -> np.ndarray:
    raster = d.size * d.factor
    rng = generator(d.seed, d.identity, 4, d.index)
    image = photo_background(d.scene, generator(d.seed, d.identity, 5), raster).reshape(-1, 3)
    m = _material(d, True)
    depth = np.full(raster * raster, -300.0, np.float32)
    depth[d.body.pixels] = d.body.depth
    known = np.zeros(raster * raster, bool)
    known[d.body.pixels] = True
    if d.hair is not None:
        depth[d.hair.pixels] = d.hair.depth
        known[d.hair.pixels] = True
    occlusion, shadow = shading.occlusion_and_shadow(
        depth.reshape(raster, raster), known.reshape(raster, raster), d.scene, d.camera.scale
    )
    occlusion, shadow = occlusion.reshape(-1), shadow.reshape(-1)
    p = d.body.pixels
    colour = shading.skin_light(
        m.normal,
        m.albedo,
        m.gloss,
        m.skin,
        occlusion[p] * d.body.attributes[:, 6],
        shadow[p],
        d.scene,
        d.traits.melanin,
    )
    gain = _gain(d, _face_level(d, m, colour)) * d.scene.exposure
    image[p] = colour + m.glow / gain
    if d.hair is not None:
        p, a = d.hair.pixels, d.hair.attributes
        fine, broad = hair.strands(d.traits, a[:, 7], a[:, 8])
        if d.traits.hair == "buzz":  # too short for locks
            fine, broad = 0.5 * fine, 0.25 * broad
        n = a[:, :3] / np.maximum(np.sqrt((a[:, :3] ** 2).sum(1, keepdims=True)), 1e-6)
        if d.traits.hair == "scarf":
            fold = np.sin(a[:, 8] / 9 + 0.05 * a[:, 7]) * 0.25
            n = n + np.stack([0 * fold, fold, 0 * fold], 1)
            base = np.broadcast_to(d.traits.cloth, (len(p), 3))
            lit = shading.skin_light(n, base, 0 * fold, 0 * fold, occlusion[p], shadow[p], d.scene, 0.0)
            alpha = np.ones(len(p))
        else:
            grey = d.traits.hair_grey
            base = d.traits.hair_colour * np.exp(0.25 * grey * fine)[:, None]
            lit = shading.hair_light(
                n,
                a[:, 3:6],
                base,
                fine,
                broad,
                occlusion[p],
                shadow[p],
                d.scene,
                0.4 if d.traits.hair == "afro" else 1.0,
            )
            fade = {"buzz": 9.0, "bangs": 2.0}.get(d.traits.hair, 8.0)
            alpha = np.clip(0.15 + (a[:, 6] + 1.8 * fine) / fade, 0, 1)
            if d.traits.hair == "buzz":
                alpha = alpha * np.clip(0.74 + 0.12 * fine, 0, 1)
        bare = np.ones(raster * raster, bool)
        bare[d.body.pixels] = False
        # skin shows through thin hair; the background does not: before it the hair's outline frays into strands
        fray = np.ones(len(p)) if d.traits.hair == "scarf" else np.clip(0.5 + 3.0 * np.abs(n[:, 2]) + 0.3 * fine, 0, 1)
        alpha = np.where(bare[p], fray, alpha)
        image[p] += alpha[:, None] * (lit - image[p])
    gain = _gain(d, _face_level(d, m, colour)) * d.scene.exposure
    _accessories(d, image, depth.reshape(raster, raster), True, gain)
    return finish_photo(image.reshape(raster, raster, 3), gain, d.scene, rng, d.factor)


def _accessories(d: Drawing, image: np.ndarray, depth: np.ndarray, detail: bool, gain: float) -> None:
    """Draw glasses and earrings over the picture `image` (S * S, 3) in linear light, in place."""
    for pixels, cover, normal in accessories.earrings(d.traits, d.profile, d.place, d.camera, depth):
        lit = np.clip(normal @ d.scene.key, 0, 1)
        metal = np.array([0.62, 0.50, 0.26]) * (0.25 + 0.7 * lit + (1.6 * lit**12 if detail else 0))[:, None]
        image[pixels] += cover[:, None] * ((metal if detail else metal * gain) - image[pixels])
    over = accessories.glasses(d.traits, d.face, d.profile, d.place, d.camera, depth)
    if over is None:
        return
    here = image[over.pixels]
    if detail:  # the lens dims what lies behind it a little, and mirrors a soft window
        u, v = over.u * np.sign(d.scene.key[0] or 1.0), over.v
        window = np.clip(1 - np.abs(u + 0.5 * v - 7) / 4.5, 0, 1) + 0.6 * np.clip(
            1 - np.abs(u + 0.5 * v - 16) / 2.0, 0, 1
        )
        sheen = (0.010 + 0.05 * window * d.scene.key_strength) / gain
        here = here * (1 - 0.07 * over.lens)[:, None] + (sheen * over.lens)[:, None]
        shine = 0.65 + 0.5 * np.clip(over.v / 18, -1, 1) * d.scene.key[1]
        frame = d.traits.glasses_colour * shine[:, None] + 0.012
    else:
        frame = d.traits.glasses_colour * 0.9 * gain
    image[over.pixels] = here + over.frame[:, None] * (frame - here)


def _game(d: Drawing) -> np.ndarray:
    raster = d.size * d.factor
    image = game_background(d.scene, raster).reshape(-1, 3)
    m = _material(d, False)
    colour = shading.lambert(m.normal, m.albedo, d.scene)
    gain = _gain(d, _face_level(d, m, colour))
    image[d.body.pixels] = colour * gain
    if d.hair is not None:
        a = d.hair.attributes
        n = a[:, :3] * np.where(a[:, 2:3] < 0, -1, 1)
        base = d.traits.cloth if d.traits.hair == "scarf" else d.traits.hair_colour
        image[d.hair.pixels] = gain * shading.lambert(n, np.broadcast_to(base, n.shape), d.scene)
    depth = np.full(raster * raster, -300.0, np.float32)
    depth[d.body.pixels] = d.body.depth
    if d.hair is not None:
        depth[d.hair.pixels] = d.hair.depth
    _accessories(d, image, depth.reshape(raster, raster), False, gain)
    return finish_game(image.reshape(raster, raster, 3), d.factor)


def render(identity: int, frame: int, look: str, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one avatar.

    identity, frame, seed: 0 or more. Frames of an identity share all but pose, expression and sensor noise.
    look:    "photo" or "game"; both show the same geometry.
    size:    pixels per side, 16 to 1024.
    returns: (size, size, 3) uint8 RGB, and (68, 2) float32 landmarks in iBUG order: x, y in pixels, 0 = centre of the
             first pixel; some may lie outside the picture.
    Raises InputError for values out of range.
    """
    if look not in LOOKS:
        raise InputError(f"unknown look {look!r}: take one of {', '.join(LOOKS)}")
    if min(identity, frame, seed) < 0:
        raise InputError("identity, frame and seed of an avatar must be 0 or more")
    if not 16 <= size <= 1024:
        raise InputError(f"avatars are drawn at 16 to 1024 pixels, not {size}")
    drawing = draw(seed, identity, frame, size)
    return paint_look(drawing, look), drawing.landmarks
