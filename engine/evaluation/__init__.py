"""Measures and figures of trained models. Images are uint8 (N, C, R, R), with the values that `kiln refine` writes.

evaluating.py does the work of `kiln evaluate`; base.py says what an evaluation offers; refined.py, generated.py and
driven.py are the evaluations of the three kinds of systems. measures.py names every measure and lays them out as a
table; likeness.py, sliced_wasserstein.py, fidelity.py, identity.py and neighbours.py compute them; figures.py draws
them.
"""
