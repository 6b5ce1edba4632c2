"""Federated averaging of the V-Net bundle: two sites, three rounds, on phantoms at a tiny size, in one process.

    python examples/federated.py OUTPUT

Each site has scans of its own, which stay where they are; the server sees weights only. It takes about a minute on two
cores. A real federation has the same client, `monai.fl.client.MonaiAlgo`, in an NVFlare or other runtime at every site;
docs/federated.md says what the bundles do in a round.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

REPO = Path(__file__).resolve().parents[1]
BUNDLE = REPO / "bundles/vnet_atrial_mri"
sys.path[:0] = [str(REPO), str(BUNDLE)]  # a client that is started by a runtime has the bundle on PYTHONPATH

from tools.data.phantoms import phantoms  # noqa: E402

logger = logging.getLogger("federated")

SITES = {"north": 4, "south": 6}  # cases
TINY = {"pixdim": [5.0, 5.0, 5.0], "patch_size": [32, 32, 16], "network_def#channels": [4, 8, 16, 32, 64]}
Weights = dict[str, torch.Tensor]


def average(sites: Sequence[Mapping[str, torch.Tensor]], *, shares: Sequence[float]) -> Weights:
    """Returns the mean of the sites' weights, each counted by its share; whole numbers are those of the first site.

    Args:
        sites: state dicts with the same names and shapes.
        shares: of each site, for example its number of cases.
    """
    mean = {}
    for name, value in sites[0].items():
        parts = [weights[name] * (share / sum(shares)) for weights, share in zip(sites, shares, strict=True)]
        mean[name] = torch.stack(parts).sum(0) if value.is_floating_point() else value.clone()
    return mean


def join(site: str, cases: int, *, output: Path) -> MonaiAlgo:
    """Returns the client of a site with phantoms of its own."""
    data = phantoms(
        BUNDLE.name, str(output / site / "scans"), cases=cases, seed=cases, shape=(48, 32, 24), spacing=(4, 4, 4)
    )
    places = {"dataset_dir": str(data), "ckpt_dir": str(output / site / "models"), "output_dir": str(output / site)}
    client = MonaiAlgo(
        str(BUNDLE),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename="configs/train.yaml",
        config_evaluate_filename=None,
        train_kwargs={**places, **TINY, "val_interval": 1},
    )
    client.initialize({"CLIENT_NAME": site})
    return client


def federate(output: Path, *, rounds: int = 3) -> Weights:
    """Trains in rounds: every site starts from the server's weights, the server takes the mean of what comes back.

    Args:
        output: folder for the scans and logs of the sites, and the server's `model.pt`.
        rounds: how often weights go out and come back.

    Returns:
        The server's last weights, under the names that `network_def` has.
    """
    clients = {site: join(site, cases, output=output) for site, cases in SITES.items()}
    server: Weights = dict(next(iter(clients.values())).get_weights().weights)
    for number in range(1, rounds + 1):
        returned = []
        for site, client in clients.items():
            client.train(ExchangeObject(weights=server))
            returned.append(client.get_weights().weights)
            assert client.trainer is not None
            logger.info("round %d, %s: loss %.3f", number, site, client.trainer.state.metrics["train_loss"])
        server = average(returned, shares=list(SITES.values()))
    torch.save(server, output / "model.pt")
    logger.info("the server's weights: %s", output / "model.pt")
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two sites and three rounds of federated averaging, on phantoms.")
    parser.add_argument("output", type=Path, help="folder for everything that is made")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    federate(parser.parse_args().output)
