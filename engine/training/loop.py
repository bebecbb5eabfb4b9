"""The training loop of every system.

One step is `Trainer._one_step`: learning rate -> next batch -> System.step (or its CUDA graph) -> losses noted on the
device; every log_every steps the losses are read and recorded, every eval_every held-out images are measured, every
sample_every a grid is drawn, every checkpoint_every a checkpoint and the report are written.
"""

import contextlib
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine import checkpoint, distributed
from engine import config as configuration
from engine.config import Origins, TrainConfig
from engine.data.pixel_values import picture_pixels
from engine.distributed import torchrun
from engine.errors import InputError, SharedError
from engine.inference.faces import Framing
from engine.inference.sample_grid import save_grid
from engine.networks.layers import parameter_count
from engine.systems.base import System
from engine.systems.registry import build
from engine.training import completion, initial, random_state, report
from engine.training.cuda_graph import WARM_UP, GraphedStep, no_waiting
from engine.training.held_out import Best, HeldOut
from engine.training.memory import require_memory
from engine.training.metrics import HELD_OUT, LossMeter, MetricsLog, missing, missing_text, read_metrics
from engine.training.progress import Progress, lasting_output, memory_mb
from engine.training.schedule import learning_rate
from engine.training.setup import (
    claimed_folder,
    image_sets,
    mode,
    open_loaders,
    open_set,
    require_fused,
    require_same_data,
    set_machine,
)
from engine.training.signals import StopRequest

if TYPE_CHECKING:
    from engine.data import Loader, Together

SAMPLES = 8
FRAMED = 32  # how many photos the framing of faces is measured on
REPORT_SHARE = 0.05  # of the time of a training that drawing its report takes at most


