"""The server: batches, server segment, Hybrid Loss, weights."""
