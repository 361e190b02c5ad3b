"""Fine-tuning through transformers' Trainer, and every outcome of it."""
