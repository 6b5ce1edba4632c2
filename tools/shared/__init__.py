"""The only source of what several bundles have in their `shared` folder; `make sync` writes the copies."""
