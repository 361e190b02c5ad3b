"""From the name of a base model and an adapter to a classifier that is ready to train."""
