"""Python loads this as it starts under a rehearsal: what cannot work where kernels compute nothing is left out.

cuDNN looks for an algorithm by running it, and PyTorch's optimisers compare a learning rate on the GPU with 0.
"""

import importlib.abc
import importlib.util
import sys


class AfterTorch(importlib.abc.MetaPathFinder):
    """Prepares torch after it is imported."""

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        """torch's own spec, with `prepare` after its execution."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_prepare(module: object) -> None:
            execute(module)
            prepare(module)

        spec.loader.exec_module = execute_and_prepare
        return spec


def prepare(torch: object) -> None:
    """Turns cuDNN off, and makes optimisers with a rate on the host before they get theirs."""
    torch.backends.cudnn.enabled = False
    for optimiser in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD):

        def initialise(self, parameters, lr=1e-3, *rest, made=optimiser.__init__, **more) -> None:
            made(self, parameters, 1e-3, *rest, **more)
            for group in self.param_groups:
                group["lr"] = lr

        optimiser.__init__ = initialise


sys.meta_path.insert(0, AfterTorch())
