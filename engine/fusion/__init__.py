"""Rewrites any nn.Module to use the fused operator: `engine.fuse`, `engine.unfuse`, and a pass for torch.compile.

The journey of `fuse(model)`, file by file:

    model                   walks the modules from the outside inwards; for each one:
    tracing/tracer          turns its forward into a graph, or says why no graph would stand for it
        tracing/bytecode      looks at the Python code for what leaves no trace
        tracing/proxies       stand for the tensors while the forward runs
        tracing/module_state  records the attributes that the forward reads, and undoes what it changes
    chains/matching         finds the chains in the graph
        chains/classify       says what each node is: convolution, resize, activation, or nothing
        chains/convolutions   says which convolutions and paddings the operator has
        chains/mutation       refuses chains whose tensors are written to
        chains/savings        refuses chains that would not pay; counts products
    forward                 makes the plan, which says what the module runs and when it may, and exchanges its class
        chains/replacement    puts one call of the operator in place of each chain of the graph; runs it later
        chains/folding        makes one convolution of a convolution and a batch normalisation in evaluation
        chains/normalisation  runs a normalisation with its activation, or leaves it to torch, as size and mode say
        lookups               says what calls of modules look up, and whether that is as it was
    check                   with example_inputs: compares outputs before and after
    report                  says what was replaced, what was left, and why

`inductor` uses chains/ alone: torch.compile has the graph already. tracing/ and chains/ know nothing of each other, and
of the files beside them `lookups` alone.

The function `fuse` lies in model.py, for a submodule fuse.py would take its place in this package once imported.
"""

from engine.fusion.inductor import inductor_pass
from engine.fusion.model import fuse, unfuse
from engine.fusion.report import Entry, FuseReport

__all__ = ["Entry", "FuseReport", "fuse", "inductor_pass", "unfuse"]
