"""From samples to batches on the device: slots in shared memory, prefetched by workers."""
