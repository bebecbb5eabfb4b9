"""What Kiln gains on this machine: operators and whole training steps, fused against PyTorch.

    catalogue   the list of suites: what each measures, where it runs, what its rows hold
    arguments   the options of `python -m benchmarks`, and their checks
    timing/     how a time is taken, and how rows and tables are made of it
    suites/     what is measured: a file for each suite, and the models and baselines that they need
    prediction/ what is known of a GPU without a stopwatch: compiled kernels, a roofline
    reports/    from a saved result to words, figures and pages
    run         limits, suites, saving: one run
    selftest    shows that a run can be believed
    gpu/        `python -m benchmarks.gpu OUT`: everything that a GPU can show
    results/    saved results by machine and commit

Imports go one way:

    checkout, catalogue <- arguments <- timing <- suites <- prediction, reports <- run <- selftest <- __main__
    checkout, catalogue <- arguments <- timing <- suites <- prediction <- gpu

The catalogue names the suites' modules as text; they are imported when they run.
"""
