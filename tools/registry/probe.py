"""Loads an unpacked bundle as a user does, in a process of its own: `python probe.py <bundle_dir> <name>`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def problems(bundle_dir: str, name: str) -> list[str]:
    """Returns how the networks that MONAI builds differ from the weights and the metadata.

    Raises:
        Exception: whatever building or running the network raises.
    """
    import monai.bundle

    folder = Path(bundle_dir, name)
    weights = torch.load(folder / "models/model.pt", map_location="cpu", weights_only=True)
    found = []
    for kind in ("train", "inference"):
        network = monai.bundle.load(name=name, bundle_dir=bundle_dir, workflow_type=kind, device="cpu")
        state = network.state_dict() if isinstance(network, torch.nn.Module) else {}
        keys = sorted(state.keys() ^ weights.keys())
        keys = keys or [key for key in state if not _same(weights[key], state[key])]
        if keys:
            found.append(
                f"models/model.pt does not fit the network of {kind}.json at {len(keys)} keys, first {keys[0]}"
            )
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(folder / "configs/metadata.json"),
        config_file=str(folder / "configs/inference.json"),
        device="cpu",
    )
    return found


def _same(weights: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether weights of perhaps another precision, but the same kind of numbers, are what was loaded."""
    kinds = weights.is_floating_point() == loaded.is_floating_point() and not weights.is_complex()
    return kinds and weights.shape == loaded.shape and torch.equal(weights.to(loaded.dtype), loaded)


if __name__ == "__main__":
    # Not the folder of this script, which Python puts there: its modules have common names.
    sys.path[:] = [str(Path(*sys.argv[1:])), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
    sys.exit("; ".join(problems(*sys.argv[1:])) or 0)
