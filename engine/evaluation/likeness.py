"""Measures how close results are to their originals, image by image: L1, PSNR and SSIM (torchmetrics)."""

from types import ModuleType

import torch
from torch import Tensor

from engine.errors import InputError
from engine.host.environment import attempt

TORCHVISION = "torchvision does not fit this PyTorch: install both from one index, as pytorch.org says"
_INSIDE = 5  # pixels at the border where the window of SSIM, 11x11, reaches beyond the image


def require_torchmetrics() -> ModuleType:
    """The module torchmetrics.functional.image. Raises InputError that says what to install when it is missing."""
    module, problem = attempt("torchmetrics.functional.image")
    if module is None:
        # torchmetrics imports torch-fidelity where that is installed, and fails when torch-fidelity fails
        fix = (
            f"{TORCHVISION}, or remove torch-fidelity" if "torchvision" in problem else "pip install kiln-engine[eval]"
        )
        raise InputError(f"PSNR and SSIM need torchmetrics, which is not usable ({problem}): {fix}")
    return module


def likeness(results: Tensor, originals: Tensor, batch_size: int = 8) -> dict[str, Tensor]:
    """ "l1" on the scale of the training losses (0 to 2), "psnr" in dB and "ssim" (-1 to 1), each (N,) float64.

    results, originals: (N, C, R, R) uint8, R >= 16. SSIM is that of Wang et al. 2004, with a Gaussian window 11x11 of
    sigma 1.5, averaged over the windows that lie inside the image. The PSNR of equal images is infinite.
    batch_size: images at a time; torchmetrics takes 25 MB for each of 64x64
    """
    image = require_torchmetrics()
    measures: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": []}
    for a, b in zip(results.split(batch_size), originals.split(batch_size), strict=True):
        a, b = a.double() / 255, b.double() / 255
        measures["l1"].append(2 * (a - b).abs().mean(dim=(1, 2, 3)))
        psnr = image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        measures["psnr"].append(psnr.reshape(-1))
        _, maps = image.structural_similarity_index_measure(
            a, b, data_range=1.0, reduction="none", return_full_image=True
        )
        # only windows inside the image count, as in Wang et al.; torchmetrics treats the border differently by version
        measures["ssim"].append(maps[:, :, _INSIDE:-_INSIDE, _INSIDE:-_INSIDE].mean(dim=(1, 2, 3)))
    return {name: torch.cat(parts) for name, parts in measures.items()}
