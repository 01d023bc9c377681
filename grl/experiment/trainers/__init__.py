"""What trains an experiment: a trainer and the processes that share its batches, one pair for each backend."""
