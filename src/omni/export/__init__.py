"""What Omni tells other systems: figures for Prometheus. Each export observes ended turns and changes nothing."""
