"""The exercises of the notebooks, one module each, and the one table from a notebook's number."""

MODULES = {
    "00": "how_llms_are_built",
    "01": "recurrent_networks",
    "02": "attention",
    "03": "transformer_families",
    "04": "data_parallel",
    "05": "sharded_data_parallel",
    "06": "fine_tuning",
    "07": "lora_and_qlora",
    "08": "prompt_tuning",
    "09": "decoding",
    "10": "prompting",
    "11": "reasoning_and_acting",
    "12": "retrieval_augmented_generation",
    "13": "quantization",
    "14": "quantization_aware_training",
    "15": "distillation",
    "16": "pruning",
}
