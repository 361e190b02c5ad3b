"""From one capture of the base model to what training would do to its outputs, without training."""
