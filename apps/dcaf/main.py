"""What ``monailabel start_server --app apps/dcaf`` loads: the application class, nothing else."""

from dcaf_monai.server.app import DcafApp

__all__ = ["DcafApp"]
