"""refine: the right pixels, every format, nothing lost, nothing overwritten."""

import io
import json
import shutil
import xml.etree.ElementTree as ET
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from engine import refine
from engine.data import open_dataset, open_loader
from engine.inference import marking, picture_files, pictures, refining
from engine.networks.refiner import RefinerGenerator
from tests.support.colour_profiles import P3, SRGB, rgb_profile
from tests.support.data_images import bomb, encoded, picture, write_manifest_set, write_pictures
from tests.support.packages import needs
from tests.support.shown import shown
from tests.support.tiny_run import command, make_run

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "colour")


def refined(run, image: Image.Image, **options) -> np.ndarray:
    """What refine must write for an image of 32 x 32, by plain PyTorch from the saved weights: (32, 32, 3) uint8."""
    weights = load_file(run / "checkpoints" / "step_00000007" / "weights.safetensors")
    prefix = options.get("prefix", "ema.")
    network = RefinerGenerator(32, 4, 3, inject=(8, 16), fused=False)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    x = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        y = network({size: F.interpolate(x, size=size, mode="nearest") for size in (8, 16)})[0]
    return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("words", "prefix"), [([], "ema."), (["--weights", "raw"], "generator."), (["--eager"], "ema.")]
)
def test_the_pixels_are_those_of_the_network(run, tmp_path, words, prefix):
    write_pictures(tmp_path / "in", 3, width=32, height=32)
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out", "--batch-size", 2, *words) == 0
    for seed in range(3):
        found = np.asarray(Image.open(tmp_path / "out" / f"{seed:03d}.png")).astype(int)
        assert np.abs(found - refined(run, picture(seed, 32, 32), prefix=prefix)).max() <= 1


