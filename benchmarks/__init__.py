"""Performance as ratios, ours beside a floor and a peer, measured side by side in one run."""

import dcaf_monai  # noqa: F401  # before torch: says how its threads wait, for all contenders alike
