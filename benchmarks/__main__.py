"""`python -m benchmarks SUITE`: fused against PyTorch on this machine, each after its equivalence check.

`python -m benchmarks compare A.json B.json` tells what changed between two results beyond noise;
`python -m benchmarks merge OUT.json A.json B.json ...` makes one result of several suites measured apart;
`python -m benchmarks html A.json OUT.html` makes the page of one again;
`python -m benchmarks readme A.json` writes the README's table and plot from one;
`python -m benchmarks ranks` tells on paper what 8 to 1024 GPUs bring;
`python -m benchmarks selftest` shows on this machine that the benchmark finds what it should.

Three baselines, at the same precision, in the same process, interleaved, each in the better of contiguous and
channels_last: eager PyTorch as people write it, torch.compile of the same, and the best known with library parts.
Where the processor multiplies numbers in bfloat16, eager and compile in bfloat16 are reported beside them.
"""

from benchmarks import selftest
from benchmarks.arguments import Arguments, check
from benchmarks.prediction import ranks
from benchmarks.reports import compare, merge, page, readme
from benchmarks.run import run
from engine import cli

# in place of a suite: on saved results, on paper, and on the benchmark itself
COMMANDS = {
    "compare": compare.main,
    "merge": merge.main,
    "html": page.main,
    "readme": readme.main,
    "ranks": ranks.main,
    "selftest": selftest.main,
}


def main(argv: list[str]) -> int:
    """Runs a command on its own options, or a suite. Returns 1 when a result differs from the reference."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks", description=__doc__)
    check(arguments)
    return run(arguments, arguments.suites)


if __name__ == "__main__":
    cli.run("benchmarks", main)
