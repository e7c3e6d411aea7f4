"""What comes in: checkpoints, tokenizers, datasets and settings, read and checked, and models trained from them."""
