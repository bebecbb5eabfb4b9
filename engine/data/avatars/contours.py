"""Curves of the face in head coordinates: eyelids, brows and lips of one frame.

Head coordinates are millimetres seen from the front: x to image right, y up, z towards the camera, 0 between the eyes.
The same curves cut the drawn features out of the skin and place the landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.avatars.identity import Frame, Traits


@dataclass(frozen=True)
class Eye:
    """The opening of one eye, in millimetres; q runs from -1 at the inner corner to 1 at the outer corner."""

    side: float  # -1 image left, 1 image right
    x: float
    y: float
    half_width: float
    up: float
    low: float
    tilt: float
    skew: float
    openness: float
    crease: float

    def q(self, x: np.ndarray) -> np.ndarray:
        return (x * self.side - self.x) / self.half_width

    def base(self, q: np.ndarray) -> np.ndarray:
        return self.y + self.tilt * q

    def lower(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - q * q, 0, None)
        return self.base(q) - self.low * w * (1 + 0.22 * q) * (0.9 + 0.1 * self.openness)

    def upper(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - np.abs(q) ** 2.3, 0, None)
        shut = self.base(q) - 0.9 * self.low * np.clip(1 - q * q, 0, None) * (1 + 0.22 * q)
        return shut + (self.up + 0.9 * self.low) * w * (1 - self.skew * q) * self.openness


@dataclass(frozen=True)
class Brow:
    """One eyebrow, in millimetres; t runs from 0 at its inner end to 1 at its outer end."""

    side: float
    inner: float
    outer: float
    y: float
    arch: float
    slant: float
    inner_lift: float
    thick: float

    def t(self, x: np.ndarray) -> np.ndarray:
        return (x * self.side - self.inner) / (self.outer - self.inner)

    def middle(self, t: np.ndarray) -> np.ndarray:
        arch = self.arch * np.sin(np.pi * np.clip(t, 0, 1) ** 1.35) - 3.4 * np.clip(t - 0.62, 0, None) ** 2 / 0.144
        return self.y + self.slant * t + arch + self.inner_lift * (1 - t) ** 2

    def half_thickness(self, t: np.ndarray) -> np.ndarray:
        c = np.clip(t, 0, 1)
        return self.thick * (0.72 + 0.9 * c * (1 - c) * 1.3) * (1 - 0.72 * np.clip((c - 0.45) / 0.55, 0, 1) ** 1.2)


@dataclass(frozen=True)
class Mouth:
    """The lips, in millimetres; q runs from -1 at the corner on image left to 1 at the corner on image right."""

    x: float
    y: float
    half_width: float
    lip_upper: float
    lip_lower: float
    bow: float
    curve: float  # how far the corners rise above the middle
    gap_up: float
    gap_low: float

    def q(self, x: np.ndarray) -> np.ndarray:
        return (x - self.x) / self.half_width

    def line(self, q: np.ndarray) -> np.ndarray:
        return self.y + self.curve * (q * q - 0.25)

    def inner_upper(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - q * q, 0, None)
        return (
            self.line(q)
            + self.gap_up * w**0.7
            - 0.5 * np.exp(-((q / 0.16) ** 2))
            + 0.25 * np.exp(-(((np.abs(q) - 0.35) / 0.2) ** 2))
        )

    def inner_lower(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - q * q, 0, None)
        return np.minimum(self.line(q) - self.gap_low * w**0.8, self.inner_upper(q))

    def outer_upper(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - np.abs(q) ** 1.7, 0, None)
        bow = 1 - self.bow * np.exp(-((q / 0.13) ** 2)) + 0.10 * np.exp(-(((np.abs(q) - 0.24) / 0.13) ** 2))
        return self.line(q) + self.gap_up * np.clip(1 - q * q, 0, None) ** 0.7 + self.lip_upper * w * bow

    def outer_lower(self, q: np.ndarray) -> np.ndarray:
        w = np.clip(1 - np.abs(q) ** 2.2, 0, None)
        return self.line(q) - self.gap_low * np.clip(1 - q * q, 0, None) ** 0.8 - self.lip_lower * w


@dataclass(frozen=True)
class Features:
    """All curves of one frame.

    jaw_drop: how far the chin has dropped, in millimetres. smile: the frame's, -0.5 to 1.
    nose_y:   height of the nose's tip.
    """

    eyes: tuple[Eye, Eye]
    brows: tuple[Brow, Brow]
    mouth: Mouth
    jaw_drop: float
    smile: float
    nose_y: float


def features(traits: Traits, frame: Frame) -> Features:
    """The curves of one identity in one frame."""
    s = traits.shape
    smile, sad, gape = max(frame.smile, 0.0), max(-frame.smile, 0.0), frame.mouth_open
    squint = 0.9 * smile
    eyes = tuple(
        Eye(
            side,
            s["eye_x"],
            0.25 * side * s["asymmetry"],
            s["eye_width"],
            s["eye_up"],
            s["eye_low"] - squint,
            s["eye_tilt"],
            s["eye_skew"],
            openness,
            s["lid_crease"],
        )
        for side, openness in ((-1.0, frame.eye_left), (1.0, frame.eye_right))
    )
    lift = 4.0 * max(frame.brow, 0) - 2.6 * max(-frame.brow, 0)
    brows = tuple(
        Brow(
            side,
            s["brow_inner"] - 1.2 * max(-frame.brow, 0),
            s["brow_inner"] + 39.5,
            s["brow_y"] + lift + 0.5 * side * s["asymmetry"],
            s["brow_arch"],
            s["brow_slant"],
            -1.8 * max(-frame.brow, 0) + 2.2 * sad,
            s["brow_thick"],
        )
        for side in (-1.0, 1.0)
    )
    parted = frame.teeth * smile
    drop = 19 * gape + 3.0 * parted
    mouth = Mouth(
        x=0.6 * s["asymmetry"],
        y=s["mouth_y"] + 1.4 * smile - 1.0 * gape,
        half_width=(s["mouth_width"] + 6.0 * smile - 1.2 * sad) * (1 - 0.10 * gape) * (1 - 0.30 * frame.pucker),
        lip_upper=s["lip_upper"] * (1 - 0.24 * smile) * (1 + 0.15 * frame.pucker),
        lip_lower=s["lip_lower"] * (1 - 0.20 * smile) * (1 + 0.15 * frame.pucker),
        bow=s["lip_bow"],
        curve=s["mouth_curve"] + 6.0 * smile - 4.5 * sad - 1.5 * gape,
        gap_up=2.0 * gape + 3.4 * parted,
        gap_low=15 * gape + 4.6 * parted,
    )
    return Features(eyes, brows, mouth, drop, frame.smile, s["nose_y"])


def eye_landmarks(eye: Eye) -> np.ndarray:
    """The six points (6, 2) of an eye's contour in the iBUG order of its side, head coordinates."""
    q = np.array([-1.0, -0.36, 0.36, 1.0])
    if eye.side > 0:  # on image right the order begins at the inner corner
        top, bottom = q, np.array([0.36, -0.36])
    else:
        top, bottom = q[::-1], np.array([-0.36, 0.36])
    upper, lower = eye.upper(top), eye.lower(bottom)
    upper[[0, 3]] = eye.base(top[[0, 3]])
    x = eye.side * (eye.x + eye.half_width * np.concatenate([top, bottom]))
    return np.stack([x, np.concatenate([upper, lower])], 1)


