"""ENGINE: towers + global loss + optimizer as one `train_step`, and what survives a crash. The only
place that imports deepspeed."""
