"""landmark_heatmap and landmark_conv against what is known of the stamp, finite differences and plain convolutions."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine import ops
from engine.kernels import _spec
from tests.support.instruction_sets import INSTRUCTION_SETS

ROW = [0.0111, 0.1353, 0.6065, 1.0, 0.6065, 0.1353, 0.0111]
EACH = pytest.mark.parametrize("which", ["function", "reference"])
LAYOUTS = pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)


def heatmap(which: str, points: list[list[float]], height: int = 128, width: int = 128, **options) -> torch.Tensor:
    """One image's maps, (N, H, W)."""
    run = getattr(ops.OPERATORS["landmark_heatmap"], which)
    return run(torch.tensor([points]), height, width, **options)[0]


@EACH
@LAYOUTS
def test_the_stamp_of_the_paper(which, layout):
    (stamp,) = heatmap(which, [[60.7, 40.2]], memory_format=layout)
    assert stamp[40, 60] == 1 and stamp.count_nonzero() == 49
    torch.testing.assert_close(stamp[40, 57:64], torch.tensor(ROW), atol=5e-5, rtol=0)
    torch.testing.assert_close(stamp[37:44, 60], torch.tensor(ROW), atol=5e-5, rtol=0)
    assert stamp[37, 57].item() == pytest.approx(math.exp(-9), rel=1e-5)
    assert stamp.sum().item() == pytest.approx(6.280, abs=1e-3)


@EACH
@pytest.mark.parametrize(
    "point, pixels, peak",
    [
        ((0, 0), 16, 1),
        ((127, 127), 16, 1),
        ((-2, 5), 14, math.exp(-2)),
        ((-0.9, -0.9), 16, 1),  # int() truncates towards zero
        ((-3, 5), 7, math.exp(-4.5)),
        ((-4, 5), 0, 0),
        ((130, 64), 7, math.exp(-4.5)),
        ((131, 64), 0, 0),
        ((64, 1000), 0, 0),
    ],
)
def test_the_stamp_is_cut_at_borders(which, point, pixels, peak):
    (stamp,) = heatmap(which, [list(map(float, point))])
    assert stamp.count_nonzero() == pixels
    assert stamp.max().item() == pytest.approx(peak, abs=1e-6)


BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**63, 1e10]


@EACH
@pytest.mark.parametrize("subpixel", [False, True])
def test_what_is_not_a_place_leaves_nothing(which, subpixel):
    points = [[bad, 5.0] for bad in BAD] + [[5.0, bad] for bad in BAD] + [[bad, bad] for bad in BAD]
    landmarks = torch.tensor([[*points, [5.0, 5.0]]], requires_grad=True)
    maps = getattr(ops.OPERATORS["landmark_heatmap"], which)(landmarks, 9, 9, subpixel=subpixel)
    assert maps[0, :-1].count_nonzero() == 0 and maps[0, -1].max() == 1
    weight = torch.randn(4, len(points) + 1, 3, 3, requires_grad=True)
    y = getattr(ops.OPERATORS["landmark_conv"], which)(
        landmarks, weight, height=9, width=9, padding=1, subpixel=subpixel
    )
    expected = F.conv2d(maps[:, -1:], weight[:, -1:], padding=1)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    assert weight.grad[:, :-1].count_nonzero() == 0 and weight.grad[:, -1].abs().sum() > 0
    if subpixel:
        assert landmarks.grad[0, :-1].count_nonzero() == 0 and landmarks.grad.isfinite().all()
        maps.square().sum().backward()
        assert landmarks.grad[0, :-1].count_nonzero() == 0
    else:
        assert not maps.requires_grad and landmarks.grad is None


@EACH
def test_subpixel_stamps(which):
    (stamp,) = heatmap(which, [[10.3, 7.6]], 20, 24, subpixel=True, sigma=1.5, radius=2)
    for y in range(20):
        for x in range(24):
            inside = abs(x - 10) <= 2 and abs(y - 8) <= 2
            expected = math.exp(-((x - 10.3) ** 2 + (y - 7.6) ** 2) / 4.5) if inside else 0
            assert stamp[y, x].item() == pytest.approx(expected, abs=1e-6)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layout_and_dtype_of_the_result(layout, dtype):
    landmarks = torch.tensor([[[3.2, 4.8], [0.0, 11.0]]]).expand(3, 2, 2)
    maps = ops.landmark_heatmap(landmarks, 12, 10, dtype=dtype, memory_format=layout)
    assert maps.dtype == dtype and maps.is_contiguous(memory_format=layout)
    expected = ops.landmark_heatmap(landmarks.contiguous(), 12, 10)
    torch.testing.assert_close(maps, expected.to(dtype), rtol=0, atol=0)