def train(config: TrainConfig, origins: Origins) -> int:
    """Run a configuration to its end. Returns 0, or 130 / 143 when a signal ended it (with a checkpoint saved).

    Raises InputError for bad input, a loss that is not finite, and a disk that cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lasting_output())
        start = distributed.from_first(lambda: stack.enter_context(claimed_folder(config)))
        finished = start is not None and start.step >= config.steps
        if finished and not distributed.from_first(lambda: _complete(config, start)):
            return 0
        return _train(config, origins, start)


def _complete(config: TrainConfig, start: checkpoint.Checkpoint) -> bool:
    """Say that a run is finished, and write the report that a kill left out; returns whether a grid is to be drawn."""
    line = f"{config.out} has already done {start.step} of {config.steps} steps; raise --steps to go on"
    if completion.lacks_report(config.out, start.path):
        try:
            report.write(config.out)
            line += "; its report.html was missing or old, and is written now"
        except Exception as error:  # a report that cannot be drawn is no failure of the training
            line += f"; its report.html is missing or old, and cannot be written ({type(error).__name__}: {error})"
    rows = read_metrics(config.out / "metrics.jsonl")
    if gaps := missing_text(missing(rows, start.state.get("recorded", 0))):
        line += f"; {gaps}"
    if lacks_grid := completion.lacks_grid(config, start.step):
        line += f"; its sample grid of step {start.step} is missing, and is drawn now without training"
    print(line, flush=True)
    return lacks_grid


def _train(config: TrainConfig, origins: Origins, start: checkpoint.Checkpoint | None) -> int:
    own = config.of_rank()
    device = distributed.prepare(config.device, own.batch_size)
    with distributed.together():
        require_fused(config)
        require_memory(config)
    set_machine(config)
    print(configuration.table(config, origins), flush=True)
    datasets = distributed.one_by_machine(lambda: [open_set(own, path, need) for path, need in image_sets(own)])
    require_same_data(datasets)
    with distributed.together():
        loader = open_loaders(own, datasets, device)
    try:
        for dataset in datasets:
            print(f"data    {dataset.summary()}")
        print(f"loader  {loader.describe()}")
        with distributed.together():
            system = build(own, device)
            if config.init and start is None:
                print(f"init    {initial.load(system, config.init)}")
        sizes = ", ".join(f"{name} {parameter_count(net):,}" for name, net in system.networks().items())
        print(f"model   {config.system}: {sizes} parameters\nmode    {mode(config)}")
        with distributed.together():
            held_out = _held_out(own, system) if config.eval_every and distributed.rank() == 0 else None
        return Trainer(config, origins, system, loader, start, held_out).run()
    finally:
        loader.close()


def _held_out(config: TrainConfig, system: System) -> HeldOut:
    """What measures the run between its steps; one line for each of its sets. Raises InputError."""
    sets = [open_set(config, path, need, held=True) for path, need in image_sets(config)]
    for images in sets:
        print(f"measure {images.summary()}")
    return HeldOut(system, sets)


class Trainer:
    """One run: a system, the loader of its images, and the folder that it records in.

    Every rank has one. All train the same weights, and only the first rank writes to the folder.
    """

    def __init__(
        self,
        config: TrainConfig,
        origins: Origins,
        system: System,
        loader: "Loader | Together",
        start: checkpoint.Checkpoint | None = None,
        held_out: HeldOut | None = None,
    ):
        self.config, self.origins, self.system, self.loader = config, origins, system, loader
        self.held_out, self.best = held_out, Best.of(system)
        self.run_dir: Path = config.out
        self.meter = LossMeter(system.device)
        on_gpu = system.device.type == "cuda"
        self._train_on = GraphedStep(system, settle=loader.settle) if on_gpu and config.cuda_graph else system.step
        self.step = 0
        self.saved: Path | None = None
        self._recorded, self._elapsed_before = 0, 0.0
        if start is not None:
            self._restore(start)
        self.first_step = self.step
        self._report_works = True
        self._reported, self._report_due = -1, 0.0  # the step of the last report, and when another one may be drawn

    def run(self) -> int:
        """Train to the last step or until a signal; returns the exit status."""
        config = self.config
        with contextlib.ExitStack() as stack:
            distributed.require_same(self.system.weights().values())
            # from here on a signal finds a run that can be saved
            stop = stack.enter_context(StopRequest(silent=distributed.rank() > 0))
            distributed.from_first(lambda: self._open_records(stack))
            print(f"run     {self.run_dir}" + (f", going on from step {self.step}" if self.step else ""), flush=True)
            self.progress = Progress(self.step, config.steps)
            stack.callback(self.progress.close)
            self._began = time.monotonic()
            self._open_interval()
            distributed.from_first(self._first_samples)
            while self.step < config.steps and not self._settled() and not self._asked(stop):
                self._one_step()
            if self.step < config.steps and not self._settled():
                return self._stopped(stop)
            if self.step == self.first_step:  # the run was finished before, but not all that it writes was there
                distributed.from_first(self._sample)
            distributed.from_first(self._last_report)
        print(f"done    {self.step} steps; {self.saved}")
        if self.best.value is not None:
            print(f"best    {self._best_in_words()}")
        if self._report_works:
            print(f"        {self.run_dir / 'report.html'}")
        return 0

    def _open_records(self, stack: contextlib.ExitStack) -> None:
        """Open the files of the run folder; the stack closes them."""
        with self._writing("the run folder"):
            torchrun.mark(self.run_dir)
            configuration.write(self.config, self.origins, self.run_dir / "config.json")
            completion.remove_later_grids(self.run_dir, self.step)
            self.log = MetricsLog(self.run_dir, self.step, self._recorded)
        stack.callback(self._close_records)
        for note in self.log.notes:
            print(note)

    def _close_records(self) -> None:
        with self._writing("metrics.jsonl"):
            self.log.close()

    def _first_samples(self) -> None:
        config = self.config
        self._fixed = self.loader.fixed(min(SAMPLES, config.batch_size)) if config.sample_every else None
        if not self.step:
            self._measure_framing()
            self._sample()

    def _asked(self, stop: StopRequest) -> bool:
        """Whether a signal has asked any rank to stop; all ranks then stop after the same step.

        Asking all ranks takes longer the more there are, so many ranks ask only every few steps.
        """
        if self.step % max(1, distributed.size() // 8):
            return False
        if number := distributed.largest(stop.number or 0):
            stop.number = number
        return number > 0

    def _one_step(self) -> None:
        config, step = self.config, self.step + 1
        # the first steps compile, tune and record the step, and may wait for the device
        with no_waiting(self.system.device) if step - self.first_step > WARM_UP else contextlib.nullcontext():
            self.system.set_learning_rate(learning_rate(config, step))
            losses = self._train_on(self.loader.next())
            self.meter.add(step, losses)
        self.step = step
        measured, is_best = self._measure() if self._measured_now() else ({}, False)
        last = step == config.steps or self._settled()
        self.progress.show(step, self._read(measured) if step % config.log_every == 0 or last or measured else None)
        with self._pause():
            if completion.grid_due(config, step) or self._settled():
                distributed.from_first(self._sample)
            if step % config.checkpoint_every == 0 or last or is_best:
                self._save()
            if is_best:
                distributed.from_first(self._mark_best)

    # measurements on images that are not trained on

    def _measured_now(self) -> bool:
        every = self.config.eval_every
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _measure(self) -> tuple[dict[str, float], bool]:
        """Measure the held-out images on the first rank; the measures, and whether this step is the best so far."""
        with self._pause():
            measured = distributed.from_first(lambda: self.held_out.measure())
        return measured, self.best.take(measured, self.step)

    def _settled(self) -> bool:
        """Whether --patience ends the run: so many measurements in a row were no better than the best one."""
        return 0 < self.config.patience <= self.best.later

    def _mark_best(self) -> None:
        with self._writing("checkpoints/best"):
            checkpoint.mark_best(self.saved, self.config.keep)

    def _best_in_words(self) -> str:
        best, place = self.best, f"{checkpoint.FOLDER}/{checkpoint.BEST}"
        waited = f"; stopped after {best.later} measurements that were no better" if self._settled() else ""
        return f"step {best.step}, {best.by} {best.value:.4g} on held-out images: {place}{waited}"

    # records

    def _open_interval(self) -> None:
        self._interval_began, self._interval_first = time.monotonic(), self.step
        self._waited_before, self._paused = self.loader.seconds_waited, 0.0

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """A block whose time does not count as training."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    def _read(self, measured: Mapping[str, float]) -> str:
        """Read the losses from the device, record them, and return the text of the progress line.

        measured: the measures of this step on held-out images, which are recorded too; {} where there are none
        """
        self.meter.share()
        values, bad = self.meter.read()
        self._check_losses(values, bad)
        self.meter.reset()
        seconds = max(1e-9, time.monotonic() - self._interval_began - self._paused)
        speed = (self.step - self._interval_first) * self.config.batch_size / seconds
        waiting = min(1.0, (self.loader.seconds_waited - self._waited_before) / seconds)
        self._open_interval()
        record = {
            "step": self.step,
            "since": self._recorded,
            "time": round(self._elapsed(), 3),
            **values,
            "lr": learning_rate(self.config, self.step),
            "images_per_s": round(speed, 3),
            "data_wait": round(waiting, 4),
            "memory_mb": round(memory_mb(self.system.device), 1),
            **{name: round(value, 5) for name, value in measured.items()},
        }
        distributed.from_first(lambda: self._write(record))
        self._recorded = self.step
        shown = " ".join(f"{name} {values[name]:.4g}" for name in self.system.headline if name in values)
        of_held_out = "".join(f" {name.removeprefix(HELD_OUT)} {value:.4g}" for name, value in measured.items())
        shown += f", held out:{of_held_out}" if measured else ""
        return f"{shown}, {speed:.4g} images/s, {record['memory_mb']:.0f} MB, data {100 * waiting:.0f} %"

    def _write(self, record: dict[str, Any]) -> None:
        with self._writing("metrics.jsonl"):
            self.log.write(record)

    def _measure_framing(self) -> None:
        """How the photos frame their faces, for `refine --face-crop`; nothing where no faces are found."""
        framing = Framing.measure(picture_pixels(self.loader.fixed(FRAMED).images))
        if framing:
            with self._writing(Framing.FILE):
                framing.write(self.run_dir)

    def _sample(self) -> None:
        if self._fixed is None:
            return
        with self._writing("a sample grid"):
            save_grid(self.system.sample(self._fixed), completion.grid_path(self.run_dir, self.step))

    def _last_report(self) -> None:
        if self._reported != self.step:
            self._report()

    def _report_if_due(self) -> None:
        """Write the report, unless drawing it so soon again would take more than REPORT_SHARE of the time."""
        if time.monotonic() >= self._report_due:
            self._report()

    def _report(self) -> None:
        began = time.monotonic()
        try:
            report.write(self.run_dir)
        except Exception as error:  # a report that cannot be drawn must not end a training
            if self._report_works:
                self.progress.say(f"report.html could not be written: {type(error).__name__}: {error}")
            self._report_works = False
        ended = time.monotonic()
        self._reported, self._report_due = self.step, ended + (ended - began) / REPORT_SHARE

    # checkpoints

    def _state(self) -> dict[str, Any]:
        return {
            "system": self.system.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random_state.capture(),
            "meter": self.meter.state_dict(),
            "recorded": self._recorded,
            "elapsed": self._elapsed(),
            "best": self.best.state_dict(),
        }

    def _restore(self, start: checkpoint.Checkpoint) -> None:
        """Take up the run where a checkpoint left it. Raises InputError for a state that is not of this run's kind."""
        self.step, self.saved = start.step, start.path
        self.system.load_weights(start.weights)
        try:
            self._restore_state(start.state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise InputError(
                f"the state in {start.path} is not that of this run ({type(error).__name__}: {error}); "
                "start another run with another --out"
            ) from error

    def _restore_state(self, state: dict[str, Any]) -> None:
        self.system.load_state_dict(state["system"])
        self.loader.load_state_dict(state["loader"])
        random_state.restore(state["random"])
        self.meter.load_state_dict(state["meter"])
        # version 0.2.0 did not save it; its meter counts the steps since then
        self._recorded = state.get("recorded", self.step - self.meter.count)
        self._elapsed_before = state["elapsed"]
        if "best" in state:  # runs before 0.3 did not measure
            self.best.load_state_dict(state["best"])

    def _save(self) -> None:
        self.meter.share()  # every rank goes on from the sums that are saved
        self._check_losses(*self.meter.read())
        weights = self.system.weights()
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"the weights {name} are no longer finite at step {self.step}")
        distributed.require_same(weights.values())
        self.saved = distributed.from_first(lambda: self._write_checkpoint(weights))
        distributed.from_first(self._report_if_due)

    def _write_checkpoint(self, weights: dict[str, Tensor]) -> Path:
        with self._writing("metrics.jsonl"):
            self.log.sync()  # a checkpoint counts only with the rows before it
        with self._writing(f"the checkpoint of step {self.step}"):
            return checkpoint.save(
                self.run_dir, self.step, weights, self._state(), self.config, self.origins, self.config.keep
            )

    def _stopped(self, stop: StopRequest) -> int:
        if self.saved is None or self.saved.name != f"step_{self.step:08d}":
            self._save()
        distributed.from_first(self._last_report)
        self.progress.close()
        print(f"stopped by {stop.name} after step {self.step} of {self.config.steps}; saved {self.saved}")
        print(f"go on with: {self._resume_command()}", flush=True)
        return stop.status

    def _resume_command(self) -> str:
        ranks = f"torchrun --nproc-per-node {torchrun.local_size()}" if self.config.ranks > 1 else "python"
        return f"{ranks} -m engine.train --resume --out {shlex.quote(str(self.run_dir))}"

    # what can go wrong

    def _check_losses(self, values: dict[str, float], bad: dict[str, int]) -> None:
        if bad:
            first = min(bad.values())
            names = ", ".join(name for name, step in bad.items() if step == first)
            raise self._diverged(f"{names} not finite (NaN or infinite) from step {first} on")

    def _diverged(self, what: str) -> SharedError:
        """The error of a diverged run, which all ranks raise: what happened and what to try."""
        config = self.config
        lower = f"--lr {config.lr / 4:g}"
        fix = f"try a lower learning rate, {lower}"
        if config.precision == "bf16":
            fix += ", or --precision fp32"
        if self.saved is None:
            return SharedError(f"{what}, before the first checkpoint; {fix}, with another --out")
        kept = f"the last good checkpoint is {self.saved}"
        return SharedError(f"{what}; {kept}; {fix}: {self._resume_command()} {lower}")

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """A block that turns an OSError of the run folder into one line: what failed, what is kept, how to go on."""
        try:
            yield
        except OSError as error:
            kept = f"earlier checkpoints are intact, the last is {self.saved}" if self.saved else "no checkpoint yet"
            fix = f"make room or set the rights, then {self._resume_command()}"
            raise InputError(f"{what} could not be written ({error.strerror or error}); {kept}; {fix}") from error
