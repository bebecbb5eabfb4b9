"""The errors that commands print as one line: InputError exits with status 2, LostRank with 1."""


class InputError(Exception):
    """One line that says what is wrong with the input and what to do about it."""


class SharedError(InputError):
    """An InputError that every rank raises; only rank 0 prints it."""


class LostRank(Exception):
    """Another of the processes that train together has ended, or its machine cannot be reached."""


# what CUDA and Triton say where a kernel cannot be started, and what that means for the user
_GPU_FAILURES = (
    (
        "unsupported toolchain",
        "the NVIDIA driver does not know the PTX version of the kernels that this Triton makes; update the driver, or "
        "install the torch and Triton that were made for it",
    ),
    ("device kernel image is invalid", "the NVIDIA driver cannot load this Triton's kernels; update the driver"),
    ("no kernel image is available", "this torch has no code for this GPU; install the torch build that has"),
    (
        "Failed to find C compiler",
        "Triton needs a C compiler to start a kernel; install gcc or clang, or name one by CC",
    ),
    ("is not defined for option 'gpu-name'", "this Triton is too old for this GPU; pip install --upgrade triton"),
)


def gpu_failure(error: BaseException) -> str:
    """What an error means that CUDA or Triton raised because no kernel can run here, and how to fix it; else ""."""
    text = str(error)
    return next(
        (f"the GPU kernels cannot run here: {meaning}" for words, meaning in _GPU_FAILURES if words in text), ""
    )
