"""The vocabulary of the postcard model in groups, and example prompts."""

from t2i_cli import postcard

EXAMPLES = (
    "a small red circle on a yellow background",
    "red star, blue background",
    "a green triangle above an orange square on white",
    "a red house on green hills at night under a full moon",
    "a sailboat on the sea at sunset",
    "a snowman in the snow, starry night, crescent moon",
    "a cactus in the desert at dawn with distant mountains",
)

_GROUPS = {
    "colours": "red orange yellow green blue purple violet pink brown black white",
    "shapes": "circle disc round square triangle star heart diamond rhombus",
    "sizes": "tiny little small medium mid sized big large huge",
    "positions": "left right of above over below under beneath beside next to top bottom front",
    "times of day": "day daytime noon evening dusk sunset sunrise dawn morning early night",
    "sky": "sky clear cloudy clouds sun moon full crescent stars starry",
    "ground": "hills rolling desert dunes sand snow snowy sea ocean water calm field fields wheat",
    "things": "house cottage tree sailboat boat sailing sails cactus snowman mountains distant",
}


def vocabulary() -> dict[str, list[str]]:
    """Every word that postcard was trained on, by group; each group lists a word once."""
    words = postcard.words()
    groups = {
        title: [word for word in group.split() if word in words] for title, group in _GROUPS.items()
    }
    grouped = {word for group in groups.values() for word in group}
    return groups | {"other words": sorted(words - grouped)}
