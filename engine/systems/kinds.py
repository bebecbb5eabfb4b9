"""What a trained system is for: which command uses it, what its model card says, what a report names as next steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One of the purposes that a trained system can have.

    name:      "refine", "generate" or "drive"
    command:   the `kiln` command that uses a trained system of this kind
    arguments: what that command takes after the run, as its usage shows them
    does:      what the command does, in the words of an error message
    task:      the pipeline tag of this kind on model hubs
    usage:     Python code that calls `model`, the module that `engine.load` returns
    best_by:   the measure that tells which step of a training is the best: "swd", "ssim" or "l1"
    """

    name: str
    command: str
    arguments: str
    does: str
    task: str
    usage: str
    best_by: str

    @property
    def next_steps(self) -> tuple[tuple[str, str], ...]:
        """The commands that a user can run after training: (command, its arguments after the run) each."""
        return ((self.command, self.arguments), ("evaluate", "--data PATH"))


REFINE = Kind(
    name="refine",
    command="refine",
    arguments="INPUT OUTPUT",
    does="refines images",
    task="image-to-image",
    usage="refined = model(images)",
    best_by="swd",
)
GENERATE = Kind(
    name="generate",
    command="sample",
    arguments="OUTPUT -n 64",
    does="makes images from noise",
    task="unconditional-image-generation",
    usage="images = model(model.noise(16, torch.Generator().manual_seed(0)))",
    best_by="swd",
)
DRIVE = Kind(
    name="drive",
    command="reenact",
    arguments="SOURCE DRIVING OUTPUT",
    does="moves an image to other landmarks or another pose",
    task="image-to-image",
    usage="driven = model(images, points)  # (B, K, 2) in pixels; needs_source_points: those of the images as well",
    best_by="ssim",
)
KINDS = (REFINE, GENERATE, DRIVE)