@needs("nvidia.dali")
@pytest.mark.parametrize("size", [(128, 128), (200, 90), (67, 301), (1500, 1100), (20, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_is_that_of_the_training_loader(tmp_path, size, channels):
    image = picture(1, *size)
    noisy = np.asarray(image).astype(int) + np.random.default_rng(0).integers(-40, 41, (size[1], size[0], 3))
    (tmp_path / "in").mkdir()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "in" / "a.png")
    dataset = open_dataset(tmp_path / "in", channels=channels, resolution=32)
    loader = open_loader(dataset, batch_size=1, resolution=32, channels=channels, device="cpu", seed=0, loader="dali")
    trained_on = ((loader.fixed(1).images[0] + 1) * 127.5).round().numpy()
    loader.close()
    read, _ = pictures.read((tmp_path / "in" / "a.png").read_bytes())
    square = pictures.to_square(read, pictures.place(read.size, 32, "crop"), 32, channels)
    difference = np.abs(square - trained_on)
    # two implementations round differently, most at the borders; a shift by half a pixel would give 5 and more
    assert difference.max() <= 12 and difference.mean() < 0.7


def grey_ramp(dtype, top) -> np.ndarray:
    return np.linspace(0, top, 40 * 40).reshape(40, 40).astype(dtype)


def palette() -> Image.Image:
    return picture(3, 40, 40).quantize(16)


GOOD = {
    "plain.jpg": lambda: encoded(picture(0), "JPEG"),
    "UPPER.JPG": lambda: encoded(picture(0), "JPEG"),
    "photo.jpeg": lambda: encoded(picture(0), "JPEG"),
    "cmyk.jpg": lambda: encoded(picture(1).convert("CMYK"), "JPEG"),
    "sub/grey.png": lambda: encoded(picture(2).convert("L"), "PNG"),
    "sub/deep/palette.png": lambda: encoded(palette(), "PNG"),
    "alpha.png": lambda: encoded(picture(4).convert("RGBA").rotate(45), "PNG"),
    "bits16.png": lambda: encoded(Image.fromarray(grey_ramp(np.uint16, 65535)), "PNG"),
    "one bit.png": lambda: encoded(picture(5).convert("1"), "PNG"),
    "float.tif": lambda: encoded(Image.fromarray(grey_ramp(np.float32, 1)), "TIFF"),
    "lossless.webp": lambda: encoded(picture(6), "WEBP", lossless=True),
    "old.bmp": lambda: encoded(picture(7), "BMP"),
    "old.ppm": lambda: encoded(picture(7), "PPM"),
    "moving.gif": lambda: encoded(palette(), "GIF", save_all=True, append_images=[picture(8, 40, 40).quantize(16)]),
    "größe ☃.png": lambda: encoded(picture(9), "PNG"),
    "liar.png": lambda: encoded(picture(10), "JPEG"),
    "wide.png": lambda: encoded(picture(11, 3000, 9), "PNG"),
    "small.png": lambda: encoded(picture(12, 8, 8), "PNG"),
}
BAD = {
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"this is no image\n" * 20,
    "cut.jpg": lambda: encoded(picture(0, 300, 300), "JPEG", quality=95)[:4000],
    "cut.png": lambda: encoded(picture(0, 300, 300), "PNG")[:4000],
    "dot.png": lambda: encoded(picture(0, 1, 1), "PNG"),
    "bomb.png": bomb,
}


@pytest.fixture
def zoo(tmp_path):
    for name, content in {**GOOD, **BAD, "notes.txt": lambda: b"not an image"}.items():
        path = tmp_path / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
    return tmp_path / "zoo"


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


RENAMED = {"old.bmp": "old.png", "old.ppm": "old.ppm.png", "moving.gif": "moving.png"}


def test_every_format_and_nothing_lost(run, zoo, tmp_path, capsys):
    assert command(refine.main, run, zoo, tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert files(tmp_path / "out") == {RENAMED.get(name, name) for name in GOOD}
    for path in (tmp_path / "out").rglob("*.*"):
        with Image.open(path) as image:
            image.load()
            assert image.size == (32, 32) and image.mode == "RGB", path
    for name in BAD:
        assert sum(line.startswith(f"kiln refine: skipped {name}: ") for line in lines) == 1, name
    assert "kiln refine: note: moving.gif: first of 2 frames refined" in lines
    assert lines[-1].startswith(f"kiln test: error: {len(BAD)} of {len(BAD) + len(GOOD)} images could not be refined")
    assert len(lines) == len(BAD) + 2


def test_a_zip_gives_the_same_files(run, zoo, tmp_path):
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as archive:
        for name in GOOD:
            archive.write(zoo / name, name)
        archive.writestr(str(tmp_path / "escape.png"), GOOD["plain.jpg"]())
        archive.writestr("../escape.png", GOOD["plain.jpg"]())
    assert command(refine.main, run, tmp_path / "zoo.zip", tmp_path / "deep" / "out") == 2
    assert files(tmp_path / "deep") == {f"out/{RENAMED.get(name, name)}" for name in GOOD}
    assert not (tmp_path / "escape.png").exists() and not (tmp_path / "deep" / "escape.png").exists()
    for name in BAD:
        (zoo / name).unlink()
    assert command(refine.main, run, zoo, tmp_path / "out") == 0
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "deep" / "out" / name).read_bytes()


def test_exif_rotation_is_applied_before_the_crop(run, tmp_path):
    upright = picture(1, 64, 40)
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show"
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "turned.png", exif=exif)
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out") == 0
    a, b = (np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("upright", "turned"))
    np.testing.assert_array_equal(a, b)


def xmp_of(image: Image.Image) -> bytes:
    """The XMP packet where Pillow puts it; only Pillow 11 and newer have one place for every format."""
    if image.format == "PNG":
        return image.text["XML:com.adobe.xmp"].encode()
    if image.format == "TIFF":
        return image.tag_v2[700]
    if image.format == "WEBP":
        return image.info["xmp"]
    (packet,) = [content for name, content in image.applist if name == "APP1" and b"adobe" in content[:29]]
    return packet


@pytest.mark.parametrize("suffix", sorted(marking.FORMATS))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_says_that_it_is_synthetic(suffix, mode, tmp_path):
    path = tmp_path / f"a{suffix}"
    marking.save(picture(0, 32, 32).convert(mode), path, "Synthetic image <of> a test & more")
    content = path.read_bytes()
    begin, end = content.index(b"<x:xmpmeta"), content.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")
    packet = ET.fromstring(content[begin:end])
    assert [node.attrib[IPTC] for node in packet.iter() if IPTC in node.attrib] == [SYNTHETIC]
    assert "Synthetic image <of> a test & more" in [node.text for node in packet.iter()]
    with Image.open(path) as image:
        image.load()
        assert image.mode == ("RGB" if suffix == ".webp" else mode)
        assert content[begin:end] in xmp_of(image)
        if suffix == ".png":
            assert image.text["Software"].startswith("Kiln") and "Synthetic" in image.text["Description"]
        else:
            assert image.getexif()[0x0131].startswith("Kiln") and "Synthetic" in image.getexif()[0x010E]


@pytest.mark.parametrize(
    ("fit", "size", "plain", "original"),
    [
        ("crop", (64, 40), (32, 32), (40, 40)),
        ("pad", (64, 40), (32, 20), (64, 40)),
        ("pad", (10, 500), (1, 32), (10, 500)),
        ("stretch", (64, 40), (32, 32), (64, 40)),
    ],
)
def test_sizes(run, tmp_path, fit, size, plain, original):
    picture(0, *size).save(tmp_path / "a.png")
    for words, expected in (([], plain), (["--original-size"], original)):
        assert command(refine.main, run, tmp_path / "a.png", tmp_path / "b.png", "--fit", fit, *words) == 0
        assert Image.open(tmp_path / "b.png").size == expected


@pytest.mark.parametrize("fit", pictures.FITS)
@pytest.mark.parametrize("size", [(64, 40), (41, 90), (50, 50)])
def test_landmarks_follow_the_pixels(fit, size):
    """A bright spot and its landmark arrive at the same place of the square."""
    for spot in [(size[0] // 2 + 3, size[1] // 2 - 4), (size[0] // 2 - 6, size[1] // 2 + 5)]:
        image = np.zeros((size[1], size[0]), np.uint8)
        image[spot[1], spot[0]] = 255
        placement = pictures.place(size, 32, fit)
        square = pictures.to_square(Image.fromarray(image), placement, 32, 1)[0].astype(float)
        y, x = np.mgrid[0:32, 0:32]
        centre = np.array([(square * x).sum(), (square * y).sum()]) / square.sum()
        np.testing.assert_allclose(placement.landmarks(np.array([spot], float))[0], centre, atol=0.35)


def test_padding_repeats_the_border_and_is_cut_off_again():
    image = picture(2, 64, 24)
    placement = pictures.place(image.size, 32, "pad")
    square = pictures.to_square(image, placement, 32, 3)
    left, top, right, bottom = placement.content
    assert (left, right, bottom - top) == (0, 32, 12)
    np.testing.assert_array_equal(square[:, 0], square[:, top])
    np.testing.assert_array_equal(square[:, -1], square[:, bottom - 1])
    back = np.asarray(pictures.from_square(square, placement, original_size=False))
    np.testing.assert_array_equal(back, square[:, top:bottom].transpose(1, 2, 0))


def test_names_do_not_collide(tmp_path):
    write_pictures(tmp_path / "in", 1)
    shutil.move(tmp_path / "in" / "000.png", tmp_path / "in" / "a.png")
    for name in ("a.bmp", "a.gif", "A.ppm", "b.tiff", "b.jpg"):
        picture(0).save(tmp_path / "in" / name)
    source, names = picture_files.list_input(tmp_path / "in", tmp_path / "out", "kiln refine")
    targets = {i.name: i.target.name for i in picture_files.plan(source, names, False, tmp_path / "out", "keep")}
    assert len({name.casefold() for name in targets.values()}) == 6
    assert (targets["a.png"], targets["b.tiff"], targets["b.jpg"]) == ("a.png", "b.tiff", "b.jpg")
    targets = {i.name: i.target.name for i in picture_files.plan(source, names, False, tmp_path / "out", "jpg")}
    assert len({name.casefold() for name in targets.values()}) == 6
    assert targets["b.jpg"] == "b.jpg" and all(name.endswith(".jpg") for name in targets.values())


def test_the_originals_are_never_overwritten(run, tmp_path, capsys):
    folder = write_pictures(tmp_path / "in", 2)
    (tmp_path / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for source, target in [
        (folder, folder),
        (folder, tmp_path / "link"),
        (folder / "000.png", folder / "000.png"),
        (folder / "000.png", folder),
        (folder / "000.png", tmp_path / "link"),
    ]:
        assert command(refine.main, run, source, target) == 2
        assert "never overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_results_inside_the_input_folder_are_not_input(run, tmp_path):
    folder = write_pictures(tmp_path / "in", 2)
    for _ in range(2):
        assert command(refine.main, run, folder, folder / "refined") == 0
        assert files(folder / "refined") == {"000.png", "001.png"}


def test_a_single_image_into_a_folder_or_a_file(run, tmp_path, capsys):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "there").mkdir()
    assert command(refine.main, run, tmp_path / "a.png", tmp_path / "there") == 0
    assert command(refine.main, run, tmp_path / "a.png", tmp_path / "new" / "b.webp") == 0
    assert files(tmp_path) == {"a.png", "there/a.png", "new/b.webp"}
    assert command(refine.main, run, tmp_path / "a.png", tmp_path / "b.bmp") == 2
    assert ".bmp" in capsys.readouterr().err


def test_grey_models(tmp_path):
    run = make_run(tmp_path / "run", channels=1)
    write_pictures(tmp_path / "in", 1)
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out", "--format", "jpg") == 0
    with Image.open(tmp_path / "out" / "000.jpg") as image:
        assert image.mode == "L" and image.size == (32, 32)


def test_landmark_models_need_landmarks(tmp_path, capsys):
    run = make_run(tmp_path / "run", landmarks=True)
    write_pictures(tmp_path / "plain", 2)
    assert command(refine.main, run, tmp_path / "plain", tmp_path / "out") == 2
    assert "landmarks_68.npy" in capsys.readouterr().err
    points = np.random.default_rng(0).uniform(5, 35, (2, 68, 2))
    bodies = write_manifest_set(tmp_path / "bodies", [picture(0), picture(1)], points)
    (bodies / "landmarks_68.npy").unlink()
    np.save(bodies / "keypoints_18.npy", points[:, :18])
    assert command(refine.main, run, bodies, tmp_path / "out") == 2
    assert "landmarks_68.npy" in capsys.readouterr().err
    data = write_manifest_set(tmp_path / "set", [picture(0), picture(1)], points)
    assert command(refine.main, run, data, tmp_path / "out") == 0
    # the same image alone, its manifest one folder up, and without the manifest's root
    assert command(refine.main, run, data / "images" / "000.png", tmp_path / "one") == 0
    assert (tmp_path / "one" / "000.png").read_bytes() == (tmp_path / "out" / "images" / "000.png").read_bytes()
    # other landmarks give other pixels
    write_manifest_set(tmp_path / "other", [picture(0), picture(1)], points[::-1])
    assert command(refine.main, run, tmp_path / "other", tmp_path / "out2") == 0
    a, b = (np.asarray(Image.open(tmp_path / f / "images" / "000.png")).astype(int) for f in ("out", "out2"))
    assert np.abs(a - b).max() > 0


def damage(run, how: str):
    """A copy of the run whose only checkpoint is damaged."""
    copy = run.parent / how.replace(" ", "-")
    shutil.copytree(run, copy)
    folder = copy / "checkpoints" / "step_00000007"
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    if how == "truncated":
        weights.write_bytes(content[:-100])
    elif how == "altered":
        content[-50] ^= 1
        weights.write_bytes(content)
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "other system":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "system": "simgan"}))
    return copy


