"""Compares fused with reference, and examines the machine.

checks.py does the work of `kiln verify`, a row of its table for each group of comparisons. training_steps.py takes the
same training step fused and eager; operator_calls.py keeps the operator calls of a step, to compare each of them.
machine.py does the work of `kiln doctor`: it finds out what is installed and works on this machine.
"""
