"""Forecast what a capture will cost, from a sample of rows and some trial batches."""
