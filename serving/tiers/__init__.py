"""Where a delta is: on disk, in host memory, on the device."""
