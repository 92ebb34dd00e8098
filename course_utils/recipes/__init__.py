"""How the course's own checkpoints are made: `course train NAME` runs one of these modules."""

RECIPES = {
    "g2p-transformer": "course_utils.recipes.g2p_transformer",
    "gru-or-lstm": "course_utils.recipes.gru_or_lstm",
}
