"""Finds out what is installed and works on this machine, for `kiln doctor`: one finding a line, and how to fix it.

Every check runs even where half of the installation is broken. So this module imports no torch, DALI, Triton or
extension, and nothing that imports one of them: `environment.attempt` tries an import, and functions that need one of
them import it themselves.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.host import environment
from engine.version import __version__

OK, NOTE, BROKEN = "ok", "note", "BROKEN"
# distributions without which training does not work
NEEDED = ("numpy", "pillow", "safetensors", "tyro", "tqdm", "matplotlib", "jinja2")
# distribution -> (its module, what does not work without it, how to install it)
EXTRAS = {
    "tensorboard": ("tensorboard", "no TensorBoard events are written", "pip install 'kiln-engine[tensorboard]'"),
    "torchmetrics": ("torchmetrics", "`evaluate` cannot run", "pip install 'kiln-engine[eval]'"),
    "opencv-python-headless": (
        "cv2",
        "`evaluate` and `refine --face-crop` cannot run",
        "pip install 'kiln-engine[eval]'",
    ),
    "dlib-bin": (
        "dlib",
        "`evaluate` skips identity, recognition and landmark error",
        "pip install 'kiln-engine[identity]'",
    ),
}
_IMPORT_NAMES = {"pillow": "PIL"}
_LEAST_FUSED = 0.99  # of a step's FLOPs; less is a note
_LOW_MEMORY, _LOW_DISK = 2 << 30, 2 << 30  # bytes; less is a note


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    subject: what was examined
    state:   "ok", "note" or "BROKEN"
    found:   what was found
    fix:     what to do about it, or ""
    """

    subject: str
    state: str
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """The finding for `kiln doctor --json`, whose key for `fix` is "mend" in every version."""
        return {"subject": self.subject, "state": self.state, "found": self.found, "mend": self.fix}


