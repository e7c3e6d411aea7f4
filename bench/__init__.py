"""The cases: what is timed and judged of each model, maximum length and variant."""
