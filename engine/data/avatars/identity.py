"""Who is drawn and how: the traits of an identity, and the pose and expression of a frame, from seeds alone.

The order in which numbers are drawn from a generator is part of the data set: another order gives other people.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engine.data.avatars.palette import CLOTH, HAIR, IRIS, SKIN, hsv, linear

HAIR_STYLES = (
    "bald",
    "balding",
    "buzz",
    "short",
    "side",
    "quiff",
    "bob",
    "long",
    "bangs",
    "wavy",
    "afro",
    "bun",
    "scarf",
)
_STYLES_MASCULINE = (0.06, 0.10, 0.13, 0.25, 0.20, 0.13, 0.01, 0.03, 0.02, 0.01, 0.05, 0.01, 0.0)
_STYLES_FEMININE = (0.01, 0.0, 0.02, 0.06, 0.05, 0.03, 0.17, 0.20, 0.14, 0.14, 0.06, 0.08, 0.04)


def generator(seed: int, identity: int, stream: int, frame: int = 0) -> np.random.Generator:
    """The only source of randomness: a counter-based generator that four numbers name.

    stream: what is drawn: 0 traits, 1 scene, 2 frames, 3 hair, 4 grain, 5 the photo's background.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, identity, stream, frame])))


@dataclass(frozen=True)
class Traits:
    """What stays the same in all frames of an identity. Lengths are in millimetres, colours (3,) in linear light."""

    masculine: float
    age: float  # years
    melanin: float
    skin: np.ndarray
    ruddy: float
    freckles: float
    shape: dict[str, float]  # proportions of the head and its features; `_shape` has the names
    hair: str
    hair_colour: np.ndarray
    hair_grey: float
    hair_part: float  # radians, where the parting is
    hair_volume: float
    hair_curl: float
    hair_seed: float
    brow_colour: np.ndarray
    iris: np.ndarray
    beard: str  # "", "shadow", "stubble", "moustache", "goatee", "full"
    lip: np.ndarray
    makeup: float
    shadow_colour: np.ndarray
    glasses: str  # "", "round", "square", "thin"
    glasses_colour: np.ndarray
    earrings: bool
    garment: str  # "crew", "v", "shirt", "suit", "scoop"
    cloth: np.ndarray
    cloth_second: np.ndarray
    texture_offset: np.ndarray  # (2,) texels


@dataclass(frozen=True)
class Scene:
    """Light, camera and background of an identity, the same in all its frames."""

    key: np.ndarray  # (3,) unit vector towards the light, view space
    key_colour: np.ndarray
    key_strength: float
    sky: np.ndarray
    ground: np.ndarray
    rim: np.ndarray  # (3,) colour of the light from behind
    softness: float
    background: np.ndarray  # (4, 3) linear colours
    bokeh: float
    span: float  # millimetres across the image
    distance: float
    offset: np.ndarray  # (2,) millimetres
    white_balance: np.ndarray
    exposure: float
    grain: float
    vignette: float
    blur: float


@dataclass(frozen=True)
class Frame:
    """Pose in radians and expression amounts of one frame."""

    yaw: float
    pitch: float
    roll: float
    mouth_open: float  # 0 closed .. 1 wide
    smile: float  # -0.5 sad .. 1 broad
    teeth: float  # lips parted over the teeth, 0 .. 1
    pucker: float
    brow: float  # -1 frown .. 1 raised
    eye_left: float  # openness 0 .. 1.15, image left
    eye_right: float
    gaze: tuple[float, float]  # radians, right and up in view of the camera


