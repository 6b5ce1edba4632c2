"""The registry of releases: zips, sums and an index that MONAI reads; made, checked, fetched from and published.

A registry is a folder, or its address: `<name>_v<version>.zip` with `.zip.sha256` and `.md` (release notes) beside it,
and `model_info.json`, which names them all.
"""

from tools.registry.build import build
from tools.registry.fetch import fetch
from tools.registry.publish import publish
from tools.registry.verify import verify

__all__ = ["build", "fetch", "publish", "registry", "verify"]

registry = {"build": build, "verify": verify, "fetch": fetch, "publish": publish}
