"""Computes Inception Score and Fréchet Inception Distance by torch-fidelity, with Inception weights from a local file.

Nothing is downloaded. Without the file, or where torch-fidelity cannot be imported, the measures are skipped and say
how to get them. A file that the user names and that is missing or not the known file is an error.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine.errors import InputError
from engine.evaluation.likeness import TORCHVISION
from engine.host.environment import attempt
from engine.host.file_digest import sha256
from engine.host.input_files import UnreadableFile

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPLITS = 10  # of the Inception Score, as in Salimans et al. 2016
NO_WEIGHTS = f"skipped: no Inception weights; download {URL} and give it with --inception-weights"


def check_weights(path: Path) -> None:
    """Raise InputError unless `path` is torch-fidelity's file of Inception weights."""
    try:
        digest = sha256(path)
    except UnreadableFile as error:
        raise InputError(f"--inception-weights {path}: {error}; the file is at {URL}") from None
    if digest != DIGEST:
        raise InputError(
            f"--inception-weights {path} is not the known file (its SHA-256 begins with {digest[:8]}, not "
            f"{DIGEST[:8]}); download {URL}"
        )


def usable() -> tuple[ModuleType | None, str | None]:
    """(torch_fidelity, None), or (None, "skipped: why, and what to do")."""
    module, problem = attempt("torch_fidelity")
    if module is not None:
        return module, None
    fix = TORCHVISION if "torchvision" in problem else "pip install kiln-engine[fid]"
    return None, f"skipped: torch-fidelity is not usable ({problem}); {fix}"


class _Images(Dataset):
    """A tensor (N, C, R, R) uint8 as torch-fidelity reads images: one by one, with 3 channels."""

    def __init__(self, images: Tensor) -> None:
        self._images = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def inception_measures(
    results: Tensor, reals: Tensor, weights: Path | None, device: torch.device, batch_size: int = 32
) -> dict[str, dict[str, float] | float | str]:
    """{"inception_score": {"mean", "std"}, "fid": value}, or why each was skipped.

    results, reals: (N, C, R, R) and (M, C, R, R) uint8; a grey channel is repeated three times
    weights:        a file that check_weights accepts, or None
    The score is that of `results`, over 10 splits, or over as many splits as there are images when these are fewer.
    With few images the FID is biased upwards and the score downwards: compare only values of equally many images.
    """
    module, why = usable() if weights is not None else (None, NO_WEIGHTS)
    if module is None:
        return {"inception_score": why, "fid": why}
    if min(len(results), len(reals)) < 2:
        why = "skipped: at least two images are needed"
        return {"inception_score": why, "fid": why}
    metrics = module.calculate_metrics(
        input1=_Images(results),
        input2=_Images(reals),
        isc=True,
        fid=True,
        isc_splits=min(SPLITS, len(results)),
        batch_size=batch_size,
        cuda=device.type == "cuda",
        feature_extractor_weights_path=str(weights),
        cache=False,
        save_cpu_ram=True,  # reads without worker processes
        verbose=False,
    )
    score = {"mean": float(metrics["inception_score_mean"]), "std": float(metrics["inception_score_std"])}
    return {"inception_score": score, "fid": float(metrics["frechet_inception_distance"])}
