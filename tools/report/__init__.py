"""One HTML page about the runs in a folder: curves, scores, pictures of cases, settings, versions."""
