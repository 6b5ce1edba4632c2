"""The registry of releases: zips, sums and an index that MONAI reads; made, checked, fetched from and published.

A registry is a folder, or its address: `<name>_v<version>.zip` with `.zip.sha256` and `.md` (release notes) beside it,
and `model_info.json`, which names them all.
"""
