"""Example prompts for a model."""

from t2i_cli import postcard
from t2i_cli.model_spec import ModelSpec
from t2i_cli.postcard import vocabulary

_GENERAL = (
    "a lighthouse on a cliff at dusk, oil painting",
    "a bowl of lemons on a blue table, morning light",
    "a fox in the snow, watercolour",
    "an old tram in a narrow street after the rain, photograph",
    "a paper model of a small mountain village, seen from above",
)
"""Subjects and styles that text-to-image models in general can draw, without letters or people."""


def example_prompts(spec: ModelSpec) -> list[str]:
    """Prompts to try the model with; postcard's are made of the words that it knows."""
    return list(vocabulary.EXAMPLES if spec.folder == postcard.FOLDER else _GENERAL)