def brow_landmarks(brow: Brow) -> np.ndarray:
    """The five points (5, 2) along a brow from image left to image right, head coordinates."""
    t = np.linspace(0.03, 0.97, 5)
    t = t if brow.side > 0 else t[::-1]
    return np.stack([brow.side * (brow.inner + (brow.outer - brow.inner) * t), brow.middle(t)], 1)


def mouth_landmarks(mouth: Mouth) -> np.ndarray:
    """The twenty points (20, 2) of the mouth, head coordinates.

    Each contour goes from its corner on image left over the top; the outer contour comes first, then the inner one.
    """
    top = np.array([-0.62, -0.25, 0.0, 0.25, 0.62])
    low = np.array([0.62, 0.28, 0.0, -0.28, -0.62])
    q = np.concatenate([[-1], top, [1], low, [-0.9], top[[1, 2, 3]], [0.9], low[[1, 2, 3]]])
    inner = np.array([-0.32, 0.0, 0.32])
    q[13:16], q[17:20] = inner, inner[::-1]
    y = np.empty(20)
    y[[0, 6]] = mouth.line(q[[0, 6]])
    y[1:6], y[7:12] = mouth.outer_upper(q[1:6]), mouth.outer_lower(q[7:12])
    y[12], y[16] = mouth.line(q[12]), mouth.line(q[16])
    y[13:16], y[17:20] = mouth.inner_upper(q[13:16]), mouth.inner_lower(q[17:20])
    return np.stack([mouth.x + mouth.half_width * q, y], 1)
