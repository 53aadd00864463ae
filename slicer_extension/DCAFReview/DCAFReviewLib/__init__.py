"""What DCAF Review is made of, one direction only: client <- courier <- session <- widget -> logic."""
