"""Where a delta lies: on disk, in host memory, on the device."""