@pytest.mark.parametrize("how", ["truncated", "altered", "no manifest", "other system"])
@pytest.mark.parametrize("whole_run", [True, False])
def test_bad_checkpoints(tmp_path, capsys, how, whole_run):
    copy = damage(make_run(tmp_path / "run"), how)
    path = copy if whole_run else copy / "checkpoints" / "step_00000007"
    write_pictures(tmp_path / "in", 1)
    assert command(refine.main, path, tmp_path / "in", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_bad_paths(run, tmp_path, capsys):
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("x")
    for words, message in [
        ((tmp_path / "missing", tmp_path / "in", tmp_path / "out"), "does not exist"),
        ((tmp_path / "in", tmp_path / "in", tmp_path / "out"), "give a run folder or one of its checkpoints"),
        ((run, tmp_path / "missing", tmp_path / "out"), "no such file or folder"),
        ((run, tmp_path / "nothing", tmp_path / "out"), "no image file"),
        ((run, tmp_path / "in", tmp_path / "file"), "is a file"),
        ((run, tmp_path / "in", tmp_path / "file" / "out"), "is a file"),
        ((run, tmp_path / "in", tmp_path / "out", "--batch-size", 0), "--batch-size"),
        ((run, tmp_path / "in"), "missing OUTPUT"),
    ]:
        assert command(refine.main, *words) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_files_only(run, tmp_path, capsys, monkeypatch):
    write_pictures(tmp_path / "in", 3)
    real, written = marking.atomic_files.write_bytes, []

    def fails_at_the_second(path, content):
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        real(path, content)

    monkeypatch.setattr(marking.atomic_files, "write_bytes", fails_at_the_second)
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out") == 2
    assert "no space left" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000.png"]


def test_a_diverged_model_writes_nothing(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run")
    write_pictures(tmp_path / "in", 1)
    monkeypatch.setattr(RefinerGenerator, "forward", lambda self, *args: torch.full((1, 3, 32, 32), float("nan")))
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out") == 2
    assert "diverged" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_face_is_framed_as_in_the_photos(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    assert cv2.data
    from engine.inference.faces import FaceFinder, Framing

    finder, framing = FaceFinder(), Framing(share=0.7, x=0.5, y=0.4)
    monkeypatch.setattr(finder, "boxes", lambda pixels: [(140, 130, 210, 200)])
    assert finder.portrait(np.zeros((400, 500, 3), np.uint8), framing) == (125, 125, 225, 225)
    monkeypatch.setattr(finder, "boxes", lambda pixels: [(0, 0, 70, 70)])
    assert finder.portrait(np.zeros((80, 90, 3), np.uint8), framing) == (
        -15,
        -5,
        85,
        95,
    )  # the square reaches beyond the image
    monkeypatch.setattr(finder, "boxes", lambda pixels: [])
    assert finder.portrait(np.zeros((80, 90, 3), np.uint8), framing) is None


def test_a_window_beyond_the_picture_repeats_its_border():
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4)
    placement = pictures.Placement((-2, -1, 6, 7), (0, 0, 8, 8))
    square = pictures.to_square(Image.fromarray(ramp), placement, 8, 1)[0]
    np.testing.assert_array_equal(square, np.pad(ramp, ((1, 3), (2, 2)), mode="edge"))


def test_the_framing_of_the_photos_is_kept_with_the_run(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    from engine.inference.faces import FaceFinder, Framing

    monkeypatch.setattr(FaceFinder, "boxes", lambda self, pixels: [(16, 8, 48, 40)])
    framing = Framing.measure(np.zeros((9, 64, 64, 3), np.uint8))
    assert framing == Framing(0.5, 0.5, 0.375)
    framing.write(tmp_path)
    assert Framing.of(tmp_path) == Framing.of(tmp_path / "checkpoints" / "step_1") == framing
    assert Framing.of(tmp_path / "elsewhere") == Framing()
    assert Framing.measure(np.zeros((3, 64, 64, 3), np.uint8)) is None  # three images are too few


def test_face_crop_takes_the_face_or_says_why_not(run, tmp_path, capsys):
    pytest.importorskip("cv2")
    flat = Image.new("RGB", (64, 40), (90, 120, 90))
    flat.save(tmp_path / "flat.png")
    assert command(refine.main, run, tmp_path / "flat.png", tmp_path / "out.png", "--face-crop") == 0
    assert "flat.png: no face found, treated by --fit crop" in capsys.readouterr().err


def test_missing_opencv_names_the_extra(run, tmp_path, capsys, monkeypatch):
    write_pictures(tmp_path / "in", 1)
    monkeypatch.setattr(
        "engine.inference.faces.attempt", lambda name: (None, "ModuleNotFoundError: No module named 'cv2'")
    )
    assert command(refine.main, run, tmp_path / "in", tmp_path / "out", "--face-crop") == 2
    assert "kiln-engine[eval]" in capsys.readouterr().err


def test_images_do_not_depend_on_their_neighbours(run, tmp_path):
    write_pictures(tmp_path / "in", 5, width=40, height=40)
    for size in (1, 4):
        assert command(refine.main, run, tmp_path / "in", tmp_path / f"out{size}", "--batch-size", size) == 0
    for name in files(tmp_path / "out1"):
        a, b = (np.asarray(Image.open(tmp_path / out / name)).astype(int) for out in ("out1", "out4"))
        assert np.abs(a - b).max() <= 1


def test_reading_happens_in_order_and_one_list_ahead(tmp_path):
    items = [picture_files.Item(str(index), tmp_path / str(index)) for index in range(7)]
    found = [[item.name for item, _ in batch] for batch in refining.batches(items, lambda name: name, 3)]
    assert found == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_bytes_are_read_as_pillow_reads_them():
    image = picture(0)
    read, header = pictures.read(encoded(image, "PNG"))
    assert (header.frame, header.profile, header.convert) == ("", None, "")
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))
    assert Image.open(io.BytesIO(marking.encode(image, ".png", "x"))).size == image.size


def test_colour_profiles_are_converted_and_said_once(run, tmp_path, capsys):
    folder, wanted = tmp_path / "in", tmp_path / "wanted"
    folder.mkdir(), wanted.mkdir()
    icc = {"p3": rgb_profile(P3), "same": rgb_profile(SRGB), "broken": rgb_profile(P3)[:200], "none": None}
    for seed, (name, profile) in enumerate([*icc.items(), ("p3 too", icc["p3"])]):
        image = picture(seed, 48, 40)
        image.save(folder / f"{name}.png", icc_profile=profile)
        shown(encoded(image, "PNG", icc_profile=profile)).save(wanted / f"{name}.png")
    assert command(refine.main, run, folder, tmp_path / "out", "--batch-size", 2) == 0
    assert capsys.readouterr().err.splitlines() == [
        "kiln refine: note: converted to sRGB from other colour profiles: 2 images",
        "kiln refine: note: read without their unusable colour profiles: 1 image",
    ]
    assert command(refine.main, run, wanted, tmp_path / "again") == 0
    for name in files(wanted):
        with Image.open(tmp_path / "out" / name) as found, Image.open(tmp_path / "again" / name) as expected:
            assert "icc_profile" not in found.info  # which means sRGB
            assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1
