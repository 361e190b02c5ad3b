"""Few-shot fine-tuning with prompts, and its kernel analogs (Malladi et al. 2023).

`spec` says what to run, `record` what a run leaves behind, `prepare` what it starts from; `tune` holds the
fine-tuning arms, `solve` the kernel arms, and `run` puts a run together.
"""
