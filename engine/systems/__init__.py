"""The systems that can be trained, one file for each, and what they share.

Read in this order: refiner (a whole system, with the calls of its step listed at the top), base (what the training loop
calls), balance (the losses that refiner and began share), registry (from a name to a system). Then any system:

    file                      what it trains                          what it builds on
    refiner                   the image-based BEGAN refiner           balance
    began                     BEGAN from noise                        balance, generation
    dcgan                     a baseline of began                     generation
    wgan                      a baseline of began                     dcgan
    simgan, simgan_options    SimGAN for faces                        image_pool
    cyclegan                  the baseline of simgan                  image_pool
    ggb                       the Generative Guiding Blocks           base
    reenact                   the landmark-conditioned reenactment    feature_losses

kinds says what a trained system is for. The networks are in engine.networks.

To add a system:
1. Write engine/systems/NAME.py. Its docstring has the equations with their numbers, and the calls of one step in
   order.
2. In it write a configuration, a subclass of engine.config.TrainConfig: a field and its docstring for each option,
   PRESETS ("quick" and "paper"), FIXED (what a resumed run cannot change), SMALL (a small run in which every part
   works from its first step) and check().
3. In it write a subclass of System, or of BalancedSystem, NoiseSystem or DcganLike: name, kind, config_class,
   headline, charts, needs, networks, averaged, update, sample, passes and trained. `update` becomes one CUDA graph,
   so it reads nothing from the device. Where the paper has an ablation, ABLATION lists its runs.
4. Enter the system in SYSTEMS, in registry.py.
5. Put its networks into engine/networks/, built of engine.networks.layers, with a parameter `fused`. Their start
   values come from engine.networks.initialisation.
6. Test the step against the paper's equations in plain PyTorch, in tests/systems/test_NAME.py.

The loop, the loaders, checkpoints, commands and reports find the system in SYSTEMS. So do `kiln verify`, which
trains the SMALL run, and tests/systems/test_systems.py: recorded steps, resuming, samples, the module for use, a
dry run.
"""

from engine.systems.kinds import KINDS, Kind
from engine.systems.registry import SYSTEMS, build, config_class, system_class

__all__ = ["KINDS", "SYSTEMS", "Kind", "build", "config_class", "system_class"]
