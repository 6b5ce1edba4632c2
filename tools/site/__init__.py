"""The documentation site: pages that are made of the repository's texts, configs and docstrings when it is built."""
