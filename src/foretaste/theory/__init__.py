"""Pure mathematics of both papers: arrays in, arrays out, no models."""
