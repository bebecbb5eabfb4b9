"""`python -m engine.evaluate RUN_OR_CHECKPOINT --data PATH`: how good a trained model is, whatever it is for.

Writes metrics.json (last, so that it stands for a whole evaluation) and figures. What is measured depends on what the
system does: engine.evaluation.refined, .generated, .driven. Give images that were not trained on.
"""

from engine.cli import parse, run
from engine.evaluation.model import EvaluateOptions, evaluate_model


def main(argv: list[str]) -> int:
    """Measure a trained model on a set of images."""
    what = "Measure a trained model on a set of images."
    print(evaluate_model(parse(EvaluateOptions, argv, prog="kiln evaluate", description=what)))
    return 0


if __name__ == "__main__":
    run("evaluate", main)
