"""DCAF: uncertainty-aware image classification by dual cross-attention fusion."""

import os

# Threads of PyTorch's OpenMP wait asleep instead of spinning. Server, scoring and training share the
# cores of one machine, where spinning made a step five times slower; alone it costs nothing
# measurable. Read when torch is loaded, so it must be said first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