def finite_differences(loss, landmarks: torch.Tensor, step: float = 1e-2) -> torch.Tensor:
    flat, result = landmarks.flatten(), torch.zeros(landmarks.numel())
    for i in range(flat.numel()):
        moved = [flat.clone(), flat.clone()]
        moved[0][i] += step
        moved[1][i] -= step
        result[i] = (loss(moved[0].view_as(landmarks)) - loss(moved[1].view_as(landmarks))) / (2 * step)
    return result.view_as(landmarks)


@pytest.mark.parametrize("stride", [1, 2])
def test_subpixel_gradient_is_that_of_finite_differences(stride):
    torch.manual_seed(0)
    # well inside their pixels, so that no window jumps; some are cut by a border
    landmarks = (torch.tensor([[[4, 5], [0, 9], [13, -2]], [[7, 7], [14, 11], [-3, 3]]]) + 0.2).requires_grad_()
    weighing, weight = torch.randn(2, 3, 12, 14), torch.randn(5, 3, 3, 3)

    def of_maps(landmarks):
        return (ops.landmark_heatmap(landmarks, 12, 14, subpixel=True) * weighing).double().sum()

    def of_conv(landmarks):
        options = {"height": 12, "width": 14, "stride": stride, "padding": 1, "subpixel": True, "activation": "tanh"}
        return ops.landmark_conv(landmarks, weight, **options).double().square().sum()

    for loss in (of_maps, of_conv):
        (gradient,) = torch.autograd.grad(loss(landmarks), landmarks)
        torch.testing.assert_close(gradient, finite_differences(loss, landmarks.detach()), rtol=2e-3, atol=2e-3)


