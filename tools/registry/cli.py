"""`python -m tools registry`."""

from tools.registry.build import build
from tools.registry.fetch import fetch
from tools.registry.publish import publish
from tools.registry.verify import verify

registry = {"build": build, "verify": verify, "fetch": fetch, "publish": publish}
