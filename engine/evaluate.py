"""`python -m engine.evaluate MODEL --data PATH`: measures how good a trained model is, whatever its kind.

Writes figures and metrics.json; metrics.json is written last, so that it stands for a whole evaluation. What is
measured depends on what the system does: engine.evaluation.refined, .generated, .driven. PATH should hold images that
were not trained on.
"""

from engine.cli import parse, run
from engine.evaluation.evaluating import EvaluateOptions, evaluate_model


def main(argv: list[str]) -> int:
    """Measure a trained model on a set of images."""
    what = "Measure a trained model on a set of images."
    print(evaluate_model(parse(EvaluateOptions, argv, prog="kiln evaluate", description=what)))
    return 0


if __name__ == "__main__":
    run("evaluate", main)