GEOMETRIES = [
    (kernel, stride, padding)
    for kernel in range(1, 8)
    for stride in (1, 2)
    for padding in sorted({0, 1, kernel // 2, 6})
]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("batch, subpixel", [(2, False), (9, False), (2, True)])
@pytest.mark.parametrize("kernel, stride, padding", GEOMETRIES)
def test_landmark_conv_is_the_convolution_of_heatmaps(instruction_set, batch, subpixel, kernel, stride, padding):
    """Outputs and gradients against conv2d in float64 of the stamps written pixel by pixel."""
    torch.manual_seed(kernel)
    height, width = 15, 18
    landmarks = torch.rand(batch, 4, 2) * 26 - 4
    landmarks[:, 0] = torch.tensor([9.0, 7.0]) + torch.randint(0, 2, (batch, 2))  # inside, of every parity
    image, weight = torch.randn(batch, 2, height, width), torch.randn(6, 6, kernel, kernel)
    scale = torch.randn(batch)

    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    at = landmarks.double().requires_grad_()
    pixel = at.detach().round() if subpixel else at.detach().trunc()
    centre = at if subpixel else pixel
    d_x, d_y = columns - centre[..., :1], rows - centre[..., 1:]
    cut_x, cut_y = (columns - pixel[..., :1]).abs() <= 3, (rows - pixel[..., 1:]).abs() <= 3
    maps = torch.exp(-0.5 * (d_y[..., None] ** 2 + d_x[..., None, :] ** 2)) * (cut_y[..., None] & cut_x[..., None, :])
    exact = [at, weight.double().requires_grad_(), image.double().requires_grad_()]
    # grad_scale by its definition: each sample's own parameter gradient
    expected = F.conv2d(torch.cat([exact[2], maps], 1), exact[1], stride=stride, padding=padding)
    upstream = torch.randn_like(expected)

    leaves = [t.clone().requires_grad_() for t in (landmarks, weight, image)]
    options = {"stride": stride, "padding": padding, "subpixel": subpixel, "grad_scale": scale}
    y = ops.landmark_conv(leaves[0], leaves[1], image=leaves[2], **options)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=1e-5, atol=1e-5)

    wanted = 0 if subpixel else 1
    found = torch.autograd.grad(y, leaves[wanted:], upstream.float())
    truth = list(torch.autograd.grad(expected, exact[wanted:], upstream, retain_graph=True))
    weighted = upstream * scale.double().view(-1, 1, 1, 1)
    truth[1 - wanted] = torch.autograd.grad(expected, exact[1], weighted)[0]
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts_agree(threads):
    """Any thread count passes; one count gives the same bits every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("landmark_heatmap", "landmark_conv"):
            spec = _spec.specs()[name]
            for sample in spec.samples:
                failed = [e for e in _spec.compare(spec, sample, torch.float32) if not e.passed]
                assert not failed, (sample.name, failed)
                made = _spec.tensors(sample, torch.float32)
                once, again = (_spec.run(getattr(ops, name), sample, made, torch.float32) for _ in range(2))
                assert all(torch.equal(once[key], again[key]) for key in once)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(layout, dtype):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 10, 12, dtype=dtype)
    landmarks, weight, bias = (
        torch.rand(2, 4, 2) * 11,
        torch.randn(5, 7, 3, 3, dtype=dtype),
        torch.randn(5, dtype=dtype),
    )
    expected = ops.landmark_conv(landmarks, weight, bias, image=image, padding=1, subpixel=True)
    if layout == "sliced":
        image = F.pad(image, (1, 2, 1, 0))[..., 1:, 1:-2]
        landmarks, weight = torch.cat([landmarks, landmarks], 2)[..., :2], torch.cat([weight, weight], 1)[:, :7]
    elif layout == "transposed":
        image = image.transpose(2, 3).contiguous().transpose(2, 3)
        landmarks, weight = landmarks.mT.contiguous().mT, weight.mT.contiguous().mT
        bias = torch.stack([bias, bias], 1)[:, 0]
    assert torch.equal(ops.landmark_conv(landmarks, weight, bias, image=image, padding=1, subpixel=True), expected)


def test_autocast_keeps_positions():
    landmarks = (torch.rand(2, 3, 2) * 400).requires_grad_()
    weight, image = torch.randn(8, 6, 3, 3, requires_grad=True), torch.randn(2, 3, 400, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.landmark_conv(landmarks, weight, image=image, subpixel=True)
    assert y.dtype == torch.bfloat16
    exact = ops.landmark_conv(landmarks, weight, image=image, subpixel=True)
    assert (y - exact).norm() < 0.01 * exact.norm()
    y.float().sum().backward()
    assert weight.grad.dtype == landmarks.grad.dtype == torch.float32


def test_compiles_in_one_graph():
    landmarks = torch.rand(2, 3, 2) * 11
    weight, image = torch.randn(8, 6, 3, 3, requires_grad=True), torch.randn(2, 3, 10, 12)

    def loss(landmarks):
        maps = ops.landmark_heatmap(landmarks, 10, 12, subpixel=True)
        y = ops.landmark_conv(landmarks, weight, image=image, padding=1, subpixel=True, activation="elu")
        return y.square().mean() + maps.square().mean()

    expected = torch.autograd.grad(loss(landmarks), weight)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(landmarks), weight)[0], expected)


def test_nan_of_the_image_is_not_hidden():
    image = torch.randn(1, 3, 8, 8)
    image[0, 0, 4, 4] = torch.nan
    weight = torch.randn(16, 4, 3, 3)
    for activation in ("none", "elu", "relu", "leaky_relu", "tanh", "sigmoid"):
        y = ops.landmark_conv(torch.zeros(1, 1, 2), weight, image=image, activation=activation, padding=1)
        assert y.isnan().any(1).sum() == 9, activation


GOOD = {
    "landmarks": torch.zeros(2, 4, 2),
    "weight": torch.zeros(8, 7, 3, 3),
    "bias": torch.zeros(8),
    "image": torch.zeros(2, 3, 6, 6),
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"landmarks": torch.zeros(2, 4, 3)}, "landmarks must be (B, N, 2)"),
        ({"landmarks": torch.zeros(2, 4, 2).double()}, "float64"),
        ({"landmarks": torch.zeros(3, 4, 2)}, "image is"),
        ({"weight": torch.zeros(8, 6, 3, 3)}, "(Cout, 7, KH, KW)"),
        ({"weight": torch.zeros(8, 7, 8, 3)}, "from 1 to 7"),
        ({"weight": torch.zeros(8, 7, 3, 3).bfloat16()}, "bias is torch.float32 but weight is torch.bfloat16"),
        ({"bias": torch.zeros(7)}, "bias must be (8,)"),
        ({"image": None}, "give height and width"),
        ({"image": None, "height": 0, "width": 5}, "height and width must be positive"),
        ({"height": 5}, "height and width are (5, 6)"),
        ({"stride": 3}, "stride is 3"),
        ({"padding": -1}, "padding -1"),
        ({"image": torch.zeros(2, 3, 2, 6)}, "leaves no output"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"radius": 0}, "radius is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"grad_scale": torch.ones(3)}, "grad_scale must be (2,)"),
    ],
)
def test_bad_arguments_of_landmark_conv(change, words):
    with pytest.raises(ValueError, match=r"^landmark_conv: ") as caught:
        ops.landmark_conv(**{**GOOD, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"landmarks": torch.zeros(4, 2)}, "landmarks must be"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"height": 0}, "height and width"),
        ({"memory_format": torch.preserve_format}, "memory_format is"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"radius": 1 << 30}, "radius is"),
    ],
)
def test_bad_arguments_of_landmark_heatmap(change, words):
    with pytest.raises(ValueError, match=r"^landmark_heatmap: ") as caught:
        ops.landmark_heatmap(**{"landmarks": torch.zeros(2, 4, 2), "height": 5, "width": 5, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)
