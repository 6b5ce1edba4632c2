"""One HTML page about the runs in a folder: curves, scores, figures of cases, settings, versions."""
