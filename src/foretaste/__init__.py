"""foretaste: how far poisoned training data can push a language model, predicted and measured."""
