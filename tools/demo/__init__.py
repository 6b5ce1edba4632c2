"""`python -m tools demo`: a bundle trained, run, evaluated and drawn."""
