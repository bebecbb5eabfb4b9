"""What a run has written when it is done, and what a kill just before its end has left out."""

from pathlib import Path

from engine.config import TrainConfig


def grid_path(run_dir: Path, step: int) -> Path:
    """The file of the sample grid of a step."""
    return run_dir / "samples" / f"step_{step:08d}.png"


def grid_due(config: TrainConfig, step: int) -> bool:
    """Whether a sample grid is drawn after this step."""
    return config.sample_every > 0 and (step % config.sample_every == 0 or step == config.steps)


def lacks_grid(config: TrainConfig, step: int) -> bool:
    """Whether the run folder has no sample grid of this step, after which one is drawn."""
    return grid_due(config, step) and not grid_path(config.out, step).is_file()


def lacks_report(run_dir: Path, saved: Path) -> bool:
    """Whether the run folder has no report, or only one from before the checkpoint `saved` was written."""
    page = run_dir / "report.html"
    return not page.is_file() or page.stat().st_mtime_ns < (saved / "manifest.json").stat().st_mtime_ns


def remove_later_grids(run_dir: Path, step: int) -> None:
    """Remove the sample grids of later steps than the one that a run goes on from. Raises OSError."""
    for path in (run_dir / "samples").glob("step_*.png"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and int(number) > step:
            path.unlink()