def _shape(rng: np.random.Generator, masculine: float, age: float, melanin: float, makeup: float) -> dict[str, float]:
    n = rng.standard_normal
    m = masculine - 0.5
    old = max(age - 45, 0) / 35
    fat = float(np.clip(n() * 0.8, -1.6, 2.0))
    s = {
        "width": 1 + 0.035 * n() + 0.03 * m + 0.025 * fat,
        "length": 1 + 0.04 * n() + 0.02 * m,
        "cranium": 1 + 0.03 * n(),
        "depth": 1 + 0.03 * n(),
        "jaw": float(np.clip(1 + 0.04 * n() + 0.10 * m + 0.04 * fat, 0.9, 1.13)),
        "chin_width": float(np.clip(1 + 0.12 * n() + 0.26 * m + 0.06 * fat, 0.7, 1.4)),
        "chin_length": 3.0 * n() + 5.0 * m,
        "chin_forward": 2.2 * n() + 2.5 * m - 0.5,
        "cheekbone": 2.2 + 1.4 * n() - 1.2 * m,
        "cheek": 1.5 * fat + 0.8 * n(),
        "brow_ridge": max(2.2 + 1.0 * n() + 3.4 * m, 0.0),
        "socket": 7.0 + 1.2 * n() + 1.4 * m,
        "eye_x": 31.5 + 1.3 * n() + 0.5 * m,
        "eye_width": 15.9 + 0.7 * n() - 0.8 * m + 0.5 * makeup,
        "eye_up": 6.2 + 0.7 * n() - 1.2 * m - 0.8 * old,
        "eye_low": 4.3 + 0.4 * n(),
        "eye_tilt": 1.0 + 1.2 * n() - 0.8 * m - 0.8 * old,
        "eye_skew": 0.16 + 0.10 * n(),
        "lid_crease": float(np.clip(4.2 + 1.3 * n() - 1.4 * old, 1.2, 6.5)),
        "brow_y": 17.0 + 1.5 * n() - 4.0 * m,
        "brow_arch": float(np.clip(3.2 + 1.3 * n() - 3.0 * m, 0.5, 6)),
        "brow_slant": 1.6 + 1.5 * n(),
        "brow_thick": float(np.clip(2.5 + 0.5 * n() + 1.8 * m - 0.5 * makeup, 1.2, 4.4)),
        "brow_inner": 13.0 + 1.6 * n() - 1.5 * m,
        "nose_y": -43.0 - 2.0 * n() - 1.5 * m,
        "nose_length": 21.0 + 2.2 * n() + 2.6 * m,
        "nose_width": 15.6 + 1.3 * n() + 2.2 * m + 4.0 * (melanin - 0.35),
        "nose_bridge": 7.0 + 1.8 * n() + 2.6 * m - 5.0 * (melanin - 0.35),
        "nose_hump": 0.8 * n() + 0.6 * m,
        "nose_tip": 1.6 * n() - 1.2 * m,
        "nose_ball": 8.2 + 0.8 * n() + 0.8 * m + 1.2 * (melanin - 0.35),
        "mouth_y": -71.0 + 1.6 * n() - 0.6 * m,
        "mouth_width": 25.5 + 1.7 * n() + 1.4 * m,
        "lip_upper": float(np.clip(6.6 + 1.1 * n() - 1.6 * m + 2.6 * (melanin - 0.4) - 1.6 * old, 3.0, 11)),
        "lip_lower": float(np.clip(9.2 + 1.3 * n() - 1.8 * m + 2.6 * (melanin - 0.4) - 1.6 * old, 4.5, 14)),
        "lip_bow": 0.22 + 0.08 * n(),
        "mouth_curve": 1.4 + 0.9 * n(),
        "ear": 1 + 0.07 * n() + 0.04 * m + 0.08 * old,
        "ear_flare": 0.52 + 0.12 * n(),
        "neck": 1 + 0.05 * n() + 0.22 * m + 0.05 * fat,
        "shoulder": 1 + 0.05 * n() + 0.16 * m,
        "asymmetry": 0.6 * n(),
        "fat": fat,
        "old": old,
    }
    return {k: float(v) for k, v in s.items()}


