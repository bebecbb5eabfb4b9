"""Reads the landmarks that drive a face from a data set, .pts files or an array, in pixels of the network's square."""

import difflib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.decoding.plain_images import BadImage, inspect
from engine.data.decoding.stored_squares import unlike_displayed
from engine.data.landmarks import POINTS
from engine.data.layouts.landmark_video import crop_square
from engine.data.layouts.listing import Listing
from engine.data.layouts.manifest import MANIFEST
from engine.data.layouts.names import frame_order, last_number, natural_order
from engine.data.layouts.pts import is_pts_name, parse_points
from engine.data.layouts.sources import FolderSource, Source, open_source
from engine.data.layouts.tables import MAX_ARRAY_BYTES, MAX_TABLE_BYTES, as_text, is_table_name, parse_array, read_text
from engine.data.layouts.which_layout import list_images
from engine.errors import InputError
from engine.host.input_files import UnreadableFile, read_input
from engine.host.terminal import printable
from engine.inference import pictures

_ANYWHERE = 1 << 30  # width and height of an assumed frame, so large that no crop reaches its border


@dataclass(frozen=True)
class Driving:
    """The landmarks of one clip's frames.

    name:   of the clip
    points: (F, K, 2) float32, x and y in pixels of the network's square; NaN is a missing point
    """

    name: str
    points: np.ndarray


def read_driving(path: Path, clip: str | None, points: int, resolution: int, fit: str) -> Driving:
    """The landmarks of one clip, in pixels of the network's square.

    path:   a data set (folder or zip) with `points` landmarks for each image, whose frames `fit` places in the square;
            a folder of .pts files, each framed around its landmarks as landmark videos are; a .npy array
            (F, points, 2) in pixels of a square of side `resolution`, or a folder of .npy files of its frames.
            Files are frames in the order of the numbers in their names
    clip:   the name of a clip in `path`; None takes the longest
    Raises InputError; for an unknown clip the error names clips that exist.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npy":
        if clip is not None:
            raise InputError(f"--clip chooses from a folder; {path} is one clip")
        return Driving(path.stem, read_array(path, points))
    if path.is_file() and path.suffix.lower() != ".zip":
        raise InputError(
            f"{path} has no landmarks: give a folder with landmarks, a folder of .pts files or a .npy array"
        )
    source = open_source(path)
    files = source.files()
    for name, why in source.passed_over:
        print(f"kiln reenact: note: {printable(name)}: {why}", file=sys.stderr)
    annotations = [name for name in files if is_pts_name(name)]
    if annotations and points == POINTS:
        name, frames = _choose(_by_video(annotations), clip, path)
        frames = _in_order(frames, path)
        return Driving(name, np.stack([_framed(source, file, resolution) for file in frames]))
    listing = list_images(source, files)
    arrays = [name for name in files if name.lower().endswith(".npy")]
    if arrays and not listing.names:
        name, frames = _choose(_by_video(arrays), clip, path)
        frames = _in_order(frames, path)
        return Driving(name, np.concatenate([_parsed(source, file, points) for file in frames]))
    if listing.points != points:
        raise InputError(f"{path} has {listing.points or 'no'} landmarks for its images; this model takes {points}")
    name, frames = _choose(_clips(listing, path), clip, path)
    _say_what_is_missing([listing.frames[file][1] for file in frames])
    return Driving(name, np.stack([_placed(source, file, listing.landmarks[file], resolution, fit) for file in frames]))


def read_array(path: Path, points: int) -> np.ndarray:
    """The landmarks in a .npy file as (F, points, 2) float32; an array (points, 2) is one frame. Raises InputError."""
    return _parsed(FolderSource(path.parent), path.name, points)


def source_points(image: Path, file: Path | None, points: int, why: str) -> np.ndarray:
    """The landmarks (points, 2) of the source image, in pixels of that image.

    why:  what needs them, for an error
    file: a .npy or .pts file to read them from; None reads them from the data set that the image lies in
    Raises InputError when there are none.
    """
    if file is not None and file.suffix.lower() == ".npy":
        frames = read_array(file, points)
        if len(frames) != 1:
            raise InputError(f"--source-landmarks {file} has {len(frames)} frames; the source is one image")
        return frames[0]
    if file is not None:
        try:
            data = read_input(file, MAX_TABLE_BYTES)
        except UnreadableFile as error:
            raise InputError(f"--source-landmarks {file}: {error}; give a .npy or a .pts file") from None
        return parse_points(as_text(data, str(file)), str(file)).astype(np.float32)
    folder = image.resolve().parent
    for root, name in ((folder, image.name), (folder.parent, f"{folder.name}/{image.name}")):
        if _holds_manifest(root):
            listing = list_images(open_source(root))
            if listing.points == points and name in listing.landmarks:
                return listing.landmarks[name]
    raise InputError(
        f"{why} needs the landmarks of the source, and there are none beside {image}: give --source-landmarks FILE "
        "(.npy or .pts)"
    )


def align(driving: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The clip moved, turned and scaled as a whole, so that its mean shape lies on the source's landmarks.

    driving: (F, K, 2) and source: (K, 2), in the same pixels; NaN is a missing point. Returns (F, K, 2) float32.
    The similarity transform minimises the squared distance over the points that at least one frame of the clip and the
    source have. Source: Umeyama 1991. Raises InputError when the two share fewer than two points.
    """
    known = np.isfinite(driving).all(2)
    total = np.where(known[..., None], driving, 0).sum(0, dtype=np.float64)
    counts = known.sum(0)
    both = (counts > 0) & np.isfinite(source).all(1)
    mean, goal = total[both] / counts[both, None], source[both].astype(np.float64)
    if len(np.unique(mean, axis=0)) < 2:
        raise InputError("the driving landmarks and those of the source share no two points; nothing to align")
    centre, towards = mean.mean(0), goal.mean(0)
    # with points as complex numbers, turn and scale are one complex factor, and least squares give it as one quotient
    a, b = (v @ np.array([1, 1j]) for v in (mean - centre, goal - towards))
    factor = np.vdot(a, b) / np.vdot(a, a).real
    turn = np.array([[factor.real, factor.imag], [-factor.imag, factor.real]])
    return ((driving - centre) @ turn + towards).astype(np.float32)


