"""From samples to batches on the device: slots in shared memory, filled ahead by workers."""
