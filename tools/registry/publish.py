"""Uploading a registry to where `monai.bundle.download` finds it."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tools.arguments import require_text
from tools.registry.http_log import HttpLog
from tools.registry.index import DEMO_VERSION, Release, is_address, read_index
from tools.registry.verify import problems

TOKENS = {"github": "GITHUB_TOKEN", "hub": "HF_TOKEN"}
PACKAGES = {"github": "PyGithub", "hub": "huggingface_hub"}


def publish(
    registry: str,
    *,
    github: str | None = None,
    tag: str | None = None,
    target: str | None = None,
    hub: str | None = None,
    dry_run: bool = False,
) -> None:
    """Upload the registry REGISTRY, after `verify`, to a GitHub release or to the Hugging Face hub.

    GitHub: the release TAG of the repository gets all zips, their checksums and model_info.json. MONAI looks for the
    latter in the tree of the tag, so the tag is put on a commit of its own that adds models/model_info.json to TARGET;
    no branch changes. The release is a draft until everything is there.

    Hub: every bundle is a repository HUB/<name>, its files at the root beside a model card, with one tag per version
    and `latest_version` at the newest.

    What is there already stays: a version is never replaced, and a call that was cut off is continued by the same call.
    Every request is shown. Tokens come from the environment: GITHUB_TOKEN, HF_TOKEN.

    Args:
        registry: folder that `registry build` made.
        github: owner/repository.
        tag: release and tag to make.
        target: branch or commit that the tag builds on. Default: the default branch.
        hub: user or organisation on the hub.
        dry_run: send only requests that read, show the others. Needs no token where reading needs none.

    Raises:
        ValueError: arguments do not go together, the token is missing, REGISTRY has a problem, holds a demo's bundle
            or, for GitHub, two versions of one, the client is not installed, what is published differs, or the service
            rejects a request.
    """
    require_text(registry=registry, github=github, tag=tag, target=target, hub=hub)
    kind = _kind(github, tag, hub)
    if kind == "hub" and target is not None:
        raise ValueError("--target does not go with --hub")
    if is_address(registry):
        raise ValueError(f"{registry}: must be a folder")
    client = _client(kind)
    token = os.environ.get(TOKENS[kind])
    if not token and not dry_run:
        raise ValueError(f"set {TOKENS[kind]} to a token that may write; --dry_run needs none")
    releases = read_index(registry)
    _check_versions(registry, releases, one_each=kind == "github")
    if found := [f"  {stem}: {reason}" for stem, reasons in problems(registry).items() for reason in reasons]:
        raise ValueError("\n".join([f"{registry}: not fit to be published", *found]))
    log, folder = HttpLog(dry_run), Path(registry)
    if kind == "github":
        client.publish_release(folder, releases, repository=github, tag=tag, target=target, token=token, log=log)
    else:
        client.publish_repositories(folder, releases, owner=hub, token=token, log=log)


def _kind(github: str | None, tag: str | None, hub: str | None) -> str:
    if (github is None) == (hub is None):
        raise ValueError("give either --github OWNER/REPOSITORY --tag TAG or --hub OWNER")
    if hub is not None:
        if tag is not None:
            raise ValueError("--tag belongs to --github; on the hub, tags are the versions of the bundles")
        return "hub"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(github)):
        raise ValueError(f"--github must be OWNER/REPOSITORY, it is {github}")
    if tag is None or not re.fullmatch(r"[\w.-]+", tag):
        raise ValueError("--tag must be given and have no slash: MONAI splits owner/repository/tag there")
    return "github"


def _check_versions(registry: str, releases: Sequence[Release], *, one_each: bool) -> None:
    """Rejects bundles that a demo trained, and for a GitHub release two versions of one bundle."""
    if demos := [release.name for release in releases if release.version == DEMO_VERSION]:
        raise ValueError(
            f"{registry}: {', '.join(demos)} in version {DEMO_VERSION} was trained by a demo, it is no release"
        )
    names = [release.name for release in releases]
    if one_each and (several := sorted({name for name in names if names.count(name) > 1})):
        raise ValueError(f"{registry}: has several versions of {', '.join(several)}, a tag holds one of each bundle")


def _client(kind: str) -> ModuleType:
    """Returns the module that uploads; it imports a client that is an optional dependency."""
    try:
        return importlib.import_module(f"tools.registry.to_{kind}")
    except ImportError as error:
        raise ValueError(
            f"publishing needs {PACKAGES[kind]}: python -m pip install {PACKAGES[kind]} ({error})"
        ) from error
