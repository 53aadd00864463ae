"""Performance as ratios, ours beside a floor and a peer, measured side by side in one run."""
