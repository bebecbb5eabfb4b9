"""The suite `compiled`: registers, shared memory, spills and matrix instructions of everything that is shipped."""

from dataclasses import asdict
from typing import Any

import torch
import triton
from tqdm import tqdm

from benchmarks import compiled
from benchmarks.compiled import CAPABILITIES, Resources, Variant
from benchmarks.table import Table


def suite(only: str, quick: bool) -> tuple[list[dict], list[Table]]:
    """Compiles what operators whose name contains `only`, and the step, launch. A row with problems has `failed`.

    quick: the few variants that every test run compiles.
    """
    with tqdm(desc="launches", leave=False, disable=None) as bar:
        found = compiled.shipped(only, samples=quick, tick=lambda what: (bar.set_postfix_str(what), bar.update()))
    variants = list(found.variants.values())
    wanted = few(variants) if quick else [(v, c) for v in variants for c in CAPABILITIES]
    with tqdm(total=len(wanted), desc="compiling", leave=False, disable=None) as bar:
        made = compiled.compile_all(wanted, bar.update)
    rows = [row(*result) for result in made]
    shown = [summary(made), *tables(made)]
    print(*shown, sep="\n")
    return rows, shown


def few(variants: list[Variant]) -> list[tuple[Variant, int]]:
    """What every test run compiles: for sm_90 every choice of form in every arithmetic, for the others each once."""
    many, least = (compiled.chosen(variants, thorough) for thorough in (True, False))
    return [(v, 90) for v in many] + [(v, c) for v in least for c in CAPABILITIES if c != 90]


def subset() -> list[dict[str, Any]]:
    """Rows of `few` of everything that is shipped, the tests' odd shapes included."""
    made = compiled.compile_all(few(list(compiled.shipped(samples=True).variants.values())))
    return [row(*result) for result in made]


def summary(found: list[tuple[Variant, int, Resources]]) -> Table:
    """Counts for each target."""
    columns = [("target", 8), ("assembler", 24), ("codes", 6), ("spilling", 9), ("most registers", 15)]
    columns += [("matrix kernels", 15), ("with matrix instructions", 25), ("failed", 7)]
    table = Table(f"Compiled ahead of time by Triton {triton.__version__}", columns, left=2)
    for capability in CAPABILITIES:
        here = [(v, made) for v, c, made in found if c == capability]
        matrix = [made for v, made in here if v.matrix]
        failed = sum(bool(compiled.problems(v, capability, made)) for v, made in here)
        counts = [len(here), sum(bool(m.stack or m.local) for _, m in here)]
        counts += [max((m.registers for _, m in here), default=0), len(matrix), sum(bool(m.matrix) for m in matrix)]
        assembler = f"ptxas {versions()[f'ptxas sm_{capability}']}"
        table.add([f"sm_{capability}", assembler, *map(str, counts), str(failed)])
    return table


def versions() -> dict[str, str]:
    """Of Triton and of the assembler it brings for each target."""
    found = {"triton": triton.__version__, "torch": torch.__version__}
    for capability in CAPABILITIES:
        tool = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
        found[f"ptxas sm_{capability}"] = tool.version
    return found


def row(wanted: Variant, capability: int, made: Resources) -> dict[str, Any]:
    """One result for the JSON."""
    return {
        "suite": "compiled",
        "name": wanted.name,
        "target": f"sm_{capability}",
        "modes": sorted(wanted.modes),
        "launched_by": wanted.seen,
        "form": wanted.form,
        "tile": wanted.tile,
        "signature": wanted.signature,
        "matrix_kernel": wanted.matrix,
        **asdict(made),
        "programs_per_processor": compiled.residents(compiled.gpu(capability), made),
        **({"failed": failed} if (failed := compiled.problems(wanted, capability, made)) else {}),
    }


def tables(found: list[tuple[Variant, int, Resources]]) -> list[Table]:
    """One table for each kernel: a row is a form and a tile, its worst figures over the specialisations of the ints."""
    columns = [("arithmetic", 34), ("form", 60), ("tile", 44), ("code", 5)]
    columns += [(f"sm_{c}", 46) for c in CAPABILITIES]
    grouped: dict[str, dict[tuple, dict[int, list[Resources]]]] = {}
    for v, capability, made in found:
        rows = grouped.setdefault(f"{v.module.split('.')[-2]}: {v.name}", {})
        rows.setdefault((" ".join(sorted(v.modes)), v.form, v.tile), {}).setdefault(capability, []).append(made)
    result = []
    for kernel in sorted(grouped):
        table = Table(kernel, columns, left=3)
        for label, by in sorted(grouped[kernel].items()):
            count = max(len(made) for made in by.values())
            table.add([*label, str(count), *(_cell(c, by.get(c, [])) for c in CAPABILITIES)])
        result.append(table)
    return result


def _cell(capability: int, made: list[Resources]) -> str:
    """ "128 regs, 96 KiB, 2 at once, 8 wgmma": the worst of each."""
    if not made:
        return "-"
    for one in made:
        if one.error:
            return one.error
    words = [f"{max(m.registers for m in made)} regs", f"{max(m.shared for m in made) / 1024:.0f} KiB"]
    words.append(f"{min(compiled.residents(compiled.gpu(capability), m) for m in made)} at once")
    kinds = {kind: min(m.matrix.get(kind, 0) for m in made) for m in made for kind in m.matrix}
    words += [f"{count} {kind}" for kind, count in kinds.items()]
    if spilled := [m for m in made if m.stack or m.local]:
        words.append(f"SPILLS {max(m.spills for m in spilled)}")
    return ", ".join(words)