@lru_cache(maxsize=16)
def traits(seed: int, identity: int) -> Traits:
    """The traits of one identity."""
    rng = generator(seed, identity, 0)
    n, r = rng.standard_normal, rng.random
    masculine = float(np.clip((0.85 if r() < 0.5 else 0.15) + 0.12 * n(), 0, 1))
    man = masculine > 0.5
    age = float(np.clip(18 + 62 * rng.beta(1.5, 2.2), 18, 80))
    melanin = float(np.clip(rng.beta(1.15, 1.35), 0.01, 0.99))
    place = melanin * (len(SKIN) - 1)
    low = min(int(place), len(SKIN) - 2)
    skin = linear(SKIN[low] + (place - low) * (SKIN[low + 1] - SKIN[low]))
    skin = skin * np.exp(np.array([0.03, 0.0, -0.05]) * n() + 0.06 * n())
    makeup = 0.0 if man else float(np.clip(r() * 1.5 - 0.35, 0, 1))
    shape = _shape(rng, masculine, age, melanin, makeup)

    style = HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=np.array(_STYLES_MASCULINE if man else _STYLES_FEMININE))]
    if style == "afro" and melanin < 0.45:
        style = "wavy" if not man else "short"
    if style == "balding" and age < 34:
        style = "short"
    fair = np.clip(0.55 - melanin, 0, 0.55)
    names = ("black", "dark brown", "brown", "light brown", "blond", "platinum", "red", "dyed")
    weight = np.array(
        [
            0.25 + 1.4 * melanin,
            0.35,
            0.9 * fair,
            0.8 * fair,
            1.0 * fair,
            0.25 * fair,
            0.35 * fair,
            0.0 if man else 0.035,
        ]
    )
    name = names[rng.choice(len(names), p=weight / weight.sum())]
    grey = float(np.clip((age - 42) / 26 + 0.25 * n(), 0, 1)) if age > 38 and (man or r() < 0.55) else 0.0
    colour = linear(HAIR[name]) * np.exp(0.16 * n())
    silver = linear(HAIR["white"] if age > 66 else HAIR["grey"])
    hair_colour = (colour + grey * (silver - colour)).astype(np.float32)
    # one exposure serves skin and hair: keep silver hair below white on dark skin
    hair_colour = hair_colour * min(1.0, (0.10 + 0.62 * float(skin.mean())) / max(float(hair_colour.max()), 1e-3))
    natural = linear(HAIR["dark brown"]) if name in ("dyed", "platinum") else colour
    brow_colour = natural * 0.75 + 0.35 * grey * (silver - natural)
    # light brows vanish on light skin: keep them readable
    brow_colour = np.minimum(brow_colour, skin * (0.42 - 0.18 * melanin))

    dark_eye = np.clip(melanin * 2.2 - 0.1 + (0.3 if name in ("black", "dark brown") else 0), 0, 0.97)
    iris = linear(IRIS[rng.integers(0, 2) if r() < dark_eye else rng.integers(1, len(IRIS))]) * np.exp(0.15 * n())
    beard = ""
    if man:
        beard = str(
            rng.choice(["", "shadow", "stubble", "moustache", "goatee", "full"], p=[0.22, 0.26, 0.18, 0.06, 0.09, 0.19])
        )
    pink = linear((196, 108, 104)) * (1 - melanin) + linear((120, 62, 58)) * melanin
    lip = 0.45 * pink + 0.55 * skin * np.array([0.84, 0.60, 0.60])
    stick = linear(((176, 40, 52), (190, 84, 92), (140, 34, 60), (196, 104, 88), (108, 30, 40))[rng.integers(5)])
    lip = lip + makeup * 0.62 * (stick * (0.4 + 0.6 * skin.mean() / 0.5) - lip)
    shade = linear(((70, 46, 40), (96, 70, 92), (50, 50, 60), (120, 76, 58), (60, 84, 92))[rng.integers(5)])
    glasses = str(rng.choice(["round", "square", "thin"])) if r() < 0.16 + 0.14 * (age > 50) else ""
    frame_colour = linear(
        ((18, 16, 16), (58, 34, 22), (120, 112, 104), (150, 120, 70), (90, 20, 26), (30, 44, 80))[rng.integers(6)]
    )
    garment = str(
        rng.choice(["crew", "v", "shirt", "suit"], p=[0.34, 0.14, 0.24, 0.28])
        if man
        else rng.choice(["crew", "v", "shirt", "scoop"], p=[0.3, 0.25, 0.15, 0.3])
    )
    cloth = linear(CLOTH[rng.integers(len(CLOTH))]) * np.exp(0.12 * n())
    if garment == "suit":
        cloth = linear(((26, 28, 36), (36, 42, 62), (60, 60, 64), (20, 20, 22))[rng.integers(4)])
    second = linear(((140, 24, 32), (30, 50, 110), (40, 90, 70), (90, 60, 110), (170, 130, 40))[rng.integers(5)])
    return Traits(
        masculine=masculine,
        age=age,
        melanin=melanin,
        skin=skin.astype(np.float32),
        ruddy=float(np.clip(0.5 + 0.35 * n(), 0, 1.3)),
        freckles=float(r()) if melanin < 0.4 and r() < (0.6 if name == "red" else 0.14) else 0.0,
        shape=shape,
        hair=style,
        hair_colour=hair_colour,
        hair_grey=grey,
        hair_part=float(rng.choice([-1, 1]) * (0.25 + 0.35 * r())),
        hair_volume=float(np.clip(1 + 0.25 * n(), 0.5, 1.7)),
        hair_curl=float(np.clip(r() * 1.4 - 0.3 + 0.4 * (style == "wavy"), 0, 1)),
        hair_seed=float(r() * 256),
        brow_colour=brow_colour.astype(np.float32),
        iris=iris.astype(np.float32),
        beard=beard,
        lip=lip.astype(np.float32),
        makeup=makeup,
        shadow_colour=shade,
        glasses=glasses,
        glasses_colour=frame_colour,
        earrings=(not man) and r() < 0.4 and style != "scarf",
        garment=garment,
        cloth=cloth.astype(np.float32),
        cloth_second=second,
        texture_offset=rng.random(2) * 256,
    )


