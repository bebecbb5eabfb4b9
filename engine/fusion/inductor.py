"""The chains of a model that is compiled: a pass over torch.compile's graph, for models that are not fused."""

from pathlib import Path

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from engine.fusion.chains.matching import find
from engine.fusion.forward import rewrite

SOURCES = tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py")))


class InductorPass(CustomGraphPass):
    """Puts the operator in place of every chain of the graph; Inductor compiles what lies around them.

    torch.compile(model, options={"pre_grad_custom_pass": engine.fusion.inductor_pass})
    """

    def __call__(self, graph: fx.Graph) -> None:
        rewrite(graph, find(graph, None).chains)

    def uuid(self) -> bytes:
        """What the caches of compiled graphs tell this pass by."""
        return get_hash_for_files(SOURCES)


inductor_pass = InductorPass()