def _holds_manifest(folder: Path) -> bool:
    try:
        return any(is_table_name(file.name, MANIFEST) for file in folder.iterdir())
    except OSError:
        return False


def _parsed(source: Source, file: str, points: int) -> np.ndarray:
    """The landmarks in a .npy file of a source, as `read_array` gives them."""
    place = str(source.root / file)
    try:
        array = parse_array(source.read(file, MAX_ARRAY_BYTES), place)
    except UnreadableFile as error:
        raise InputError(f"{place} is not a readable .npy array ({error})") from None
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[1:] == (2, points):
        array = array.swapaxes(1, 2)
    if array.ndim != 3 or array.shape[1:] != (points, 2) or not len(array):
        shape = f"{array.dtype} {array.shape}"
        raise InputError(
            f"{place} holds {shape}; this model takes numbers of shape (frames, {points}, 2): x, y in pixels"
        )
    if not np.isfinite(array).any():
        raise InputError(f"{place} holds no finite number; expected landmarks in pixels")
    return np.ascontiguousarray(array)


def _choose(clips: dict[str, list[str]], clip: str | None, path: Path) -> tuple[str, list[str]]:
    """The name and the frames of a clip; None takes the longest. Raises InputError for an unknown one."""
    ordered = sorted(sorted(clips), key=natural_order)
    if clip is None:
        name = max(ordered, key=lambda one: len(clips[one]))
        return name, clips[name]
    matches = [name for name in ordered if clip in (name, name.split("/")[0], name.rsplit("/", 1)[-1])]
    if clip in clips or matches:
        name = clip if clip in clips else matches[0]
        return name, clips[name]
    close = difflib.get_close_matches(clip, clips, n=3, cutoff=0.3) or ordered[:3]
    raise InputError(f"{path} has no clip {clip!r}; it has {len(clips)}, among them {', '.join(close)}")


def _by_video(files: list[str]) -> dict[str, list[str]]:
    """Files of frames by their video: the name of the folder that they lie in, without annot/ at its end."""
    videos: dict[str, list[str]] = {}
    for file in files:
        folder = file.rpartition("/")[0]
        folder = folder[: -len("annot")].rstrip("/") if folder.split("/")[-1].lower() == "annot" else folder
        videos.setdefault(folder or "frames", []).append(file)
    return videos


def _in_order(files: list[str], path: Path) -> list[str]:
    """Files of frames in the order of the numbers in their names. Raises InputError where they have none."""
    ordered = frame_order(files, str(path))
    numbers = [number for file in ordered if (number := last_number(file)) is not None]
    if len(numbers) == len(ordered) and sorted(set(numbers)) == numbers:
        _say_what_is_missing(numbers)
    return ordered


def _say_what_is_missing(numbers: list[int]) -> None:
    """Say on standard error that frames are missing in between, where their numbers tell it; numbers: in order."""
    steps = np.diff(numbers)
    if len(steps) and steps.max() > steps.min():
        first, gaps = numbers[int(steps.argmax())], int((steps > steps.min()).sum())
        what = f"frames are missing, {gaps} times, the most after frame {first}; the clip goes on with the next one"
        print(f"kiln reenact: note: {what}", file=sys.stderr)


def _clips(listing: Listing, path: Path) -> dict[str, list[str]]:
    """The images with landmarks of each clip, in frame order. Raises InputError where there is no clip.

    A clip is called person/video or identity, and split/person/video where two splits have clips of one name.
    """
    frames: dict[str, list[tuple[int, str]]] = {}
    for file, (key, number) in listing.frames.items():
        if file in listing.landmarks:
            frames.setdefault(key, []).append((number, file))
    if not frames:
        raise InputError(f"{path} has no clips: its manifest.csv needs a column frame, and video or identity")
    clips = {}
    short = {key: "/".join(filter(None, key.split("\0")[1:])) for key in frames}
    names = Counter(short.values())
    for key, label in short.items():
        clips[label if names[label] == 1 else "/".join(filter(None, key.split("\0")))] = [
            file for _, file in sorted(frames[key])
        ]
    return clips


def _framed(source: Source, file: str, resolution: int) -> np.ndarray:
    """The points of a .pts file, in the square that a frame of a landmark video is cropped to."""
    points = parse_points(read_text(source, file), f"{source.root}: {file}")
    left, top, side = crop_square(points, _ANYWHERE, _ANYWHERE) if np.isfinite(points).all() else (0, 0, 0)
    if side < 2:
        raise InputError(f"{source.root}: {file} frames no face: its landmarks are not inside an image")
    return ((points - [left, top] + 0.5) * (resolution / side) - 0.5).astype(np.float32)


def _placed(source: Source, file: str, points: np.ndarray, resolution: int, fit: str) -> np.ndarray:
    """The landmarks of an image, in the square that `fit` places the image in."""
    try:
        header = inspect(source.read(file))
    except (UnreadableFile, BadImage) as error:
        raise InputError(f"{source.root}: {file} cannot be used ({error}); run `kiln data validate` on it") from None
    if why := unlike_displayed(points, (header.width, header.height), header.orientation):
        raise InputError(f"{source.root}: {file} cannot be used: {why}")
    return pictures.place((header.width, header.height), resolution, fit).landmarks(points)
