"""What a trained system is for, and what follows from that: its command, its model card, the next steps of a report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a trained system is for.

    name:      "refine", "generate" or "drive"
    command:   the `kiln` command that uses a trained system of this kind
    arguments: what that command takes after the run, as its usage shows them
    does:      what the command does, for an error message
    task:      the pipeline tag of model hubs
    usage:     Python that uses the module which `engine.load` returns as `model`
    """

    name: str
    command: str
    arguments: str
    does: str
    task: str
    usage: str

    @property
    def next_steps(self) -> tuple[tuple[str, str], ...]:
        """The commands that come after training, each with its arguments after the run."""
        return ((self.command, self.arguments), ("evaluate", "--data PATH"))


REFINE = Kind(
    name="refine",
    command="refine",
    arguments="INPUT OUTPUT",
    does="refines images",
    task="image-to-image",
    usage="refined = model(images)",
)
GENERATE = Kind(
    name="generate",
    command="sample",
    arguments="OUTPUT -n 64",
    does="makes images from noise",
    task="unconditional-image-generation",
    usage="images = model(model.noise(16, torch.Generator().manual_seed(0)))",
)
DRIVE = Kind(
    name="drive",
    command="reenact",
    arguments="SOURCE DRIVING OUTPUT",
    does="moves an image to other landmarks or another pose",
    task="image-to-image",
    usage="driven = model(images, points)  # points (B, K, 2) in pixels",
)
KINDS = (REFINE, GENERATE, DRIVE)
