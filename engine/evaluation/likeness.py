"""How close results are to their originals, image by image: L1, PSNR and SSIM (torchmetrics)."""

from types import ModuleType

import torch
from torch import Tensor

from engine.errors import InputError
from engine.host.environment import attempt

TORCHVISION = "torchvision does not fit this PyTorch: install both from one index, as pytorch.org says"
_INSIDE = 5  # half of the window


def require_torchmetrics() -> ModuleType:
    """torchmetrics.functional.image. Raises InputError saying what to install when it is missing."""
    module, problem = attempt("torchmetrics.functional.image")
    if module is None:
        # it imports torch-fidelity where that is installed, and fails with it
        cure = (
            f"{TORCHVISION}, or remove torch-fidelity" if "torchvision" in problem else "pip install kiln-engine[eval]"
        )
        raise InputError(f"PSNR and SSIM need torchmetrics, which is not usable ({problem}): {cure}")
    return module


def likeness(results: Tensor, originals: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    """Per image, float64 (N,): "l1" in the scale of the training losses (0 to 2), "psnr" in dB, "ssim" (-1 to 1).

    results, originals: (N, C, R, R) uint8. SSIM as Wang et al. 2004: Gaussian window 11x11, sigma 1.5, where it lies
    inside the image (R >= 16). PSNR of equal images is infinite.
    """
    image = require_torchmetrics()
    found: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": []}
    for a, b in zip(results.split(batch_size), originals.split(batch_size), strict=True):
        a, b = a.double() / 255, b.double() / 255
        found["l1"].append(2 * (a - b).abs().mean(dim=(1, 2, 3)))
        psnr = image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        found["psnr"].append(psnr.reshape(-1))
        _, maps = image.structural_similarity_index_measure(
            a, b, data_range=1.0, reduction="none", return_full_image=True
        )
        # only windows inside the image, as Wang et al.: what torchmetrics does at the border changed with its versions
        found["ssim"].append(maps[:, :, _INSIDE:-_INSIDE, _INSIDE:-_INSIDE].mean(dim=(1, 2, 3)))
    return {name: torch.cat(parts) for name, parts in found.items()}
