"""What every training here shares: the batch, its augmentation, the schedule of the lr."""