@lru_cache(maxsize=16)
def scene(seed: int, identity: int) -> Scene:
    """Light, camera and background of one identity."""
    rng = generator(seed, identity, 1)
    n, r = rng.standard_normal, rng.random
    azimuth = float(np.clip(0.62 * n(), -1.25, 1.25))
    elevation = float(np.clip(0.55 + 0.24 * n(), 0.05, 1.1))
    key = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    warmth = float(np.clip(0.5 * n(), -1, 1))
    key_colour = np.array([1 + 0.10 * warmth, 1.0, 1 - 0.16 * warmth])
    contrast = r()
    ambient = 0.52 - 0.30 * contrast
    cool = 0.5 * n()
    sky = ambient * np.array([1 - 0.05 * cool, 1.0, 1 + 0.08 * cool])
    ground = sky * np.array([0.74, 0.64, 0.57])
    hue, kind = r(), r()
    base = linear(hsv(hue, 0.04 + 0.30 * r() ** 1.5, 0.22 + 0.62 * r()))
    if kind < 0.3:  # studio grey
        base = linear(np.full(3, 60 + 165 * r()))
    other = linear(hsv(hue + 0.12 * n(), 0.06 + 0.30 * r(), 0.2 + 0.6 * r()))
    accent = linear(hsv(r(), 0.2 + 0.6 * r(), 0.4 + 0.6 * r()))
    background = np.stack([base, 0.55 * base + 0.45 * other, other * 0.7, accent])
    rim = (0.5 * r() if r() < 0.5 else 0.0) * np.array([1.0, 1.0, 1.0 + 0.2 * n()])
    f = np.float32
    return Scene(
        key=key.astype(f),
        key_colour=key_colour.astype(f),
        key_strength=0.62 + 0.5 * contrast,
        sky=sky.astype(f),
        ground=ground.astype(f),
        rim=rim.astype(f),
        softness=float(r()),
        background=background.astype(f),
        bokeh=float(r()) if kind > 0.45 else 0.0,
        span=float(286 + 9 * np.clip(n(), -1.6, 1.6)),
        distance=float(900 + 500 * r()),
        offset=np.clip(2.5 * rng.standard_normal(2), -6, 6),
        white_balance=np.exp(np.array([0.05, 0.0, -0.06]) * np.clip(n(), -1.6, 1.6)),
        exposure=float(np.exp(0.12 * np.clip(n(), -2, 2))),
        grain=float(0.002 + 0.006 * r()),
        vignette=float(0.28 * r()),
        blur=float(0.12 + 0.25 * r()),
    )


