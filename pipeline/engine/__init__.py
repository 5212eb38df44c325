"""ENGINE: towers, global loss and optimizer behind one `train_step`; checkpoints, health and
stopping of a run. The only place that imports deepspeed."""
