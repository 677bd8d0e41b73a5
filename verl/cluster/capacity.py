"""How much a running Ray cluster has: asked once, before runs are started on it."""

from __future__ import annotations

from verl.errors import InfrastructureError


def cluster_gpus(address: str) -> float:
    """GPUs of the cluster at ``address`` (``auto`` or HOST:PORT), busy ones included.

    Raises InfrastructureError if there is no such cluster.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise InfrastructureError(f"cluster.address={address}: no Ray cluster answers there ({error})") from error
    try:
        return float(ray.cluster_resources().get("GPU", 0.0))
    finally:
        ray.shutdown()