def check_python() -> list[Finding]:
    """The version of Python, and whether Kiln is tested with it."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    fix = "" if supported else "Kiln is tested with Python 3.10 to 3.13; use one of them if something fails"
    return [Finding("python", OK if supported else NOTE, f"{version} ({sys.executable}), kiln {__version__}", fix)]


def check_cpu() -> list[Finding]:
    """The processor, its cores, and the instruction sets that matter to Kiln."""
    cpu = environment.cpu()
    return [
        Finding("processor", OK, f"{cpu['model']}, {cpu['cores']} cores; {' '.join(cpu['flags']) or cpu['machine']}")
    ]


def check_torch() -> list[Finding]:
    """The version of torch, and how many threads it uses."""
    torch, problem = environment.attempt("torch")
    if torch is None:
        return [Finding("torch", BROKEN, f"cannot be imported: {problem}", "pip install 'torch>=2.11,<2.14'")]
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    tested = (2, 11) <= version <= (2, 13)
    fix = "" if tested else "Kiln is tested with torch 2.11 to 2.13; install one of them if something fails"
    found = f"{torch.__version__}, vector kernels {torch.backends.cpu.get_cpu_capability()}"
    return [Finding("torch", OK if tested else NOTE, found, fix), _threads(torch.get_num_threads())]


def _threads(threads: int) -> Finding:
    """Whether torch uses as many threads as this process may use cores."""
    cores = environment.cpu()["cores"]
    if threads > cores:
        fix = f"set OMP_NUM_THREADS={cores}: more threads than cores slow everything down"
        return Finding("threads", NOTE, f"torch uses {threads} threads on {cores} cores", fix)
    if threads < cores:
        setting = os.environ.get("OMP_NUM_THREADS")
        why = "torch's choice" if setting is None else f"OMP_NUM_THREADS={setting}"
        found = f"torch uses {threads} of {cores} cores ({why})"
        return Finding("threads", NOTE, found, f"train with --threads {cores} to use all")
    return Finding("threads", OK, f"torch uses {threads} on {cores} cores")


def check_extension() -> list[Finding]:
    """Whether the extension loads, and which instruction set it uses."""
    # torch is imported first, because the extension takes its OpenMP symbols from torch's runtime
    if environment.attempt("torch")[0] is None:
        return [Finding("extension", NOTE, "not checked: it needs torch")]
    kernels, problem = environment.attempt("engine.kernels._native")
    if kernels is None:
        return [Finding("extension", BROKEN, f"engine.kernels cannot be imported: {problem}", "install Kiln again")]
    try:
        native = kernels.load()
    except ImportError as error:
        fix = "pip install . (in a checkout: python setup.py build_ext --inplace); until then only --eager works"
        if "KILN_ISA" in str(error):
            fix = "unset KILN_ISA, or name one of these"
        return [Finding("extension", BROKEN, " ".join(str(error).split()), fix)]
    used, best = native.isa(), native.machine_isa()
    why = "the best of this machine" if used == best else f"KILN_ISA caps this machine's {best}"
    built = f"{len(native.functions())} functions, compiled by {getattr(native, 'compiler', 'an unknown compiler')}"
    fix = "" if used == best else f"unset KILN_ISA to use {best}"
    return [Finding("extension", OK, f"engine._native loaded: {built}; uses {used}, {why}", fix)]


def check_openmp() -> list[Finding]:
    """How many OpenMP runtimes this process has loaded."""
    runtimes = environment.loaded_openmp()
    if runtimes is None:
        return []
    if len({os.path.realpath(path) for path in runtimes}) > 1:
        fix = "keep one: each has threads of its own and they get in each other's way"
        return [Finding("openmp", NOTE, f"{len(runtimes)} runtimes loaded: {', '.join(runtimes)}", fix)]
    return [Finding("openmp", OK, f"one runtime: {Path(runtimes[0]).name}" if runtimes else "none loaded")]


def check_gpu() -> list[Finding]:
    """The GPUs, and whether torch and Triton can use them."""
    torch, _ = environment.attempt("torch")
    if torch is None:
        return []
    driver, cards = environment.driver(), environment.gpus()
    if not cards:
        if driver and torch.version.cuda is None:
            fix = "install torch's CUDA build (pytorch.org, 'Get started')"
            return [Finding("gpu", NOTE, f"NVIDIA driver {driver} is there, but this torch is built for the CPU", fix)]
        if driver:
            fix = "update the driver, or install the torch build that fits it"
            return [Finding("gpu", NOTE, f"driver {driver} and CUDA {torch.version.cuda}: torch finds no device", fix)]
        return [Finding("gpu", OK, "none; training runs on the CPU")]
    findings = []
    for card in cards:
        free = f", {card['free'] / 2**30:.1f} free" if card["free"] is not None else ""
        found = f"{card['name']}, {card['memory'] / 2**30:.1f} GiB{free}, capability {card['capability']}"
        findings.append(Finding("gpu", OK, f"{found}; driver {driver}, CUDA {torch.version.cuda}"))
    triton, problem = environment.attempt("triton")
    if triton is None:
        findings.append(
            Finding("triton", BROKEN, f"cannot be imported: {problem}", "pip install triton; until then --device cpu")
        )
    else:
        findings.append(Finding("triton", OK, str(triton.__version__)))
    return findings


def check_distributed() -> list[Finding]:
    """Whether torchrun can train in several processes."""
    torch, _ = environment.attempt("torch")
    if torch is None:
        return []
    if not torch.distributed.is_available():
        return [Finding("distributed", NOTE, "this torch is built without torch.distributed: one process trains")]
    gloo, nccl = torch.distributed.is_gloo_available(), torch.distributed.is_nccl_available()
    backends = [name for name, usable in (("gloo (CPUs)", gloo), ("NCCL (GPUs)", nccl)) if usable]
    incomplete = not gloo or (
        torch.cuda.is_available() and not nccl
    )  # flags go through gloo even where tensors go through NCCL
    fix = "install a torch build of pytorch.org to train with torchrun" if incomplete else ""
    found = f"torchrun, {' and '.join(backends) or 'neither gloo nor NCCL'}"
    return [Finding("distributed", NOTE if incomplete else OK, found, fix)]


def check_loading() -> list[Finding]:
    """Whether DALI can read images."""
    version = environment.version_of("nvidia-dali-cuda130") or environment.version_of("nvidia-dali-cuda120")
    # nvidia.dali.fn is tried, because `import nvidia.dali` alone may find an empty namespace package
    dali, problem = environment.attempt("nvidia.dali.fn")
    if dali is None:
        fix = "pip install 'kiln-engine[dali-cu13]' (or [dali-cu12]); both work without a GPU"
        return [Finding("dali", BROKEN, f"images cannot be read: {problem}", fix)]
    from engine.data.decoding.dali import too_old

    if why := too_old(version or ""):
        found, _, fix = why.partition(": ")
        return [Finding("dali", BROKEN, found, fix)]
    return [Finding("dali", OK, f"{version or 'installed'}; decodes images")]


def check_packages() -> list[Finding]:
    """The packages that training needs."""
    findings, good = [], []
    for name in NEEDED:
        module, problem = environment.attempt(_IMPORT_NAMES.get(name, name))
        if module is None:
            findings.append(Finding(name, BROKEN, f"cannot be imported: {problem}", f"pip install {name}"))
        else:
            good.append(f"{name} {environment.version_of(name) or ''}".strip())
    return [Finding("packages", OK, ", ".join(good)), *findings]


def check_extras() -> list[Finding]:
    """The optional packages, and what does not work without each."""
    findings = []
    for name, (module, without, fix) in EXTRAS.items():
        found, problem = environment.attempt(module)
        if name.startswith("opencv") and found is not None and not hasattr(found, "CascadeClassifier"):
            found, problem = None, "it has no Haar cascades; versions below 5 have"
        if found is not None:
            findings.append(Finding(name, OK, environment.version_of(name) or "installed"))
        else:
            state = "not installed" if environment.version_of(name) is None else f"broken: {problem}"
            findings.append(Finding(name, NOTE, f"{state}; {without}", fix))
    return findings


def check_room() -> list[Finding]:
    """Free memory and disk space, and whether Kiln's folders can be written."""
    findings = []
    memory = environment.memory()
    if memory["available"] is not None:
        low = memory["available"] < _LOW_MEMORY
        found = f"{memory['available'] / 2**30:.1f} GiB of {(memory['total'] or 0) / 2**30:.1f} GiB available"
        fix = "close other programs or lower --batch-size and --filters" if low else ""
        findings.append(Finding("memory", NOTE if low else OK, found, fix))
    places = {"disk (here)": Path.cwd()}
    cache, _ = environment.attempt("engine.data.cache")
    if cache is not None:
        places["disk (cache)"] = cache.cache_folder()
    for subject, place in places.items():
        free = environment.free_disk(place)
        if free is None:
            continue
        fix = "free some space: a run writes checkpoints and samples" if free < _LOW_DISK else ""
        findings.append(Finding(subject, NOTE if fix else OK, f"{free / 2**30:.1f} GiB free at {place}", fix))
        parent = next((p for p in (place, *place.parents) if p.exists()), place)
        if not os.access(parent, os.W_OK):
            fix = "set KILN_CACHE to a folder of yours" if "cache" in subject else "give --out a folder of yours"
            findings.append(Finding(subject, NOTE, f"{parent} cannot be written", fix))
    return findings


