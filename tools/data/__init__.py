"""Data sets: phantoms, splits, datalists."""
