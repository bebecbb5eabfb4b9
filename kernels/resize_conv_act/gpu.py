"""resize_conv_act on a GPU, in Triton. Every pass is a convolution by the taps of gpu_convolution.py:

convolution:            as written; its input's gradient is spread by the stride
transposed convolution: the other way round
nearest x2 and 3x3:     the transposed convolution of 4x4 folded taps at stride 2: 16 products for each pixel of x
                        where the definition has 36

Borders are read in place (gpu_border.py), weights and channels packed first (gpu_packing.py). gpu_band.py runs 3x3 of
few channels, gpu_weight_gradient.py and gpu_gradient_sums.py the weights' gradient. float32 products run on the matrix
units as three TF32 products (near float32), as one where torch.backends.cudnn.allow_tf32 is set, and as plain float32
arithmetic with exact=True.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._gpu.activation_backward import through_activation
from .._layout import channels_last
from . import ACTIVATION_NUMBERS, gradients, ordered, output
from .geometry import BORDERS, Geometry, effective_stride
from .gpu_border import fold_border
from .gpu_convolution import Taps, convolve, precision
from .gpu_gradient_sums import sum_gradients
from .gpu_packing import aligned, packed, padded
from .gpu_weight_gradient import partial_products


class Part(NamedTuple):
    """The weights that one input meets.

    outputs, inputs: how many channels there are, and how many elements of the weight lie between neighbours
    start:           the element of the weight that the part begins with
    taps:            of the forward pass
    fold:            the 3x3 taps are folded with nearest x2 to 4x4
    transposed:      of the operator: the weight's taps are those of the input's gradient
    """

    outputs: tuple[int, int]
    inputs: tuple[int, int]
    start: int
    taps: Taps
    fold: bool
    transposed: bool

    def packed(self, weight: Tensor, dtype: torch.dtype, adjoint: bool, scale: Tensor | None = None) -> Tensor:
        """The weights as the forward pass takes them, or as the input's gradient does (adjoint).

        scale: (Cout,) contiguous, which multiplies the weights of the forward pass; None: 1
        """
        rows, columns = (self.inputs, self.outputs) if adjoint else (self.outputs, self.inputs)
        reverse = adjoint != self.transposed
        return packed(weight, dtype, rows, columns, self.start, reverse=reverse, fold=self.fold, scale=scale)

    def partial_gradient(
        self, dz: Tensor, x: Tensor, precision: str
    ) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """Partial sums (splits, taps, C, N) of the weights' gradient, and of C and N what outputs and inputs say."""
        if self.fold or self.transposed:
            return partial_products(x, dz, self.taps.adjoint, precision), self.outputs, self.inputs
        return partial_products(dz, x, self.taps, precision), self.inputs, self.outputs


def parts(x: Tensor, weight: Tensor, second: Tensor | None, where: Geometry) -> list[Part]:
    """What x and second, if there is one, meet of the weight, which is contiguous."""
    kernel, channels, up = int(weight.shape[-1]), x.shape[1], where.resize == "up"
    between = weight.stride()[:2]
    outputs = weight.shape[where.transposed], between[where.transposed]
    apart = between[1 - where.transposed]
    border = BORDERS[where.padding_mode] if where.padding else 0
    taps = Taps(kernel, effective_stride(x.shape, kernel, where), 1, where.padding, border)
    own = Taps(4, 2, 1, 1).adjoint if up else taps.adjoint if where.transposed else taps
    every = [Part(outputs, (channels, apart), 0, own, up, where.transposed)]
    if second is not None:
        own = taps if up else own  # beside nearest x2 it is as large as the result
        every.append(Part(outputs, (second.shape[1], apart), channels * apart, own, False, where.transposed))
    return every


def forward(
    x, weight, bias, scale, second, residual, grad_scale, resize, stride, padding, padding_mode, transposed,
    output_padding, activation, negative_slope, exact, input_grad_from,
):  # fmt: skip
    where = Geometry(resize, stride, padding, padding_mode, transposed, output_padding)
    y = output(x, weight, where)
    if not y.numel():
        return y
    weight, scale = weight.contiguous(), None if scale is None else scale.contiguous()
    first, *others = parts(x, weight, second, where)
    convolve(
        padded(channels_last(x)), first.packed(weight, x.dtype, False, scale), y, first.taps, exact,
        second=padded(channels_last(second)) if others else None,
        second_weights=others[0].packed(weight, x.dtype, False, scale) if others else None, around=first.fold,
        bias=None if bias is None else bias.contiguous(), residual=channels_last(residual), activation=activation,
        slope=negative_slope,
    )  # fmt: skip
    return y


def backward(
    grad, y, x, weight, bias, second, grad_scale, resize, stride, padding, padding_mode, transposed, output_padding,
    activation, negative_slope, exact, input_grad_from, need,
):  # fmt: skip
    where = Geometry(resize, stride, padding, padding_mode, transposed, output_padding)
    results = gradients([x, weight, bias, second], need)
    dx, dweight, dbias, dsecond = results
    if x.shape[0] == 0:
        for gradient in (dweight, dbias):
            gradient.zero_()
        return ordered(results, [x, weight, bias, second], need)
    weight = weight.contiguous()
    scale = None if grad_scale is None else grad_scale.float().contiguous()
    dz, weighted, bias_rows = through_activation(
        channels_last(grad), channels_last(grad if y is None else y), scale, ACTIVATION_NUMBERS[activation],
        negative_slope, with_bias=need[2], channels=aligned(grad.shape[1]), weigh=need[1],
    )  # fmt: skip
    sources, wanted = [(x, dx), (second, dsecond)], [need[0], need[3]]
    for part, (source, gradient), needed in zip(parts(x, weight, second, where), sources, wanted, strict=False):
        if needed:
            gradient[:input_grad_from].zero_()
            if input_grad_from < len(gradient):
                weights = part.packed(weight, x.dtype, True)
                _input_gradient(dz[input_grad_from:], weights, gradient[input_grad_from:], part.taps, exact)
        if need[1]:
            sums = part.partial_gradient(weighted, padded(channels_last(source)), precision(x.dtype, exact))
            sum_gradients(*sums, dweight, part.start, bias_rows, dbias, fold=part.fold)
            bias_rows = None  # the bias's gradient is complete: the second input adds nothing to it
    if bias_rows is not None:
        sum_gradients(None, (0, 0), (0, 0), dweight, 0, bias_rows, dbias, fold=False)
    return ordered(results, [x, weight, bias, second], need)


def _input_gradient(dz: Tensor, weights: Tensor, gradient: Tensor, taps: Taps, exact: bool) -> None:
    """Writes the input's gradient from dz, that of the sum before the activation."""
    if not taps.border:
        convolve(dz, weights, gradient, taps.adjoint, exact)
        return
    batch, channels, height, width = gradient.shape
    shape = batch, channels, height + 2 * taps.padding, width + 2 * taps.padding
    wider = torch.empty(shape, dtype=dz.dtype, device=dz.device, memory_format=torch.channels_last)
    convolve(dz, weights, wider, taps._replace(padding=0).adjoint, exact)
    fold_border(wider, gradient, taps.padding, taps.border)