def check_training() -> list[Finding]:
    """Take a small fused step on each device, on a GPU also as a CUDA graph: only a step proves that training works."""
    torch, _ = environment.attempt("torch")
    if torch is None:
        return [Finding("training", BROKEN, "cannot work without torch", "see torch above")]
    findings = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        try:
            _one_step(torch.device(device))
            works = "one fused step of a small refiner works"
            works += ", also as a CUDA graph" if device == "cuda" else ""
            findings.append(Finding(f"training ({device})", OK, works))
        except Exception as error:  # any error belongs on the page
            found = f"a fused step fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            fix = "see above; --eager may still work" if device == "cpu" else "use --device cpu, or --eager"
            # a machine whose CPU path works can train
            findings.append(Finding(f"training ({device})", BROKEN if device == "cpu" else NOTE, found, fix))
    return findings


def _one_step(device: Any) -> None:
    """Take one fused step of a small refiner. Raises whatever goes wrong."""
    import torch

    from engine.data import Batch
    from engine.systems.refiner import RefinerConfig
    from engine.systems.registry import build
    from engine.training.cuda_graph import WARM_UP, GraphedStep
    from engine.verification.training_steps import training_images

    config = RefinerConfig(fused=True, resolution=16, filters=4, hidden=8, batch_size=2, model="A", inject=(8,))
    images = training_images(2, 3, 16, 1, device)
    batch, system = Batch(images=images, landmarks=None, indices=torch.arange(2)), build(config, device)
    losses = system.step(batch)
    if device.type == "cuda":
        graphed = GraphedStep(system)
        for _ in range(WARM_UP + 1):
            losses = graphed(batch)
    if not all(bool(torch.isfinite(value)) for value in losses.values()):
        raise FloatingPointError("the losses are not finite")


