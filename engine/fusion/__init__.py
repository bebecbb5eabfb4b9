"""Rewrites any nn.Module to use the fused operator: `engine.fuse`, `engine.unfuse`, and a pass for torch.compile.

A package, for a module engine/fuse.py would take the function's place as `engine.fuse` once it is imported.
"""

from engine.fusion.inductor import inductor_pass
from engine.fusion.model import fuse, unfuse
from engine.fusion.report import Entry, FuseReport

__all__ = ["Entry", "FuseReport", "fuse", "inductor_pass", "unfuse"]
