"""What a run leaves to be used: the trainer's encoder, or in modes without a common one each device's own."""

from __future__ import annotations

from collections.abc import Sequence

from common import config
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from common.int8_weights import rounded
from common.weights_file import restore_encoder as restore_device
from trainer import checkpoint
from trainer.demo_files import COMPRESSED, OWN_ENCODERS, DemoFiles
from trainer.evaluate import restore_encoder


def deployed_encoders(files: DemoFiles, mode: str) -> Sequence[Encoder]:
    """The encoders of a finished run: a figure of the run is the mean of theirs.

    `edge-only`: one a device, from its own disk; `static-compression`: the same, with the weights that int8 can hold;
    any other mode: the one of the trainer's last checkpoint.

    Raises:
        ConfigError: the run left no weights.
        MessageError: a device's file is damaged.
    """
    if mode not in OWN_ENCODERS:
        path = checkpoint.latest(files.trainer_state)
        if path is None:
            raise ConfigError(f"{files.trainer_state}: the trainer left no checkpoint")
        return [restore_encoder(checkpoint.load(path))]
    fleet = config.load_trainer(files.trainer).fleet
    encoders = []
    for name, state in files.device_states.items():
        encoder = build_encoder(fleet.encoder, seed=0, head=fleet.head)
        if not restore_device(state / "weights.bin", encoder, fingerprint=config.fingerprint(fleet)):
            raise ConfigError(f"{state / 'weights.bin'}: {name} left no weights")
        encoders.append(rounded(encoder) if mode == COMPRESSED else encoder)
    return encoders
