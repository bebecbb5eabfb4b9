"""Which convolutions and paddings the operator resize_conv_act has: their Geometry, or why it has them not."""

from torch import nn

from engine.kernels.resize_conv_act.geometry import BORDERS, MOST_TAPS, STRIDES, Geometry

UP = Geometry("none", 1, 1, "zeros", False, 0)  # of the 3x3 convolution that nearest x2 is fused with
PAD_MODULES = {
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.CircularPad2d: "circular",
}


def pair(value: object) -> object:
    """(rows, columns) of an option that may be one number for both."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def conv_geometry(
    kernel_size: tuple[int, ...],
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: str,
    transposed: bool,
    output_padding: object,
) -> tuple[Geometry | None, str]:
    """The Geometry of a convolution with these options of torch and ""; or None and why the operator has none."""
    rows, columns = kernel_size
    padding = _padding(padding, rows)
    if rows != columns or rows > MOST_TAPS:
        return None, f"kernel size {rows}x{columns}"
    if groups != 1:
        return None, f"groups {groups}"
    options = {"dilation": dilation, "stride": stride, "padding": padding, "output padding": output_padding}
    for name, value in options.items():
        if refusal := _refusal(name, pair(value)):
            return None, refusal
    if transposed and pair(output_padding)[0] >= pair(stride)[0]:
        return None, f"output padding {pair(output_padding)[0]}"
    if padding_mode not in BORDERS:
        return None, f"padding mode {padding_mode}"
    return Geometry("none", pair(stride)[0], pair(padding)[0], padding_mode, transposed, pair(output_padding)[0]), ""


def _padding(padding: object, taps: int) -> object:
    """The padding in numbers: "same" of an even kernel has none that is the same on both sides."""
    if padding == "valid":
        return 0
    return taps // 2 if padding == "same" and taps % 2 else padding


def _refusal(name: str, value: tuple) -> str:
    """Why the operator has not this option with (rows, columns); "" where it has."""
    rows, columns = value
    if rows != columns:
        return f"{name} {value}"
    fits = {"dilation": (1,), "stride": STRIDES}.get(name)
    return "" if isinstance(rows, int) and (rows in fits if fits else rows >= 0) else f"{name} {rows}"


def pad_geometry(sides: object, mode: str, value: object) -> tuple[Geometry | None, str]:
    """The Geometry whose padding and padding_mode a padding before a convolution has, and ""; or None and why not.

    sides: what stands left, right, above and below, or one number for all; mode, value: as of torch.nn.functional.pad,
    or a mode of BORDERS
    """
    mode = "zeros" if mode == "constant" else mode
    sides = tuple(sides) if isinstance(sides, (list, tuple)) else (sides,) * 4
    if len(sides) != 4 or len(set(sides)) > 1:
        return None, f"padding {sides}"
    if not isinstance(sides[0], int) or sides[0] < 0 or mode not in BORDERS:
        return None, f"padding {sides[0]} of mode {mode}"
    if mode == "zeros" and value not in (None, 0):
        return None, f"padding with {value}"
    return Geometry("none", 1, sides[0], mode, False, 0), ""


def padded(pad: Geometry, conv: Geometry) -> tuple[Geometry | None, str]:
    """The Geometry of a convolution together with the padding before it, and ""; or None and why there is none."""
    if conv.transposed:
        return None, "a transposed convolution after it"
    if conv.padding and (conv.padding_mode, pad.padding_mode) != ("zeros", "zeros"):
        return None, "the convolution after it has a padding of its own"
    return conv._replace(padding=pad.padding + conv.padding, padding_mode=pad.padding_mode), ""


def conv_name(kernel: int, geometry: Geometry) -> str:
    """A convolution in the words of a report."""
    parts = ["transposed conv" if geometry.transposed else "conv", f"{kernel}x{kernel}"]
    parts += [f"stride {geometry.stride}"] if geometry.stride != 1 else []
    parts += [f"padding {geometry.padding}"] if geometry.padding != (kernel - 1) // 2 else []
    parts += [geometry.padding_mode] if geometry.padding_mode != "zeros" and geometry.padding else []
    return " ".join(parts)
