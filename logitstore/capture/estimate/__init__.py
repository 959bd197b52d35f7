"""What a capture will cost: a sample, trial batches, and the forecast from them."""
