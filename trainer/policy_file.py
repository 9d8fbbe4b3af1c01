"""A learned policy as a file and as a message: the actor's network, packed, with version and digest."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from common import messages
from common.atomic_file import write_atomically
from common.errors import ConfigError, MessageError
from common.messages import PolicyUpdate
from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork, pack_network, unpack_network
from common.state_blob import digest
from trainer.ppo import ActorCritic


def network_of(model: ActorCritic) -> PolicyNetwork:
    """The actor, in NumPy."""
    layers = [part for part in model.actor if isinstance(part, nn.Linear)]
    return PolicyNetwork([(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers])


def take_over(model: ActorCritic, network: PolicyNetwork) -> None:
    """Write the network into the actor; ValueError where its layers have other sizes."""
    layers = [part for part in model.actor if isinstance(part, nn.Linear)]
    if [layer.weight.shape for layer in layers] != [weights.shape for weights, _ in network.layers]:
        raise ValueError(f"a network of sizes {network.sizes} does not fit the learner's")
    with torch.no_grad():
        for layer, (weights, biases) in zip(layers, network.layers, strict=True):
            layer.weight.copy_(torch.from_numpy(weights))
            layer.bias.copy_(torch.from_numpy(biases))


def to_message(network: PolicyNetwork, *, version: int, encoder: str) -> PolicyUpdate:
    """The network as devices get it; ValueError where it is too large to travel."""
    data = pack_network(network)
    return PolicyUpdate(version, encoder, digest(data), data)


def save_policy(path: Path, update: PolicyUpdate) -> None:
    """Write what devices would get, replacing the file at once; ``python -m common.messages FILE`` shows it."""
    write_atomically(path, messages.encode(update))


def load_policy(path: Path, *, actions: int) -> tuple[PolicyUpdate, PolicyNetwork]:
    """What `save_policy` wrote; ConfigError where it cannot be read or is damaged."""
    try:
        update = messages.decode(PolicyUpdate, path.read_bytes())
        if digest(update.data) != update.digest:
            raise MessageError("the digest does not match")
        return update, unpack_network(update.data, inputs=len(OBSERVATION_NAMES), actions=actions)
    except OSError as error:
        allowed = "a policy by streamsplit train-policy, or a copy of one of configs/policies"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; allowed: {allowed}") from error
    except MessageError as error:
        raise ConfigError(f"{path}: {error}") from error
