"""How the course's own checkpoints are made: `course train NAME` runs one of these modules."""

RECIPES = {
    "g2p-transformer": "course_utils.recipes.g2p_transformer",
    "gru-or-lstm": "course_utils.recipes.gru_or_lstm",
    "pruned-minilm": "course_utils.recipes.pruned_minilm",
    "qat-minilm": "course_utils.recipes.qat_minilm",
    "qat-on-a-task": "course_utils.recipes.qat_on_a_task",
    "lora-sweep": "course_utils.recipes.lora_sweep",
    "prompt-grid": "course_utils.recipes.prompt_grid",
    "transfer-grid": "course_utils.recipes.transfer_grid",
    "how-llms-are-built": "course_utils.recipes.how_llms_are_built",
    "distilled-students": "course_utils.recipes.distilled_students",
    "smollm2-adapters": "course_utils.recipes.smollm2_adapters",
}
