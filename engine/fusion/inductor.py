"""A pass over the graphs of torch.compile that replaces the chains of a model that is not fused."""

from pathlib import Path

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from engine.fusion.chains.matching import find_chains
from engine.fusion.chains.replacement import rewrite

SOURCES = tuple(str(path) for path in sorted(Path(__file__).parent.rglob("*.py")))


class InductorPass(CustomGraphPass):
    """Puts the operators in place of every chain of a graph; Inductor compiles what lies around them.

    torch.compile(model, options={"pre_grad_custom_pass": engine.fusion.inductor_pass})
    """

    def __call__(self, graph: fx.Graph) -> None:
        rewrite(graph, find_chains(graph, None).chains)

    def uuid(self) -> bytes:
        """A hash of the code: compiled graphs that were cached by another version of it are not used."""
        return get_hash_for_files(SOURCES)


inductor_pass = InductorPass()