def frame(seed: int, identity: int, index: int) -> Frame:
    """Pose and expression of one frame: a base drawn for the identity, and slow waves along its clip."""
    rng = generator(seed, identity, 2)
    n, r = rng.standard_normal, rng.random
    base = {
        "yaw": float(np.clip(0.20 * n(), -0.52, 0.52)),
        "pitch": float(np.clip(0.09 * n() + 0.01, -0.24, 0.24)),
        "roll": float(np.clip(0.045 * n(), -0.14, 0.14)),
        "mouth_open": float(0.25 + 0.75 * r()) if r() < 0.12 else 0.0,
        "smile": float(np.clip(0.34 + 0.42 * n(), -0.45, 1.0)),
        "teeth": 0.0,
        "pucker": float(0.8 * r()) if r() < 0.06 else 0.0,
        "brow": float(np.clip(0.35 * n(), -1, 1)),
        "open": float(np.clip(1.0 + 0.06 * n(), 0.8, 1.12)),
        "gaze_x": 0.0,
        "gaze_y": 0.0,
    }
    if base["smile"] > 0.45 and r() < 0.7:
        base["teeth"] = float(0.4 + 0.6 * r())
    look_away = r() < 0.25
    gaze = 0.20 * rng.standard_normal(2) if look_away else 0.02 * rng.standard_normal(2)
    blink_at = 3 + 9 * r()
    amplitude = {
        "yaw": 0.5,
        "pitch": 0.18,
        "roll": 0.1,
        "mouth_open": 0.6,
        "smile": 0.35,
        "teeth": 0.3,
        "pucker": 0.1,
        "brow": 0.4,
        "open": 0.04,
        "gaze_x": 0.12,
        "gaze_y": 0.06,
    }
    value = {}
    for name, start in base.items():
        period, phase, slow = 11 + 9 * r(), 2 * np.pi * r(), amplitude[name] * (0.4 + 0.6 * r())
        value[name] = start + slow * (np.sin(2 * np.pi * index / period + phase) - np.sin(phase))
    # the first frame has its eyes open in 49 identities of 50; later frames of a clip blink now and then
    shut = (
        1.0 if r() < 0.02 and index == 0 else float(np.exp(-(((index % 14) - blink_at) ** 2) / 0.7)) if index else 0.0
    )
    smile = float(np.clip(value["smile"], -0.5, 1.0))
    lid = value["open"] * (1 - 0.16 * max(smile, 0)) + 0.12 * max(value["brow"], 0)
    wink = 0.05 * n()
    return Frame(
        yaw=float(np.clip(value["yaw"], -0.54, 0.54)),
        pitch=float(np.clip(value["pitch"], -0.28, 0.28)),
        roll=float(np.clip(value["roll"], -0.16, 0.16)),
        mouth_open=float(np.clip(value["mouth_open"], 0, 1)),
        smile=smile,
        teeth=float(np.clip(value["teeth"], 0, 1)) if smile > 0.1 else 0.0,
        pucker=float(np.clip(value["pucker"], 0, 1)),
        brow=float(np.clip(value["brow"], -1, 1)),
        eye_left=float(np.clip((lid + wink) * (1 - shut), 0.03, 1.2)),
        eye_right=float(np.clip((lid - wink) * (1 - shut), 0.03, 1.2)),
        gaze=(
            float(np.clip(gaze[0] + value["gaze_x"], -0.5, 0.5)),
            float(np.clip(gaze[1] + value["gaze_y"], -0.3, 0.3)),
        ),
    )
