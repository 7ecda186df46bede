"""Floor 2: the device mesh, which axis cuts what, and experts on many devices."""
