"""The suite `compiled`: registers, shared memory, spills and matrix instructions of every shipped configuration."""

from collections import Counter
from typing import Any

import torch
import triton
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.prediction import compiled, launches
from benchmarks.prediction.compiled import CAPABILITIES, Resources, Variant
from benchmarks.timing.table import Table


def cases(only: str, quick: bool = False) -> list[str]:
    """The operators with GPU kernels, and the refiner's step, whose name contains `only`."""
    return [name for name in (*launches.specs(), compiled.PAPER) if only in name]


def run(arguments: Arguments, limits: None) -> tuple[list[dict], list[Table]]:
    """Compiles what the cases launch. A row with problems has `failed`.

    --quick: only the few variants that every test run compiles.
    """
    only, quick = arguments.filter, arguments.quick
    with tqdm(desc="launches", leave=False, disable=None) as bar:
        launched = compiled.shipped(only, samples=quick, tick=lambda what: (bar.set_postfix_str(what), bar.update()))
    variants = list(launched.variants.values())
    wanted = few(variants) if quick else [(v, c) for v in variants for c in CAPABILITIES]
    with tqdm(total=len(wanted), desc="compiling", leave=False, disable=None) as bar:
        compilations = compiled.compile_all(wanted, bar.update)
    merged = rows(compilations)
    shown = [summary(compilations), *tables(merged)]
    print(*shown, sep="\n")
    return merged, shown


def few(variants: list[Variant]) -> list[tuple[Variant, int]]:
    """What every test run compiles: every kernel and arithmetic for each target, every choice of form for sm_90."""
    every = compiled.chosen(variants, forms=True)
    some = compiled.chosen(every, forms=False)
    return [(v, c) for c in CAPABILITIES for v in (every if c == 90 else some)]


def subset() -> list[dict[str, Any]]:
    """Rows of what `few` chooses from everything that is shipped, the tests' odd shapes included."""
    return rows(compiled.compile_all(few(list(compiled.shipped(samples=True).variants.values()))))


def summary(compilations: list[tuple[Variant, int, Resources]]) -> Table:
    """Counts for each target."""
    columns = [("target", 8), ("assembler", 24), ("codes", 6), ("spilling", 9), ("most registers", 15)]
    columns += [("matrix kernels", 15), ("with matrix instructions", 25), ("failed", 7)]
    table = Table(f"Compiled ahead of time by Triton {triton.__version__}", columns, left=2)
    for capability in CAPABILITIES:
        here = [(v, made) for v, c, made in compilations if c == capability]
        matrix = [made for v, made in here if v.matrix]
        failed = sum(bool(compiled.problems(v, capability, made)) for v, made in here)
        counts = [len(here), sum(bool(m.stack or m.local) for _, m in here)]
        counts += [max((m.registers for _, m in here), default=0), len(matrix), sum(bool(m.matrix) for m in matrix)]
        assembler = f"ptxas {versions()[f'ptxas sm_{capability}']}"
        table.add([f"sm_{capability}", assembler, *map(str, counts), str(failed)])
    return table


def versions() -> dict[str, str]:
    """The versions of Triton, torch, and the assembler that Triton brings for each target."""
    known = {"triton": triton.__version__, "torch": torch.__version__}
    for capability in CAPABILITIES:
        tool = triton.knobs.nvidia.ptxas_blackwell if capability >= 100 else triton.knobs.nvidia.ptxas
        known[f"ptxas sm_{capability}"] = tool.version
    return known


def rows(compilations: list[tuple[Variant, int, Resources]]) -> list[dict[str, Any]]:
    """A row for each kernel, arithmetic, form, tile and target; one with problems has `failed`.

    The figures of a row are the worst over its `codes`, which differ only in how integers and pointers are specialised.
    """
    grouped: dict[tuple, list[tuple[Variant, int, Resources]]] = {}
    for result in compilations:
        v, capability, _ = result
        grouped.setdefault((v.module, v.name, tuple(sorted(v.modes)), v.form, v.tile, capability), []).append(result)
    return [_row(results) for _, results in sorted(grouped.items(), key=lambda item: item[0])]


def _row(results: list[tuple[Variant, int, Resources]]) -> dict[str, Any]:
    first, capability, _ = results[0]
    made = [m for _, _, m in results]
    kinds = sorted({kind for m in made for kind in m.matrix})
    launched: Counter[str] = Counter()
    for v, _, _ in results:
        launched.update(v.seen)
    failed = sorted({problem for result in results for problem in compiled.problems(*result)})
    return {
        "suite": "compiled",
        "module": first.module.split(".")[-2],
        "name": first.name,
        "target": f"sm_{capability}",
        "oldest": first.oldest,
        "modes": sorted(first.modes),
        "form": first.form,
        "tile": first.tile,
        "launched_by": dict(launched),
        "codes": len(made),
        **{n: max(getattr(m, n) for m in made) for n in ("registers", "stack", "local", "spills", "shared", "threads")},
        "matrix_kernel": any(v.matrix for v, _, _ in results),
        "matrix": {kind: min(m.matrix.get(kind, 0) for m in made) for kind in kinds},
        "programs_per_processor": min(compiled.residents(compiled.gpu(capability), m) for m in made),
        **({"failed": failed} if failed else {}),
    }


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One table for each kernel, a row for each form and tile, the targets beside each other."""
    columns = [("arithmetic", 34), ("form", 60), ("tile", 44), ("codes", 5)]
    columns += [(f"sm_{c}", 46) for c in CAPABILITIES]
    grouped: dict[str, dict[tuple, dict[str, dict]]] = {}
    for row in rows:
        by_label = grouped.setdefault(f"{row['module']}: {row['name']}", {})
        by_label.setdefault((" ".join(row["modes"]), row["form"], row["tile"]), {})[row["target"]] = row
    result = []
    for kernel in sorted(grouped):
        table = Table(kernel, columns, left=3)
        for label, by_target in sorted(grouped[kernel].items()):
            codes = max(row["codes"] for row in by_target.values())
            table.add([*label, str(codes), *(_cell(by_target.get(f"sm_{c}")) for c in CAPABILITIES)])
        result.append(table)
    return result


def _cell(row: dict[str, Any] | None) -> str:
    """One target's cell: "128 regs, 96 KiB, 2 at once, 8 wgmma", and what is wrong; - without a row."""
    if row is None:
        return "-"
    words = [f"{row['registers']} regs", f"{row['shared'] / 1024:.0f} KiB", f"{row['programs_per_processor']} at once"]
    words += [f"{count} {kind}" for kind, count in row["matrix"].items()]
    return ", ".join([*words, *(f"FAILED: {problem}" for problem in row.get("failed", []))])
