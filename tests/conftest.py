"""Settings that all tests share."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail a property.
settings.register_profile("udc-ray", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
settings.load_profile("udc-ray")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("COLUMNS", None)  # parallel workers are told the width of a terminal that they do not have
torch.set_num_threads(1)