def check_fused() -> list[Finding]:
    """Of each system at its paper's sizes, the share of a fused step's FLOPs that Kiln's kernels compute."""
    if environment.attempt("torch")[0] is None:
        return []
    try:
        from engine.systems.registry import SYSTEMS
        from engine.training.fused_share import fused_share, preset_config

        counted: list[tuple[str, str, dict[str, Any]]] = [(system, system, {}) for system in SYSTEMS]
        counted.append(("wgan, penalty", "wgan", {"gradient_penalty": 10.0}))
        findings = []
        for subject, system, options in counted:
            count = fused_share(preset_config(system, "paper", **options))
            found = f"Kiln's kernels compute {count}"
            found += f"; PyTorch the rest: {', '.join(sorted(count.rest))}" if count.rest else ""
            state = OK if count.share >= _LEAST_FUSED else NOTE
            findings.append(Finding(f"fused ({subject})", state, found))
        return findings
    except Exception as error:  # what is missing has a line of its own
        return [Finding("fused", NOTE, f"not counted: {type(error).__name__}: {' '.join(str(error).split())[:200]}")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_cpu,
    check_torch,
    check_extension,
    check_openmp,
    check_gpu,
    check_distributed,
    check_loading,
    check_packages,
    check_extras,
    check_room,
    check_training,
    check_fused,
)


def examine() -> list[Finding]:
    """Run every check and return the findings; a check that raises an error becomes a finding."""
    findings = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # the other checks have to run too
            name = check.__name__.removeprefix("check_")
            findings.append(Finding(name, BROKEN, f"this check failed: {type(error).__name__}: {error}"))
    return findings


def works(findings: list[Finding]) -> bool:
    """Whether training works on this machine: nothing is broken."""
    return all(finding.state != BROKEN for finding in findings)


def as_json(findings: list[Finding], operators: str | None) -> str:
    """The findings and the table of the operators as JSON."""
    entries = [finding.to_json() for finding in findings]
    return json.dumps({"works": works(findings), "findings": entries, "operators": operators}, indent=2)


def page(findings: list[Finding], operators: str | None) -> str:
    """The findings and the table of the operators for the terminal."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<6}  {finding.subject:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<6}  {'':<{width}}  -> {finding.fix}")
    lines += ["", "operators:" if operators else "operators: cannot be listed (see above)"]
    if operators:
        lines += [f"  {line}" for line in operators.splitlines()]
    broken = [finding.subject for finding in findings if finding.state == BROKEN]
    verdict = f"Training does not work here yet; fix: {', '.join(broken)}." if broken else "Training works here."
    return "\n".join([*lines, "", verdict])
