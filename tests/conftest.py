"""For every test."""

from __future__ import annotations

import torch
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# One thread, as on the device and in the trainer's default: sums add up in one order, and tests running side by side do
# not wait for each other's threads.
torch.set_num_threads(1)
