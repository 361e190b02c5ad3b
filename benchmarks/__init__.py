"""Speed of foretaste against what people run otherwise, as ratios measured in one process run."""
